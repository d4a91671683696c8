"""The samples of a step are those that a real training's loader handed out, on any ranks."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from etl.digits.records import dialogue_sample, pair_sample
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from pipeline.cli import run as run_pipeline
from tests.cluster.ranks import Outcome, Ranks
from tests.worlds import text_sample

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SMALL = ("--scale", "tiny", "--global-batch", 8, "--micro-batch", 2, "--precision", "fp32")
BAD = 3
"""The dialogue whose picture is none."""


def sample(number: int, make: Callable[[int, int], Sample] = dialogue_sample) -> Sample:
    """Return a dialogue, or another sample, from one of seven sites."""
    found = make(0, number)
    lineage = {"url": f"http://site-{number % 7}.example/{number}.png"}
    if number == BAD:
        medium = replace(found.media[0], data=b"no picture")
        found = replace(found, media=(medium,))
    return replace(found, lineage=lineage, scores={"similarity": 0.25})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    text = write_folder(folder / "text", [text_sample(0, n) for n in range(9)], job="text")
    samples = map(sample, range(40))
    return write_folder(folder / "dialogues", samples, job="test", rows_per_shard=16), text


def train(ranks: int, record: Path, *words: object, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setenv("RECORD", str(record))
    return Ranks(ranks, words, module="tests.cluster.recording_rank").wait()


def handed_out(record: Path) -> dict[int, dict[tuple[int, int], list[str]]]:
    """Return the samples of each step by rank and micro-step; of a step that was repeated, last."""
    steps: dict[int, dict[tuple[int, int], list[str]]] = {}
    ranks: dict[int, set[int]] = {}
    for entry in map(json.loads, record.read_text().splitlines()):
        step, rank = entry["step"], entry["rank"]
        if rank in ranks.setdefault(step, set()):
            steps[step], ranks[step] = {}, set()
        ranks[step].add(rank)
        for micro_step, ids in enumerate(entry["ids"]):
            steps.setdefault(step, {})[rank, micro_step] = ids
    return steps


def traced(run: Path, step: int, capsys: pytest.CaptureFixture[str]) -> dict:
    run_pipeline(["trace", "--run", str(run), "--step", str(step), "--json"])
    return json.loads(capsys.readouterr().out)


def bins(found: dict) -> dict[tuple[int, int], list[str]]:
    """Return the trained samples of a traced step by rank and micro-step."""
    by_bin: dict[tuple[int, int], list[str]] = {}
    for one in found["samples"]:
        ids = by_bin.setdefault((one["rank"], one["micro_step"]), [])
        if not one["skip_reason"]:
            ids.append(one["id"])
    return by_bin


def nonempty(step: dict[tuple[int, int], list[str]]) -> dict[tuple[int, int], list[str]]:
    return {place: ids for place, ids in step.items() if ids}


def test_a_step_s_samples_are_those_of_the_loader(
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two ranks, then one from an earlier checkpoint, with another micro-batch and more epochs."""
    run, record = tmp_path / "run", tmp_path / "record"
    words = ("sft", "digits", "--data", *data, "--mix", "text=20%", *SMALL, "--output", run)
    words = (*words, "--save-every", 2, "--keep-last", 9, "--max-bad-fraction", 1)
    outcome = train(2, record, *words, "--max-steps", 5, monkeypatch=monkeypatch)
    assert outcome.code == 0, outcome.stderr
    more = ("--epochs", 2, "--micro-batch", 3, "--resume", 2, "--max-steps", 9)
    outcome = train(1, record, *words, *more, monkeypatch=monkeypatch)
    assert outcome.code == 0, outcome.stderr

    expected = handed_out(record)
    assert sorted(expected) == list(range(1, 10))
    found = {step: traced(run, step, capsys) for step in expected}
    for step, one in found.items():
        assert nonempty(bins(one)) == nonempty(expected[step]), step
        assert one["ranks"] == (2 if step <= 2 else 1)
        assert one["applied"]
    skipped = [one for step in found.values() for one in step["samples"] if one["skip_reason"]]
    assert {one["urls"][0] for one in skipped} == {f"http://site-{BAD}.example/{BAD}.png"}
    assert_from_the_columns(found[3]["samples"], data)


