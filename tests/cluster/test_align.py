"""The quickstart of RLHF, shrunk: every command runs, and the figures are of all four models."""

import json
from pathlib import Path

import pytest

from pipeline.quickstart.align import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

MODELS = {"sft", "dress", "dpo", "grpo"}


@pytest.mark.nightly(minutes=8)
def test_every_run_goes_on_from_sft_and_is_scored(tmp_path: Path) -> None:
    out = tmp_path / "align"
    run(["--output", str(out), "--captions", "40", "--preferences", "40", "--choose"])
    summary = json.loads((out / "summary.json").read_bytes())
    for name in ("held_out", "wrong_medium"):
        assert summary[name].keys() == MODELS
        assert all(0 <= share <= 1 for share in summary[name].values())
    assert summary["seconds_total"] > 0
    for name in MODELS - {"sft"}:
        config = json.loads((out / name / "config.json").read_bytes())
        assert config["init_from"] == str(out / ("dpo" if name == "grpo" else "sft"))
        assert config["system"]["rlhf"]["objective"]["kind"] == name
    for points in summary["curves"].values():
        assert points[-1]["media"].keys() == {"image", "audio"}
    assert "Owed to pictures" in (out / "report.html").read_text()
