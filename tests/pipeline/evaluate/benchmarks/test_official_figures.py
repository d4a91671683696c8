"""Scores of recorded predictions equal what the official scripts gave for them.

Each file in `recorded/` names its source (repository, commit, script) and holds published-format
files that were made for the test, predictions with the faults that scripts meet (malformed,
missing, repeated), the figures that the official script printed, and what we log about the faults.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.benchmarks import BENCHMARKS
from pipeline.evaluate.score import score

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))


def write(folder: Path, files: dict[str, Any]) -> None:
    """Write JSON, JSON lines (lists in .jsonl) or plain text files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(one) + "\n" for one in content))
        else:
            path.write_text(json.dumps(content))


def test_the_page_names_the_source_of_the_figures_of_each_benchmark() -> None:
    page = (Path(__file__).parents[4] / "docs" / "benchmarks.md").read_text()
    named = []
    for path in RECORDED:
        record = json.loads(path.read_text())
        name, source = record.get("benchmark", path.stem), record["source"]
        row = (f"`{name}`", f"{source['repository']} {source['commit'][:7]}", source["script"])
        assert f"| {' | '.join(row)} |" in page
        named.append(name)
    assert set(named) == {benchmark.name for benchmark in BENCHMARKS}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_scores_equal_the_official_ones(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = json.loads(path.read_text())
    assert record["source"].keys() >= {"repository", "commit", "script"}
    data, predictions = tmp_path / "data", tmp_path / "predictions"
    write(data, record["files"])
    write(predictions, record["predictions"])
    given = predictions
    if len(record["predictions"]) == 1:
        given /= next(iter(record["predictions"]))
    name = record.get("benchmark", path.stem)
    assert score([name, "--predictions", str(given), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for split, metrics in record["official"].items():
        for metric, value in metrics.items():
            assert found[split][metric] == pytest.approx(value, abs=1e-9), (split, metric)
    assert record.get("log", "") in caplog.text
    if "log" not in record:
        assert not caplog.records