def assert_from_the_columns(samples: list[dict], data: tuple[Path, Path]) -> None:
    shards = ShardSet(list(data))
    rows = {shards[row].id: row for row in range(len(shards))}
    for one in samples:
        own = shards[rows[one["id"]]]
        assert one["media"] == [{"kind": m.kind, "sha256": m.sha256} for m in own.media]
        assert one["urls"] == [url for url in own.lineage.values() if "//" in url]
        assert (one["scores"], one["lineage"]) == (own.scores, own.lineage)
        assert shards.location(rows[one["id"]]) == (Path(one["folder"], one["shard"]), one["row"])


def test_after_a_removal_all_other_samples_keep_their_steps(
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run resumes before the first touched step; one that began from it has to start anew."""
    first, second, record = tmp_path / "first", tmp_path / "second", tmp_path / "record"
    pairs = [sample(number, pair_sample) for number in range(40)]
    captions = write_folder(tmp_path / "captions", pairs, job="test", rows_per_shard=16)
    words = ("pt", "digits", "--data", captions, *SMALL, "--max-steps", 5, "--seed", 2)
    words = (*words, "--save-every", 1, "--keep-last", 9, "--max-bad-fraction", 1)
    assert train(1, record, *words, "--output", first, monkeypatch=monkeypatch).code == 0
    before = handed_out(record)
    later = ("sft", "digits", "--data", data[1], *SMALL, "--max-steps", 1)
    later = (*later, "--init-from", first, "--output", second)
    outcome = train(1, tmp_path / "other", *later, monkeypatch=monkeypatch)
    assert outcome.code == 0, outcome.stderr

    ids = {pair.id: number for number, pair in enumerate(pairs)}
    steps = {step: {ids[i] for i in _flat(one)} for step, one in before.items()}
    site = next(s for s in range(7) if s != BAD and not any(n % 7 == s for n in steps[1]))
    removed = {number for number in range(40) if number % 7 == site}
    touched = [step for step, numbers in steps.items() if numbers & removed]

    pattern = f"HTTP://site-{site}.example/*"
    run_pipeline(["trace", "--drop", pattern, "--run", str(first), "--json"])
    one, other = json.loads(capsys.readouterr().out)["runs"]
    assert (one["steps"], one["samples"]) == (touched, {str(captions): len(removed)})
    assert [Path(path).name for path in one["checkpoints"]] == [
        f"step-{step:08d}" for step in range(touched[0], 6)
    ]
    assert one["untouched"] == str(first / "checkpoints" / f"step-{touched[0] - 1:08d}")
    assert other["began_from"] == {"run": str(first), "step": 5}
    assert (other["samples"], other["untouched"]) == ({}, None)

    filtered = tmp_path / "filtered"
    run_pipeline(
        ["trace", "--drop", pattern, "--run", str(first), "--filtered", str(filtered), "--json"]
    )
    plan = json.loads(capsys.readouterr().out)
    record.unlink()
    resumed = {
        step: {place: [i for i in names if ids[i] not in removed] for place, names in one.items()}
        for step, one in before.items()
        if step >= touched[0]
    }
    launcher = [sys.executable, "-m", "pipeline"]
    assert [command[:3] for command in plan["trainings"]] == [launcher] * 2
    outcome = train(1, record, *plan["trainings"][0][3:], monkeypatch=monkeypatch)
    assert outcome.code == 0, outcome.stderr
    after = handed_out(record)
    assert {s: _flat(bins) for s, bins in after.items()} == {
        s: _flat(bins) for s, bins in resumed.items()
    }
    command = dict(itertools.pairwise(plan["trainings"][1]))
    assert command["--output"] == f"{second}-filtered"
    assert command["--init-from"] == str(first)
    assert (command["--data"], "--resume" in command) == (str(data[1]), False)
    for step in before:
        trained = [i for ids in bins(traced(first, step, capsys)).values() for i in ids]
        assert sorted(trained) == _flat(resumed.get(step, before[step]))


def _flat(step: dict[tuple[int, int], list[str]]) -> list[str]:
    return sorted(name for names in step.values() for name in names)
