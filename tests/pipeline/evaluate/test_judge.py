"""Answers graded by a language model behind an address, with recorded replies."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.evaluate.score import score
from tests.judge_endpoint import JudgeEndpoint
from tests.pipeline.evaluate.benchmarks.test_official_figures import write

RECORDED = Path(__file__).parent / "benchmarks" / "recorded"


def recorded(replies: Mapping[str, list[str]]) -> Callable[[str], str]:
    """Return what replies to a text by what it contains, each time with the next of its replies."""
    return lambda text: next(left for key, left in replies.items() if key in text).pop(0)


@pytest.mark.parametrize("name", ["llava_bench", "mmvet"])
def test_recorded_replies_give_the_official_scores(
    name: str, endpoint: JudgeEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((RECORDED / f"{name}.json").read_text())
    write(tmp_path, record["files"])
    if name == "llava_bench":
        file = "answers.jsonl"
        pairs = zip(record["answers"], record["replies"], strict=True)
        endpoint.reply = recorded({f"{answer['text']}\n": [reply] for answer, reply in pairs})
    else:
        file = "answers.json"
        endpoint.reply = recorded({f"{key} |": list(r) for key, r in record["replies"].items()})
    write(tmp_path, {file: record["answers"]})
    args = [name, "--predictions", str(tmp_path / file), "--data", str(tmp_path), "--json"]
    with pytest.raises(UserError, match=rf"grades the answers to {name}; want --judge or"):
        score(args)
    args += ["--judge", endpoint.address, "--judge-model", "recorded"]
    assert score(args) == 0
    found = json.loads(capsys.readouterr().out)
    for split, metrics in record["official"].items():
        assert found[split] == pytest.approx(metrics), split
    asked = len(endpoint.requests)
    assert asked == (9 if name == "llava_bench" else 15)
    assert {one["path"] for one in endpoint.requests} == {"/v1/chat/completions"}
    assert {one["model"] for one in endpoint.requests} == {"recorded"}
    # The grades are kept: scoring again asks nothing.
    assert score(args) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert len(endpoint.requests) == asked
    # The file of grades is enough by itself.
    kept = tmp_path / f"{file}.grades.jsonl"
    assert score([name, "--predictions", str(kept), "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_refusal_of_the_judge_is_one_line(endpoint: JudgeEndpoint, tmp_path: Path) -> None:
    record = json.loads((RECORDED / "mmvet.json").read_text())
    write(tmp_path, record["files"] | {"answers.json": record["answers"]})
    endpoint.status = 401
    endpoint.reply = recorded({"": ["no key"]})
    args = ["mmvet", "--predictions", str(tmp_path / "answers.json"), "--data", str(tmp_path)]
    with pytest.raises(UserError, match=r"chat/completions: status 401, want 200: "):
        score([*args, "--judge", endpoint.address])
