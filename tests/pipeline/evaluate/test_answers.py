"""Scores count exact answers; chance is the commonest answer of each kind of question."""

from pathlib import Path

from etl.storage.shards import ShardSet
from model.build import build, build_tokenizer
from model.presets import system
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.answers import Prediction, answers, without_media
from pipeline.evaluate.command import score
from tests.worlds import question_shards


def prediction(kind: str, truth: str, answer: str) -> Prediction:
    return Prediction(id="", kind=kind, question="", truth=truth, answer=answer)


def test_score() -> None:
    seeing = [
        prediction("digit", "3", "3"),
        prediction("digit", "3", "4"),
        prediction("digit", "5", "5"),
        prediction("colour", "red", " Red "),
    ]
    blind = [prediction(p.kind, p.truth, "3") for p in seeing]
    scores = score(seeing, blind)
    assert (scores.accuracy, scores.blind, scores.chance) == (0.75, 0.5, 0.75)
    assert scores.kinds["digit"].accuracy == 2 / 3
    assert scores.kinds["colour"].chance == 1.0


def test_answers_do_not_depend_on_how_questions_are_batched(tmp_path: Path) -> None:
    preset = system("digits")
    shards = ShardSet([question_shards(tmp_path, 6)])
    model = build(preset.model, preset.sft, weights="pretrained")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    encoder = SampleEncoder(preset.model, tokenizer, prompt="chat", max_tokens=128)
    samples = [shards[0], without_media(shards[1]), *(shards[i] for i in range(2, 6))]
    whole, single = (
        [
            prediction
            for first in range(0, 6, size)
            for prediction in answers(
                model, tokenizer, encoder, samples[first : first + size], max_new_tokens=6
            )
        ]
        for size in (6, 1)
    )
    assert whole == single
    assert [p.truth for p in whole] == [sample.turns[-1].text for sample in samples]
