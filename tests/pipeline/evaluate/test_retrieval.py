"""Recall by hand, and a run of a Q-Former's pre-training evaluated through the command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from etl.storage.schema import Sample, Turn
from etl.storage.shards import ShardSet, write_folder
from model.build import build_tokenizer
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate import likelihood_retrieval
from pipeline.evaluate.evaluate import evaluate, load_run
from pipeline.evaluate.generate_answers import without_media
from pipeline.evaluate.likelihood_retrieval import LikelihoodRetrieval
from pipeline.evaluate.option_likelihoods import answered, option_log_likelihoods
from pipeline.evaluate.retrieval import Recall, recall
from tests.runs import random_pretraining_run, random_run
from tests.worlds import caption_shards


def test_recall_counts_what_is_more_similar() -> None:
    own = torch.tensor([0, 0, 1, 2])
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.5, 0.0],  # one of its texts is the first
            [0.8, 0.0, 0.7, 0.0],  # its text is the second
            [0.2, 0.2, 0.2, 0.2],  # all are equal: its text is the last
        ]
    )
    found = recall(similarity, own)
    assert (found.media, found.texts) == (3, 4)
    assert found.text_of_medium[1] == pytest.approx(1 / 3)
    assert found.text_of_medium[5] == 1.0
    # Text 0: first. Text 1: behind medium 2. Text 2: first. Text 3: first.
    assert found.medium_of_text[1] == pytest.approx(3 / 4)
    assert found.medium_of_text[5] == 1.0


def test_a_run_of_pre_training_is_evaluated_by_retrieval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    random_pretraining_run(folder)
    shards = ShardSet([caption_shards(tmp_path / "captions", 6)])
    again = replace(
        shards[0],
        id="again",
        turns=(*shards[0].turns[:-1], Turn(role="assistant", text="another caption")),
    )
    bad = replace(shards[1], id="bad", media=(replace(shards[1].media[0], data=b"x"),))
    data = write_folder(tmp_path / "data", [*(shards[n] for n in range(6)), again, bad], job="test")
    words = ["--run", folder, "--data", data, "--batch", 4, "--json"]
    assert evaluate(list(map(str, words))) == 0
    scores = json.loads(capsys.readouterr().out)["retrieval"]
    assert (scores["media"], scores["texts"], scores["skipped"]) == (6, 7, 1)
    assert scores["text_of_medium"]["10"] == scores["medium_of_text"]["10"] == 1.0
    saved = json.loads((folder / "evaluation" / "scores.json").read_text())
    assert saved["retrieval"] == scores


def captioned(folder: Path) -> list[Sample]:
    """Return four captioned media, another caption of the first, and a sample that is damaged."""
    shards = ShardSet([caption_shards(folder, 4)])
    samples = [shards[n] for n in range(4)]
    other = Turn(role="assistant", text="another caption")
    samples.append(replace(samples[0], id="again", turns=(*samples[0].turns[:-1], other)))
    samples.append(replace(samples[1], id="bad", media=(replace(samples[1].media[0], data=b"x"),)))
    return samples


def test_a_run_that_writes_text_ranks_by_likelihood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The likelihoods of all pairs are the losses of `option_log_likelihoods`, one at a time."""
    run = random_run(tmp_path / "run", "digits")
    samples = captioned(tmp_path / "captions")
    data = write_folder(tmp_path / "data", samples, job="test")
    words = ["--run", run.output, "--data", data, "--batch", 3, "--json", "--retrieval"]
    assert evaluate(list(map(str, words))) == 0
    scores = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text()) == scores

    model = load_run(run, tmp_path / "run")
    tokenizer = build_tokenizer(run.system.model, weights=run.weights)
    encoder = SampleEncoder(
        run.system.model, tokenizer, prompt="chat", max_tokens=run.settings.max_tokens
    )
    texts = [sample.turns[-1].text for sample in samples[:5]]

    def likelihood(sample: Sample, text: str) -> float:
        example = encoder.encode(answered(sample, text))
        return option_log_likelihoods(model, tokenizer, [example])[0]

    by_pair = torch.tensor([[likelihood(one, text) for text in texts] for one in samples[:4]])
    blind = torch.tensor([likelihood(without_media(samples[0]), text) for text in texts])
    own = torch.tensor([0, 1, 2, 3, 0])
    for name, matrix in (("retrieval", by_pair), ("retrieval_over_blind", by_pair - blind)):
        expected = recall(matrix, own)
        found = scores[name]
        assert (found["media"], found["texts"], found["skipped"]) == (4, 5, 1)
        for key in ("text_of_medium", "medium_of_text"):
            ranks = {int(rank): value for rank, value in found[key].items()}
            assert ranks == pytest.approx(getattr(expected, key))
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "evaluation" / "retrieval.jsonl").read_text().splitlines()
    ]
    assert [one["id"] for one in lines] == [sample.id for sample in samples[:4]]
    for one, scores_t in zip(lines, by_pair, strict=True):
        assert one["option_scores"] == pytest.approx(scores_t.tolist(), rel=1e-4)
        assert one["answer"] == texts[int(scores_t.argmax())]
    assert [one["correct"] for one in lines] == [
        own[row] == number for number, row in enumerate(by_pair.argmax(1).tolist())
    ]


def test_a_ranking_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the media and the texts that have no score yet; equal texts have equal ones."""
    run = random_run(tmp_path / "run", "digits")
    model = load_run(run, tmp_path / "run")
    tokenizer = build_tokenizer(run.system.model, weights=run.weights)
    encoder = SampleEncoder(
        run.system.model, tokenizer, prompt="chat", max_tokens=run.settings.max_tokens
    )
    samples = captioned(tmp_path / "captions")
    samples[3] = answered(samples[3], samples[2].turns[-1].text)  # of two media

    def ranked(output: Path, after: int) -> tuple[dict[str, Recall] | None, int]:
        """Return the recall, and how often the model was asked; stopped after so many times."""
        asked = 0

        def counted(*args: Any) -> list[float]:
            nonlocal asked
            asked += 1
            return option_log_likelihoods(*args)

        monkeypatch.setattr(likelihood_retrieval, "option_log_likelihoods", counted)
        retrieval = LikelihoodRetrieval(
            model,
            tokenizer,
            encoder,
            output=output,
            identity={},
            batch=3,
            stopped=lambda: asked >= after,
        )
        return retrieval.recall(samples), asked

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected, number = ranked(whole, 99)
    assert expected is not None
    assert number == 4 * 2 + 2  # four media with four texts, and the texts without them
    assert [ranked(parts, stop) for stop in (3, 4, 1)] == [(None, 4), (None, 4), (None, 1)]
    assert ranked(parts, 99) == (expected, 1)
    for name in ("retrieval.jsonl", "retrieval_blind.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
