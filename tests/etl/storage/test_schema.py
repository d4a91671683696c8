import pyarrow as pa
import pytest

from etl.storage.schema import (
    PLACEHOLDERS,
    SCHEMA,
    Medium,
    Sample,
    SampleError,
    Turn,
    check,
    from_row,
    sha256,
    split_media,
    to_batch,
    words_of,
)


def medium(kind: str) -> Medium:
    return Medium(kind=kind, data=b"bytes", mime="x/y", sha256=sha256(b"bytes"))


def dialogue(*texts: str, kinds: tuple[str, ...] = ()) -> Sample:
    roles = ("user", "assistant")
    turns = tuple(Turn(role=roles[number % 2], text=text) for number, text in enumerate(texts))
    return Sample(id="one", source="test", turns=turns, media=tuple(map(medium, kinds)))


def test_every_kind_has_a_placeholder_and_passes() -> None:
    text = " then ".join(PLACEHOLDERS.values())
    check(dialogue(text, "answer", kinds=tuple(PLACEHOLDERS)))


def test_a_placeholder_after_a_backslash_is_text() -> None:
    check(dialogue(r"Is \<image> or <image> a tag?", r"\<image>", kinds=("image",)))
    assert split_media(r"a\<image>b<image>c") == [("", "a<image>b"), ("image", ""), ("", "c")]
    assert words_of(r"\<video> <video>", "…") == "<video> …"


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (dialogue("<image> and <audio>", kinds=("audio", "image")), "placeholders for"),
        (dialogue("no picture", kinds=("image",)), "placeholders for"),
        (dialogue("<image>"), "placeholders for"),
        (dialogue(), "no turns"),
        (Sample(id="one", source="s", turns=(Turn(role="gpt", text="x"),)), "role 'gpt'"),
    ],
)
def test_errors_name_the_sample(sample: Sample, message: str) -> None:
    with pytest.raises(SampleError, match=f"sample one: .*{message}"):
        check(sample)


def test_all_fields_survive_arrow() -> None:
    full = Sample(
        id="full",
        source="test",
        turns=(Turn(role="user", text="<points> <video>"), Turn(role="assistant", text="é")),
        media=(
            Medium(kind="points", data=b"p", mime="x/p", sha256=sha256(b"p"), points=4096),
            Medium(
                kind="video",
                data=b"v",
                mime="video/mp4",
                sha256=sha256(b"v"),
                width=4,
                height=3,
                frames=5,
                duration=2.5,
                sample_rate=16000,
            ),
        ),
        rejected=(Turn(role="assistant", text="worse"),),
        feedback=(Turn(role="user", text="why"),),
        scores={"similarity": 0.25},
        lineage={"url": "http://example.com"},
    )
    batch = to_batch([full])
    assert batch.schema == SCHEMA
    assert from_row(batch.to_pylist()[0]) == full


def test_media_bytes_have_wide_offsets() -> None:
    data = SCHEMA.field("media").type.value_type.field("data")
    assert data.type == pa.large_binary()
