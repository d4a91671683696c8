"""The align quickstart: what its figures count, and a page that shows them."""

import json
from pathlib import Path

import pytest

from etl.digits.alignment import ABSENT, KINDS, record
from etl.storage.schema import PLACEHOLDERS, Medium, Sample, Turn, sha256
from etl.storage.shards import write_folder
from pipeline.quickstart.align_report import gap_charts, write_align_report
from pipeline.quickstart.align_scores import (
    DENIAL,
    Answer,
    read_answers,
    read_media,
    removed,
    score,
)

MODELS = ("sft", "dress", "dpo", "grpo")


def answer(medium: str, kind: str, truth: str, said: str, blind: str = "") -> Answer:
    return Answer(
        id="", medium=medium, kind=kind, question="", truth=truth, answer=said, blind=blind
    )


def test_a_denial_is_exact_only_where_nothing_is_there() -> None:
    found = score(
        [
            answer("image", "digit_at", "7", " 7 ", blind="7"),
            answer("image", "digit_at", "7", "no", blind="7"),
            answer("audio", "count", "two", "Two", blind="one"),
            answer("image", "is_there", "yes", "no", blind="one"),
            answer("image", "absent", "no", "red"),
            answer("image", "not_there", "no", " No"),
            answer("audio", "other_medium", "no", "no"),
            answer("audio", "other_medium", "no", ""),
        ]
    )
    assert found["held_out"] == 0.5
    assert found["wrong_medium"] == 0.5
    assert found["media"] == {
        "audio": {"seeing": 1.0, "blind": 0.0},
        "image": {"seeing": 1 / 3, "blind": 2 / 3},
    }
    assert found["kinds"]["audio: other_medium"] == 0.5
    assert found["kinds"]["image: digit_at"] == 0.5


def test_what_is_not_there_alone_is_truly_denied() -> None:
    for name in KINDS:
        for purpose in ("present", "absent"):
            for number in range(40):
                (one,) = record(0, name, purpose, number, "test").questions
                assert (one.question.answer == DENIAL) == (one.question.kind in ABSENT)
                assert (purpose == "absent") == (one.question.kind in ABSENT)


def test_removed_errors() -> None:
    assert removed(0.6, 0.8) == pytest.approx(0.5)
    assert removed(0.6, 0.5) == pytest.approx(-0.25)
    assert removed(1.0, 1.0) == 0.0


def point(step: int, seeing: float) -> dict[str, object]:
    media = {name: {"seeing": seeing, "blind": 0.125} for name in ("audio", "image")}
    kinds = {"audio: count": seeing, "image: absent": 0.5}
    return {"step": step, "held_out": seeing, "wrong_medium": 0.25, "media": media, "kinds": kinds}


def test_the_page_shows_figures_curves_and_answers(tmp_path: Path) -> None:
    curves = {name: [point(4, 0.5), point(8, 0.625)] for name in MODELS}
    curves["grpo"][-1] = point(8, 0.8125)
    samples = []
    for name, suffix in (("image", "image/png"), ("audio", "audio/wav")):
        shown = record(0, name, "present", 1, "test")
        data = KINDS[name].encode(shown.content)
        question = shown.questions[0].question
        samples.append(
            Sample(
                id=name,
                source="digits",
                turns=(
                    Turn(role="user", text=f"{PLACEHOLDERS[name]}\n{question.text}"),
                    Turn(role="assistant", text=question.answer),
                ),
                media=(Medium(kind=name, data=data, mime=suffix, sha256=sha256(data)),),
            )
        )
    write_folder(tmp_path / "questions", samples, job="digits", plan={})
    for model in MODELS:
        folder = tmp_path / "evaluations" / f"{model}-8"
        folder.mkdir(parents=True)
        lines = [
            {
                "id": name,
                "kind": "count",
                "question": f"What is in the {name}",
                "truth": "three",
                "answer": f"the {model} answer" if name == "image" else "three",
            }
            for name in ("image", "audio")
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        for file in ("predictions.jsonl", "predictions_blind.jsonl"):
            (folder / file).write_text(text)
    for name in ("pt", *MODELS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "losses": {"text": 1.0}}\n')
    summary = {
        "held_out": {name: points[-1]["held_out"] for name, points in curves.items()},
        "wrong_medium": dict.fromkeys(MODELS, 0.25),
        "curves": curves,
        "stages": [],
    }
    write_align_report(tmp_path, summary)
    page = (tmp_path / "report.html").read_text()
    assert "81.2%" in page  # GRPO's exact answers
    assert ">50%<" in page  # the errors that it removed
    assert "the dress answer" in page
    assert "What is in the audio" not in page, "all models answer it alike"
    assert page.count("seeing − blind") == 2
    (own, *_) = read_answers(tmp_path / "evaluations" / "dpo-8", read_media(tmp_path / "questions"))
    assert own.medium == "image"


def test_curves_of_rlhf_go_on_from_the_end_of_sft() -> None:
    curves = {"sft": [point(4, 0.5), point(8, 0.625)], "dpo": [point(3, 0.75)]}
    chart = gap_charts(curves)[0]
    # Two points of SFT; then the last of these again, and RLHF's own, at 8 + 3 steps.
    assert chart.count("L") >= 2
    assert "step 11" in chart
    assert "DPO: 0.625" in chart
