"""docs/bring-your-own-parts.md, run as it stands: from folders of parts to an evaluated model.

The stages run on two ranks as `tests.cluster.ranks` starts them; DeepSpeed's launcher is not what
this page is about.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import run as run_pipeline
from tests.cluster.ranks import REPOSITORY, run_ranks
from tests.test_docs import commands

PAGE = REPOSITORY / "docs" / "bring-your-own-parts.md"
ENV = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run_command(words: list[str]) -> None:
    """Run one command of the page in the current folder."""
    match words:
        case ["python", "-m", "pipeline", *rest]:
            assert run_pipeline(rest) == 0
        case ["python", "-m", *rest]:
            subprocess.run([sys.executable, "-m", *rest], env=ENV, check=True)
        case ["python", path, *rest]:
            subprocess.run([sys.executable, REPOSITORY / path, *rest], env=ENV, check=True)
        case ["deepspeed", "--num_accelerators", "2", "--module", "pipeline", stage, *rest]:
            rest = [
                str(Path(word).resolve()) if "/" in word or Path(word).exists() else word
                for word in rest
            ]
            outcome = run_ranks(2, stage, *rest)
            assert outcome.code == 0, outcome.stderr
        case _:
            raise AssertionError(words)


@pytest.mark.cluster
@pytest.mark.nightly(minutes=3)
@pytest.mark.timeout(600)
def test_the_page_leads_from_parts_to_an_evaluated_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))  # for `chat`
    for command in commands(PAGE):
        run_command(list(command.words))
    assert len(Path("runs/eyes/evaluation/predictions.jsonl").read_text().splitlines()) == 16
    for run in ("eyes-pt", "eyes"):
        steps = Path("runs", run, "metrics.jsonl").read_text().splitlines()
        assert len(steps) == 4
        assert json.loads(steps[-1])["grad_norm"] > 0
