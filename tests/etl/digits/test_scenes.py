import numpy as np

from etl.digits.records import (
    dialogue,
    dialogue_sample,
    pair,
    pair_sample,
    question,
    question_sample,
)
from etl.digits.scenes import CANVAS, Scene, encode, render, scans, split
from etl.digits.texts import QUESTION_MAKERS, caption, questions
from etl.storage.schema import check


def test_every_scan_is_in_one_split() -> None:
    train, held_out = split("train"), split("held_out")
    assert sorted([*train, *held_out]) == list(range(len(scans()[1])))
    for part in (train, held_out):  # both contain all ten digits
        assert set(scans()[1][part]) == set(range(10))


def scans_of(scenes: list[Scene]) -> set[int]:
    return {mark.scan for scene in scenes for mark in scene.marks}


def test_records_show_only_scans_of_their_split() -> None:
    train, held_out = set(split("train")), set(split("held_out"))
    assert scans_of([pair(0, number).scene for number in range(300)]) <= train
    assert scans_of([dialogue(0, number).scene for number in range(300)]) <= train
    assert scans_of([question(0, number).scene for number in range(300)]) <= held_out


def test_a_record_is_a_function_of_seed_and_number() -> None:
    assert pair_sample(3, 5) == pair_sample(3, 5)
    assert pair_sample(3, 5).media != pair_sample(3, 6).media
    assert pair_sample(3, 5).media != pair_sample(4, 5).media
    assert pair_sample(3, 5).media != question_sample(3, 5).media


def test_samples_satisfy_the_schema() -> None:
    for number in range(20):
        for make in (pair_sample, dialogue_sample, question_sample):
            check(make(0, number))
    asked = dialogue_sample(0, 0).turns
    assert asked[0].text.startswith("<image>\n")
    assert [turn.role for turn in asked] == ["user", "assistant"] * (len(asked) // 2)
    assert question_sample(0, 0).lineage["kind"]


def test_captions_describe_every_mark() -> None:
    rng = np.random.default_rng(0)
    for number in range(50):
        scene = pair(0, number).scene
        text = caption(scene, rng)
        for mark in scene.marks:
            assert mark.colour in text
            assert str(mark.digit) in text
            assert mark.position in text


def test_questions_have_one_answer_each() -> None:
    scene = next(s for s in (pair(0, n).scene for n in range(99)) if len(s.marks) == 3)
    rng = np.random.default_rng(0)
    asked = questions(scene, rng, len(QUESTION_MAKERS))
    assert len({one.kind for one in asked}) == len(QUESTION_MAKERS)
    answers = {one.kind: one.answer for one in asked}
    assert answers["count"] == "three"
    assert answers["sum"] == str(sum(mark.digit for mark in scene.marks))
    assert answers["colour_of"] in {mark.colour for mark in scene.marks}
    assert answers["place_of"] in {mark.position for mark in scene.marks}


def test_a_rendered_mark_is_visible_and_deterministic() -> None:
    scene = next(s for s in (pair(0, n).scene for n in range(99)) if len(s.marks) == 1)
    image = render(scene)
    assert image.size == (CANVAS, CANVAS)
    assert encode(image, "image/png") == encode(render(scene), "image/png")
    assert np.asarray(image).max() > 150 > np.median(np.asarray(image))
