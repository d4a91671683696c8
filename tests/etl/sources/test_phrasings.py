"""MiniGPT-v2's instructions: task identifiers, wordings and boxes, as its repository has them."""

import dataclasses
import json
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.instruct import FORMATS
from etl.sources import captions
from etl.sources.base import Asked, BadRecordError, Record
from etl.sources.phrasings import (
    MINIGPT_V2,
    Wordings,
    minigpt_v2_boxes,
    read_wordings,
    with_phrasing,
)
from etl.storage.schema import Turn

FILES = Path(__file__).parents[1] / "formats"

GOLDEN = {
    "shikra": (
        "shikra.jsonl",
        [
            (
                "<image> [refer] give me the location of navy blue shirt",
                "{<50><20><75><80>}",
            ),
            (
                "<image> [identify] describe this object in {<50><20><75><80>}",
                "navy blue shirt",
            ),
            (
                "<image> [grounding] please describe this image in details",
                "<p>Two young guys</p> {<10><20><30><40>}<delim>{<40><20><60><40>} hang out in "
                "<p>the yard</p> {<0><0><100><100>}.",
            ),
            (
                "<image> [detection] Two young guys",
                "<p>Two young guys</p> {<10><20><30><40>}<delim>{<40><20><60><40>}",
            ),
            ("<image> [detection] the yard", "<p>the yard</p> {<0><0><100><100>}"),
            (
                "<image> What is <p>the man</p> {<0><0><50><50>} doing?",
                "<p>He</p> {<0><0><50><50>} is fishing.",
            ),
        ],
    ),
    "a-okvqa": (
        "a_okvqa.json",
        [
            (
                "<image> What is the man by the bags awaiting? Choose one from the following "
                "possible answers: skateboarder, train, delivery, cab. ",
                "cab",
            )
        ],
    ),
    "visual7w": (
        "visual7w.json",
        [
            (
                "<image> [vqa] Based on the image, respond to this question with a short answer: "
                "When was this photo taken?",
                "During the daytime.",
            )
        ],
    ),
    "llava": (  # Ferret's boxes: no task is known, so the text stays
        "ferret.json",
        [
            (
                "<image>\nWhat is {<25><10><50><50>} doing?",
                "The man {<25><10><50><50>} rides a horse {<20><20><60><80>}.",
            )
        ],
    ),
}


def records(name: str, file: str, phrasing: str, wordings: Wordings | None = None) -> list[Record]:
    fmt = with_phrasing({**FORMATS, **captions.FORMATS}[name], phrasing, wordings)
    found = []
    for row in fmt.rows(FILES / file):
        try:
            found += fmt.parse(row)
        except BadRecordError:  # the files have one bad record each
            continue
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_instructions_are_minigpt_v2_s(name: str) -> None:
    file, expected = GOLDEN[name]
    found = records(name, file, "minigpt_v2")
    assert [tuple(turn.text for turn in record.turns) for record in found] == expected


def test_the_survey_s_words_are_left_as_they_are() -> None:
    assert with_phrasing(FORMATS["vqa"], "survey") is FORMATS["vqa"]
    [first, *_] = records("shikra", "shikra.jsonl", "survey")
    assert first.turns[1].text == "[0.500,0.200,0.750,0.800]"


def test_every_wording_of_a_task_occurs() -> None:
    fmt = dataclasses.replace(FORMATS["vqa"], parse=lambda number: [asked(number)])
    found = {next(iter(with_phrasing(fmt, "minigpt_v2").parse(n))).turns[0].text for n in range(40)}
    assert {text.partition(" the number")[0].rstrip() for text in found} == {
        wording.partition("{text}")[0].rstrip() for wording in MINIGPT_V2["refer"]
    }


def test_captions_get_an_instruction() -> None:
    found = records("text-caps", "text_caps.json", "minigpt_v2")
    assert found
    for record in found:
        question, answer = record.turns
        assert question.text.startswith("<image> [caption] ")
        assert question.text.removeprefix("<image> ") in MINIGPT_V2["caption"]
        assert answer.text == record.caption


def test_wordings_are_read_from_shikra_s_templates(tmp_path: Path) -> None:
    """`<image>` may stand within a wording; what has no wordings stays in the phrasing's."""
    lists = {
        "refer": ["In <image>, where is <expr>?"],
        "identify": ["What is at <objs> of <image>?"],
        "detection": ["Find {text} in {braces}."],
    }
    for task, texts in lists.items():
        (tmp_path / f"{task}.json").write_text(json.dumps(texts))
    wordings = read_wordings([f"{task}={tmp_path / task}.json" for task in lists])
    found = records("shikra", "shikra.jsonl", "survey", wordings)
    texts = [tuple(turn.text for turn in record.turns) for record in found]
    assert texts[:3] == [
        ("In <image>, where is navy blue shirt?", "[0.500,0.200,0.750,0.800]"),
        ("What is at [0.500,0.200,0.750,0.800] of <image>?", "navy blue shirt"),
        (
            "<image>\nDescribe the image, with boxes of what you name.",
            "Two young guys[0.100,0.200,0.300,0.400][0.400,0.200,0.600,0.400] hang out in "
            "the yard[0.000,0.000,1.000,1.000].",
        ),
    ]
    assert texts[4] == (
        "<image> Find the yard in {braces}.",
        "the yard[0.000,0.000,1.000,1.000]",
    )
    fmt = dataclasses.replace(FORMATS["vqa"], parse=lambda number: [asked(number)])
    number = next(iter(with_phrasing(fmt, "survey", wordings).parse(1)))
    assert number.turns[0].text == "In , where is the number 1?"


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("vqa", "[]", "want TASK=FILE, a task of caption, vqa"),
        ("guess=FILE", "[]", "want TASK=FILE, a task of caption, vqa"),
        ("vqa=FILE.gz", "[]", "texts.json.gz: no such file"),
        ("vqa=FILE", "[]", "want a JSON list of texts"),
        ("vqa=FILE", '[{"a": 1}]', "want a JSON list of texts"),
        ("vqa=FILE", '["What?"]', "'What?', want one of {text}, <expr>, <objs>, <question> in it"),
        ("caption=FILE", '["<expr>?"]', "'<expr>?', want none of {text}"),
    ],
)
def test_mistakes_in_wordings_are_one_line(
    entry: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_wordings([entry.replace("FILE", str(tmp_path / "texts.json"))])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def asked(number: int) -> Record:
    text = f"the number {number}"
    turns = (Turn(role="user", text="where?"), Turn(role="assistant", text="[0.1,0.1,0.2,0.2]"))
    return Record(turns=turns, asked=(Asked(task="refer", text=text),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.999,1.000,-0.001,0.129]", "{<99><100><0><12>}"),
        ("no [1,2] and [0.5,0.5] here", "no [1,2] and [0.5,0.5] here"),
        ("<ph_st>it<ph_ed> alone", "<p>it</p> alone"),
    ],
)
def test_boxes_are_hundredths(text: str, expected: str) -> None:
    assert minigpt_v2_boxes(text) == expected
