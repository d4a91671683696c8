"""POPE: its published files, and scores by the official rules."""

import json
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.evaluate.benchmark import Question
from pipeline.evaluate.benchmarks.pope import POPE, SAMPLINGS, read, says_yes

PUBLISHED = Path(__file__).parents[5] / "shared" / "data" / "benchmarks" / "pope"
published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="no published questions in ../shared/data"
)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes, there is a car.", True),
        ("no", False),
        ("No, there is no car in the image.", False),
        ("There is not a car", False),
        ("No.", False),
        ("I see a car. There is no dog.", True),  # only the first sentence counts
        ("There is nothing", True),  # words, not letters
        ("NO", True),
        ("", True),
    ],
)
def test_answers_are_read_as_by_the_official_script(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def test_scores_of_each_sampling() -> None:
    truths = ["yes", "yes", "yes", "no", "no", "no"]
    given = ["yes", "Yes.", "no", "yes", "no", "No, it is not"]
    questions = [
        Question(id=f"{split}/{number}", split=split, text="?", answer=truth)
        for split in ("random", "popular")
        for number, truth in enumerate(truths)
    ]
    answers = {f"random/{number}": answer for number, answer in enumerate(given)}
    answers |= {f"popular/{number}": "no" for number in range(len(given))}
    scores = POPE.score(questions, answers)
    # By hand: 2 true and 1 false positives, 2 true and 1 false negatives.
    expected = {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    assert scores["random"] == pytest.approx(expected | {"yes_ratio": 0.5})
    assert scores["popular"] == {
        **{"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    }


def test_the_published_format_is_read(tmp_path: Path) -> None:
    line = {"question_id": 7, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}
    path = tmp_path / "coco_pope_popular.json"
    path.write_text(json.dumps(line) + "\n")
    (question,) = read(tmp_path)
    assert question == Question(
        id="popular/7",
        split="popular",
        text="Is there a dog?",
        answer="no",
        images=("val2014/a.jpg",),
    )
    path.write_text(json.dumps(line) + "\n{}\n")
    with pytest.raises(UserError, match=r"popular\.json:2: want question_id, image, text"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"has none of coco_pope_random\.json, "):
        read(tmp_path / "elsewhere")


@published
def test_the_published_questions() -> None:
    questions = read(PUBLISHED)
    assert len({question.id for question in questions}) == len(questions) == 9000
    always_yes = POPE.score(questions, {question.id: "yes" for question in questions})
    assert list(always_yes) == list(SAMPLINGS)
    for metrics in always_yes.values():
        assert metrics["recall"] == metrics["yes_ratio"] == 1.0
        assert metrics["accuracy"] == metrics["precision"] == 0.5
    perfect = POPE.score(questions, {question.id: question.answer for question in questions})
    assert all(metrics["f1"] == metrics["accuracy"] == 1.0 for metrics in perfect.values())
