"""In-context examples: which ones, in which order, and how a prompt with them looks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etl.cli import UserError
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from model.build import build, build_tokenizer
from model.presets import system
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.shots import Shots, SimilarMedia
from tests.worlds import question_shards, text_sample


@pytest.fixture
def pool(tmp_path: Path) -> ShardSet:
    return ShardSet([question_shards(tmp_path / "pool", 12)])


@pytest.fixture
def question(tmp_path: Path) -> Sample:
    return ShardSet([question_shards(tmp_path / "questions", 1, seed=5)])[0]


def test_examples_are_solved_samples_before_the_question(pool: ShardSet, question: Sample) -> None:
    shots = Shots(pool, 3, seed=0)
    prompt = shots(question)
    assert prompt.turns[-len(question.turns) :] == question.turns
    assert [turn.role for turn in prompt.turns] == ["user", "assistant"] * 4
    assert len(prompt.media) == 4
    assert prompt.media[-1] == question.media[0]
    assert shots(question) == prompt == Shots(pool, 3, seed=0)(question)
    assert Shots(pool, 3, seed=1)(question) != prompt
    other = shots(replace(question, id="other"))
    assert other.turns[:2] != prompt.turns[:2]


def test_a_question_is_never_its_own_example(pool: ShardSet) -> None:
    shots = Shots(pool, 11, seed=0)
    for row in range(len(pool)):
        own = pool[row]
        media = [medium.sha256 for medium in shots(own).media]
        assert media.count(own.media[0].sha256) == 1
    with pytest.raises(UserError, match="12 samples, want more than --shots 12"):
        Shots(pool, 12, seed=0)


def test_the_most_similar_example_is_the_last(
    pool: ShardSet, question: Sample, tmp_path: Path
) -> None:
    preset = system("digits")
    model = build(preset.model, preset.sft, weights="pretrained")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    encoder = SampleEncoder(preset.model, tokenizer, prompt="chat", max_tokens=512)
    shots = Shots(pool, 2, seed=0, similar=SimilarMedia(pool, model, encoder))
    same = replace(pool[7], id="the same picture, another question")
    assert shots(same).media[-2] == pool[7].media[0]

    def vector(sample: Sample) -> torch.Tensor:
        values = encoder.encode(sample).media[0].input_values
        return model.encode("image", values[None]).float().mean((0, 1, 2)).detach()

    similarity = torch.stack(
        [torch.cosine_similarity(vector(pool[row]), vector(question), 0) for row in range(12)]
    )
    best = similarity.argsort(descending=True)[:2].tolist()
    assert shots(question).media[:2] == (pool[best[1]].media[0], pool[best[0]].media[0])
    text = text_sample(0, 1)  # has no medium to compare: at random
    assert shots(text) == Shots(pool, 2, seed=0)(text)
    few = ShardSet([write_folder(tmp_path / "few", [text, pool[0], pool[1]], job="test")])
    shots = Shots(few, 2, seed=0, similar=SimilarMedia(few, model, encoder))
    assert shots(question) == Shots(few, 2, seed=0)(question)
