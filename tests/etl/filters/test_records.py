import json

import pyarrow as pa

from etl.filters.base import FilterResult
from etl.filters.records import (
    MEDIA,
    captioned_only,
    check_media_urls,
    declared_duration,
    in_splits,
    media_count,
    placeholders,
    well_formed,
)
from etl.sources.base import TURNS


def media(*rows: list[tuple[str, str]]) -> pa.Array:
    refs = [[{"kind": kind, "url": url} for kind, url in row] for row in rows]
    return pa.array(refs, MEDIA)


def turns(*texts: str) -> pa.Array:
    return pa.array([[{"role": "user", "text": text}] for text in texts], TURNS)


def test_urls_and_file_names() -> None:
    column = media(
        [],
        [("image", "http://example.com/1"), ("image", "a.jpg")],
        [("image", "http://127.0.0.1/1")],
        [("image", "data:image/png;base64,AA==")],
        [("image", "ftp://example.com/1")],
        [("image", "http://example.com/1"), ("image", "http://localhost/")],
        [("image", "file:///data/a.jpg")],
    )
    table = pa.table({"media": column})
    with_media = check_media_urls(table, allow_private=False, local=True)
    expected = [None, None, "private_address", None, "bad_url", "private_address", None]
    assert with_media.reasons == expected
    without = check_media_urls(table, allow_private=True, local=False)
    assert without.reasons == [None, "no_media", None, None, "bad_url", None, "no_media"]


def test_placeholders_must_match_the_media() -> None:
    table = pa.table(
        {
            "turns": turns("<image> and <video>", "<video> and <image>", "text", "<image>"),
            "media": media(
                [("image", "a"), ("video", "b")],
                [("image", "a"), ("video", "b")],
                [],
                [],
            ),
        }
    )
    expected = [None, "placeholder_mismatch", None, "placeholder_mismatch"]
    found = placeholders(table)
    assert found.reasons == expected
    assert found.details == [
        None,
        "<video> <image> in its texts for media in another order",
        None,
        "1 <image> in its texts for 0 of its media (image)",
    ]


def test_parse_errors_are_reported() -> None:
    table = pa.table(
        {"parse_error": ["no field 'image'", None, None], "turns": [[], [], answered("x")]},
        schema=pa.schema([("parse_error", pa.string()), ("turns", TURNS)]),
    )
    result = well_formed(table)
    assert result.reasons == ["bad_record", "no_turns", None]
    assert result.details[0] == "no field 'image'"


def answered(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "text": ""}, *({"role": "assistant", "text": one} for one in texts)]


def test_a_dialogue_without_an_answer_is_dropped() -> None:
    rows = [
        {"turns": answered("Yes."), "rejected": [{"role": "assistant", "text": "No."}]},
        {"turns": answered("<image>")},  # generated
        {"turns": answered()},
        {"turns": answered("Yes.", " \n")},
        {"turns": answered("Yes."), "rejected": [{"role": "assistant", "text": ""}]},
        {"turns": answered(""), "caption": ""},  # a pair, whose caption has filters of its own
    ]
    schema = [("turns", TURNS), ("rejected", TURNS), ("caption", pa.string())]
    found = well_formed(pa.Table.from_pylist(rows, schema=pa.schema(schema)))
    assert found.reasons == [None, None, "no_answer", "no_answer", "no_answer", None]
    assert found.details[2:4] == ["no turn is an assistant's", "an answer is empty"]


def test_splits() -> None:
    found = [json.dumps({"split": name}) for name in ("train", "test")]
    table = pa.table({"lineage": [*found, "{}"]})
    assert in_splits(table, splits=("train",)).reasons == [None, "other_split", None]


def test_counts() -> None:
    table = pa.table({"media": media([], [("image", "a")], [("image", "a")] * 3)})
    reasons = media_count(table, minimum=1, maximum=2).reasons
    assert reasons == ["too_few_media", None, "too_many_media"]


def test_rows_without_a_caption_are_not_filtered() -> None:
    table = pa.table({"caption": ["one", None, "two"]})
    result = captioned_only(
        table, function=lambda part: FilterResult(reasons=["x"] * part.num_rows)
    )
    assert result.reasons == ["x", None, "x"]


def test_published_durations_are_checked_before_the_download() -> None:
    published = ["PT00H00M14S", "PT01H00M00S", "3.5", "0", "700.0", "601", "", "long", None]
    lineage = [json.dumps({} if one is None else {"duration": one}) for one in published]
    found = declared_duration(pa.table({"lineage": lineage}), minimum=2, maximum=600)
    assert found.reasons == [
        None,
        "declared_too_long",
        None,
        "declared_too_short",
        "declared_too_long",
        *[None] * 4,
    ]
