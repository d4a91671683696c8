"""`--format auto` of instruct and preference: every sample file's format is found."""

import json
from pathlib import Path

import pytest

import etl.instruct
import etl.preference
from etl.cli import UserError
from etl.runtime.corpus import peek
from etl.sources import captions
from etl.sources.looks import INSTRUCTIONS, PREFERENCES, detect
from tests.etl.sources.test_formats import EXPECTED, FILES

SECOND_NAMES = {"messages": "llava", "query-response": "alpaca"}
"""Two names of one reader."""


def first_file(name: str) -> Path:
    path = FILES / name
    return sorted(path.iterdir())[0] if path.is_dir() else path


def test_every_format_has_looks() -> None:
    assert set(INSTRUCTIONS) == set(etl.instruct.FORMATS)
    assert set(PREFERENCES) == set(etl.preference.FORMATS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_format_is_found_by_its_looks(name: str) -> None:
    format_name = EXPECTED[name]["format"]
    content = peek(first_file(name))
    if format_name in INSTRUCTIONS:
        found = detect(content, INSTRUCTIONS)
        assert SECOND_NAMES.get(found, found) == SECOND_NAMES.get(format_name, format_name)
    if format_name in PREFERENCES and "rejected" in json.dumps(content):
        assert detect(content, PREFERENCES)
    if format_name in {"rlhf-v", "llava-rlhf", "dress", "vlfeedback", "vlguard"}:
        assert detect(content, PREFERENCES) == format_name


def test_results_on_coco_are_no_captions() -> None:
    with pytest.raises(UserError, match="name no image files: want annotations"):
        captions.detect_format([{"image_id": 404464, "caption": "a photo"}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([["what?", "yes", 0]], "entry .'what.', 'yes', 0.*; the nearest is coco, of 'images'"),
        ({"questions": []}, "fields .'questions'.*; the nearest is coco"),
        ([], "entry None"),
        ("a,b", "entry None"),
    ],
)
def test_what_is_no_list_of_captions_names_the_nearest_format(
    content: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        captions.detect_format(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "results of a model on COCO"),
        (
            [{"image_id": 1, "category_id": 2, "bbox": [], "score": 0.5}],
            "results of a model on COCO",
        ),
        (
            [{"id": 1, "image": "a.jpg", "convs": []}],
            "fields convs, id, image; the nearest is --format llava, .* conversations",
        ),
        (
            {"data": [{"question": "q", "image": "a.jpg"}]},
            "in 'data' .* nearest is --format doc-vqa",
        ),
        ([], "want a list of objects"),
        ([1], "want a list of objects"),
        ("a,b,c", "want a list of objects"),
    ],
)
def test_what_is_not_understood_names_the_nearest_format(content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(content, INSTRUCTIONS)
