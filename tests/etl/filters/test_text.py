import pyarrow as pa

from etl.filters.text import caption_length, declared_size, no_placeholders, word_count


def test_captions_are_measured_in_characters_without_blanks() -> None:
    captions = pa.table({"caption": ["   ab  ", "äöüßé", "x" * 11, None, "exactly 10"]})
    assert caption_length(captions, minimum=5, maximum=10).reasons == [
        "caption_too_short",
        None,
        "caption_too_long",
        "caption_too_short",
        None,
    ]


def test_captions_must_not_contain_placeholders() -> None:
    captions = pa.table({"caption": ["a <image> of", "a < image >", None, "<audio>"]})
    reasons = no_placeholders(captions).reasons
    assert reasons == ["placeholder_in_text", None, None, "placeholder_in_text"]


def test_words_are_separated_by_blanks() -> None:
    captions = pa.table({"caption": ["one", " one  two ", "one two three", None]})
    assert word_count(captions, minimum=2, maximum=2).reasons == [
        "caption_too_few_words",
        None,
        "caption_too_many_words",
        None,
    ]
    assert word_count(captions, minimum=0, maximum=None).reasons == [None] * 4


def test_missing_and_zero_sizes_are_unknown() -> None:
    table = pa.table(
        {
            "declared_width": pa.array([64, 63, 400, None, 0], pa.float32()),
            "declared_height": pa.array([64, 200, 100, 20, 20], pa.float32()),
        }
    )
    assert declared_size(table, minimum=64, max_aspect=3.0).reasons == [
        None,
        "declared_too_small",
        "declared_aspect_too_large",
        None,
        None,
    ]
