"""Dialogues: spellings of turns, media in place and in fields, rejected answers, boxes."""

from typing import Any

import pytest

from etl.sources.base import BadRecordError, Record
from etl.sources.boxes import box_text
from etl.sources.dialogues import messages, question_and_answer
from etl.sources.turns import parse_turns

USER, ANSWER = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bus."}


def one(record: Any, parse=messages) -> Record:
    (found,) = parse(record)
    return found


def asked(text: Any, **fields: Any) -> Record:
    """A record whose first turn is the user's `text`."""
    return one({"messages": [{"role": "user", "content": text}, ANSWER], **fields})


def urls(record: Record) -> list[str]:
    return [ref.url for ref in record.media]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<|image|>What?", "image"),
        ("<Img><ImageHere></Img>What?", "image"),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", "image"),
        ("<image_placeholder>What?", "image"),
        ("<|vision_start|><|video_pad|><|vision_end|>What?", "video"),
        ("<|audio_bos|><|AUDIO|><|audio_eos|>What?", "audio"),
        ("<point>What?", "points"),
    ],
)
def test_placeholders_of_other_models_are_ours(text: str, kind: str) -> None:
    field = {"points": "pcl"}.get(kind, f"{kind}s")
    found = asked(text, **{field: ["a"]})
    assert found.turns[0].text == f"<{kind}>What?"
    assert [(ref.kind, ref.url) for ref in found.media] == [(kind, "a")]


def test_a_video_may_stand_behind_the_placeholder_of_an_image() -> None:
    found = asked("<image>\nWhat?", video="a.mp4")
    assert found.turns[0].text == "<video>\nWhat?"
    mixed = asked("<image>\nWhat?", video="a.mp4", image="a.jpg")  # then the video has none
    assert mixed.turns[0].text == "<image>\nWhat?"
    assert len(mixed.media) == 2
    both = asked("<image> and <image>", video="a.mp4", image="a.jpg")
    assert both.turns[0].text == "<image> and <image>"  # which is which cannot be known


def test_media_in_place_and_in_fields_keep_their_places() -> None:
    found = asked(
        "<img>a.jpg</img> <image> <video>b.mp4</video> <image>", images=["c.jpg", "d.jpg"]
    )
    assert found.turns[0].text == "<image> <image> <video> <image>"
    assert urls(found) == ["a.jpg", "c.jpg", "b.mp4", "d.jpg"]
    assert urls(asked("<img>a.jpg</img>What?", image="a.jpg")) == ["a.jpg"]  # named twice
    other = asked("<img>a.jpg</img>What?", image="b.jpg")
    assert other.turns[0].text == "<image>\n<image>What?"
    assert urls(other) == ["b.jpg", "a.jpg"]


def test_an_escaped_placeholder_next_to_one_in_place_stays_text() -> None:
    found = asked(r"\<image> and <img>a.jpg</img>")
    assert found.turns[0].text == r"\<image> and <image>"
    tagged = asked("<image>a caption</image>\0", image="a.jpg")
    assert tagged.turns[0].text == "<image>a caption</image>\0"
    assert urls(tagged) == ["a.jpg"]


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ({"type": "image", "image": "a.jpg"}, "a.jpg"),
        ({"type": "image", "url": "http://example.com/a"}, "http://example.com/a"),
        ({"type": "image", "path": "a.jpg"}, "a.jpg"),
        ({"image": "file:///data/a.jpg"}, "/data/a.jpg"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}, None),
        ({"type": "input_image", "image_url": "http://example.com/a"}, "http://example.com/a"),
        ({"type": "video", "video": "a.mp4"}, "a.mp4"),
        ({"type": "audio_url", "audio_url": {"url": "a.wav"}}, "a.wav"),
        (
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            "data:audio/wav;base64,AA==",
        ),
    ],
)
def test_parts_of_a_turn_name_media(part: dict, url: str | None) -> None:
    found = asked([part, {"type": "text", "text": "What?"}])
    assert urls(found) == [url or part["image_url"]["url"]]
    kind = found.media[0].kind
    assert found.turns[0].text == f"<{kind}>\nWhat?"


def test_parts_without_a_medium_take_the_records() -> None:
    parts = [{"type": "text", "text": "One:"}, {"type": "image"}, {"type": "image"}]
    found = asked(parts, images=["a.jpg", "b.jpg"])
    assert found.turns[0].text == "One:\n<image>\n<image>"
    assert urls(found) == ["a.jpg", "b.jpg"]
    twice = [{"type": "image", "index": 0}, {"type": "image", "index": 0}]
    assert urls(asked(twice, images=["a.jpg"])) == ["a.jpg", "a.jpg"]
    for images in (["a.jpg", "b.jpg"], []):
        with pytest.raises(BadRecordError, match=r"it shows image \[0, 0\] \(counted from 0\) of"):
            asked(twice, images=images)


@pytest.mark.parametrize("text", ["<|image_2|> <|image_1|>", "<image01> <image00>"])
def test_numbered_placeholders_count_from_0_or_1(text: str) -> None:
    found = asked(f"{text} What?", images=["a.jpg", "b.jpg"])
    assert found.turns[0].text == "<image> <image> What?"
    assert urls(found) == ["b.jpg", "a.jpg"]
    named = asked(text, image={"<image_01>": "b.jpg", "<image_00>": "a.jpg"})
    assert urls(named) == ["b.jpg", "a.jpg"]
    with pytest.raises(BadRecordError, match="of 3 media"):
        asked(text, images=["a.jpg", "b.jpg", "c.jpg"])


