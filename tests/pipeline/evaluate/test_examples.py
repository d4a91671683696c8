"""The answers that a run's page shows."""

import json
from pathlib import Path

from etl.storage.shards import ShardSet
from pipeline.evaluate.examples import write_examples
from pipeline.evaluate.generate_answers import Prediction
from tests.worlds import question_shards


def prediction(index: int, answer: str) -> Prediction:
    kind = "rare" if index == 29 else "frequent"
    return Prediction(id=str(index), kind=kind, question="What", truth="7", answer=answer)


def test_every_kind_of_question_is_shown_with_its_media(tmp_path: Path) -> None:
    samples = ShardSet([question_shards(tmp_path / "questions", 30)], verify=False)
    answers = [(prediction(i, "7" if i else "8"), prediction(i, "")) for i in range(30)]
    write_examples(tmp_path / "examples.json", samples, dict(enumerate(answers)), source="here")
    content = json.loads((tmp_path / "examples.json").read_text())
    assert content["source"] == "here"
    cards = content["cards"]
    assert len(cards) == 24
    assert all(card["media"][0]["uri"].startswith("data:image/") for card in cards)
    wrong, *_, rare = cards
    assert (wrong["answer"], wrong["correct"]) == ("8", False)
    assert wrong["details"] == [["truth", "7"], ["without media", "(nothing)"]]
    assert (rare["answer"], rare["correct"]) == ("7", True)
    assert rare["details"] == [["without media", "(nothing)"]]
    first = samples[29].media[0]
    assert rare["media"][0]["text"] == f"image, {len(first.data):,} bytes"
