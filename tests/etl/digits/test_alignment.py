"""Questions about what is there and what is not: answers are true, wrong answers are wrong."""

import json

import pytest

from etl.digits import texts
from etl.digits.__main__ import run
from etl.digits.alignment import ABSENT, KINDS, NO, record
from etl.digits.alignment_lists import LISTS
from etl.digits.scenes import split as scans
from etl.digits.tones import split as phones
from etl.sources.dialogues import messages
from etl.sources.preferences import DIALOGUES

LOOKUPS = (*texts.LOOKUPS, *texts.DIALLING_LOOKUPS)


def records(name, purpose, split="train"):
    return [record(3, name, purpose, number, split) for number in range(60)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("purpose", ["easy", "preferences", "present", "absent"])
def test_answers_are_true_of_what_is_there_and_rejected_ones_are_not(name, purpose):
    kinds = set()
    for one in records(name, purpose):
        things = KINDS[name].things(one.content)
        assert len(things) == 1 or purpose != "easy"
        for judged in one.questions:
            question = judged.question
            kinds.add(question.kind)
            # Every question that has an answer here, with it.
            true = {asked.text: asked.answer for x in LOOKUPS if hasattr(things[0], x.given)
                    and hasattr(things[0], x.asked) for asked in map(x.about, things)}  # fmt: skip
            true |= {f"Is there a {thing.digit}": "yes" for thing in things}
            true |= {KINDS[name].count: texts.NUMBERS[len(things)]}
            assert (question.kind in ABSENT) == (question.text not in true)
            if question.kind in ABSENT:
                assert question.answer == NO
            else:
                assert question.answer == true[question.text]
            assert judged.rejected != question.answer
            assert judged.critique
    present = {"is_there", "count", *(lookup.kind for lookup in KINDS[name].lookups)}
    absent = {"not_there", "absent"} if purpose == "easy" else set(ABSENT)
    expected = {"present": present, "absent": absent}.get(purpose, present | absent)
    assert kinds == expected


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("purpose", ["easy", "preferences"])
def test_yes_is_right_as_often_as_no(name, purpose):
    asked = [
        judged.question.answer
        for number in range(1000)
        for judged in record(3, name, purpose, number, "train").questions
        if judged.question.kind in ("is_there", "not_there")
    ]
    assert len(asked) > 200
    assert asked.count("yes") / len(asked) == pytest.approx(0.5, abs=0.08)


def test_splits_do_not_overlap():
    for split in (scans, phones):
        train, held_out, validation, test = (
            set(map(int, split(name))) for name in ("train", "held_out", "validation", "test")
        )
        assert validation | test == held_out
        assert not validation & test
        assert not held_out & train
    for number in range(20):
        for own in ("validation", "test"):
            marks = record(0, "image", "present", number, own).content.marks
            assert {mark.scan for mark in marks} <= set(scans(own))
            assert record(0, "audio", "absent", number, own).content.phone in phones(own)


def test_lists_are_read_as_dialogues_and_preferences(tmp_path):
    sizes = {"sound_captions.json": 10, "easy_dialogues.json": 40, "preferences.json": 40}
    sizes |= {"present_and_absent.json": 8, "validation.json": 8}
    run(["--output", str(tmp_path), "--captions", "0", "--dialogues", "0", "--questions", "0",
         "--preferences", "20"])  # fmt: skip
    assert sizes.keys() == LISTS.keys()
    for name, size in sizes.items():
        listed = json.loads((tmp_path / name).read_bytes())
        assert len(listed) == size
        read = DIALOGUES["messages"].parse if name == "preferences.json" else messages
        for row in listed:
            (one,) = read(row)
            assert bool(one.rejected) == bool(one.feedback) == (name == "preferences.json")
            path = one.media[0].url.partition("/alignment/")[2]
            assert (tmp_path / "media" / "alignment" / path).stat().st_size