def test_media_of_a_turn_stand_in_it() -> None:
    turns = [USER, ANSWER, {**USER, "images": ["b.jpg"]}, ANSWER]
    found = one({"messages": turns})
    assert found.turns[2].text == "<image>\nWhat?"
    assert urls(found) == ["b.jpg"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [{**ANSWER, "tool_calls": [{}]}]}, "tool_calls"),
        ({"messages": [{**ANSWER, "weight": 0}]}, "not to be learned"),
        ({"messages": [USER, {**ANSWER, "still": "a.jpg"}]}, "'still' holds media"),
        ({"messages": [USER, ANSWER], "frames": ["1.jpg", "2.jpg"]}, "'frames' holds media"),
        ({"messages": [USER, ANSWER], "meta": {"preview": "1.jpg"}}, "'meta' holds media"),
        ({"messages": [USER, ANSWER], "videos": [["1.jpg", "2.jpg"]]}, "a video of frames"),
        ({"messages": [USER, ANSWER], "image": "1.jpg", "images": ["1.jpg", "2.jpg"]}, "one field"),
        ({"messages": [USER, ANSWER], "image": "1.jpg", "picture": "2.jpg"}, "different media"),
        ({"messages": [USER, ANSWER], "kto_tag": False}, "undesirable"),
        ({"messages": [USER, ANSWER], "image": 5}, "image is 5"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "a part of type 'file'"),
        ({"messages": "[{]"}, "not JSON"),
        ({"messages": [USER, ANSWER], "chosen": ANSWER}, "end with another"),
        ({"messages": [USER], "rejected_response": "No."}, "no chosen answer"),
        (
            {"messages": [USER, ANSWER], "rejected_messages": [ANSWER, ANSWER]},
            "differs from its turns before",
        ),
        (
            {"messages": [USER, ANSWER], "images": ["a.jpg"], "rejected_images": ["b.jpg"]},
            "other media",
        ),
    ],
)
def test_what_a_sample_cannot_hold_is_refused(record: dict, message: str) -> None:
    with pytest.raises(BadRecordError, match=message):
        one(record)


def test_where_a_medium_is_from_is_lineage() -> None:
    fields = {"image": "a.jpg", "coco_url": "http://example.com/b.jpg", "image_path": "x/a.jpg"}
    fields |= {"crop_of": "full/a.jpg"}
    found = one({"id": "7.jpg", "messages": [USER, ANSWER], "safe": False, **fields})
    assert urls(found) == ["a.jpg"]
    assert found.lineage == {
        "original_id": "7.jpg",
        "safe": "false",
        "coco_url": "http://example.com/b.jpg",
        "image_path": "x/a.jpg",
        "crop_of": "full/a.jpg",
    }
    assert urls(one({"messages": [USER, ANSWER], "img_paths": ["x/a.jpg"]})) == ["x/a.jpg"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.jpg,b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg; x/b.png", ["a.jpg", "x/b.png"]),
        ('["a.jpg", "b.jpg"]', ["a.jpg", "b.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ("salt, pepper.jpg", ["salt, pepper.jpg"]),
        ("http://a.com/1.jpg,http://a.com/2.jpg", ["http://a.com/1.jpg", "http://a.com/2.jpg"]),
        ("http://a.com/c_fill,w_5/1.jpg", ["http://a.com/c_fill,w_5/1.jpg"]),
        ("data:image/png;base64,iVBO", ["data:image/png;base64,iVBO"]),
    ],
)
def test_several_names_in_one_string(text: str, names: list[str]) -> None:
    assert urls(one({"messages": [USER, ANSWER], "image": text})) == names


def test_a_list_of_turns_may_be_a_text_of_json() -> None:
    dialogue = parse_turns('[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]')
    assert [turn.role for turn in dialogue.turns] == ["user", "assistant"]


def test_only_one_question_format_has_an_input() -> None:
    found = one({"query": "Q", "input": "not said", "response": "A"}, question_and_answer)
    assert found.turns[0].text == "Q"
    with pytest.raises(BadRecordError, match="no field 'output' or"):
        one({"instruction": "Q"}, question_and_answer)
    with pytest.raises(BadRecordError, match="want pairs of question and answer"):
        one({"instruction": "Q", "output": "A", "history": [["x"]]}, question_and_answer)


def test_boxes_are_written_as_shikra_does() -> None:
    assert box_text([0, 0, 32, 48], (64, 96)) == "[0.000,0.000,0.500,0.500]"
    assert box_text([32, 24], (64, 96)) == "[0.500,0.250]"
    assert box_text([0.1, 0.2, 0.3, 1], (None, None)) == "[0.100,0.200,0.300,1.000]"
    with pytest.raises(BadRecordError, match="in pixels, but it has no width"):
        box_text([0, 0, 32, 48], (None, None))
    objects = {"ref": ["a dog"], "bbox": []}
    with pytest.raises(BadRecordError, match="0 <ref-object> in its texts, but 1"):
        asked("What?", objects=objects)
