import pyarrow as pa

from etl.dedup.exact import FirstSeen


def test_the_first_row_is_kept_across_batches() -> None:
    first_seen = FirstSeen("key", "duplicate_url")
    assert first_seen(pa.table({"key": ["a", "b", "a", None]})).reasons == [
        None,
        None,
        "duplicate_url",
        None,
    ]
    assert first_seen(pa.table({"key": ["b", "c", None]})).reasons == ["duplicate_url", None, None]
