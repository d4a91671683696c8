import pyarrow as pa

from etl.dedup.exact import FirstSeen


def test_the_first_row_stays_across_batches() -> None:
    judge = FirstSeen("key", "duplicate_url")
    assert judge(pa.table({"key": ["a", "b", "a", None]})).reasons == [
        None,
        None,
        "duplicate_url",
        None,
    ]
    assert judge(pa.table({"key": ["b", "c", None]})).reasons == ["duplicate_url", None, None]
