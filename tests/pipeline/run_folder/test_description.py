"""The head of a run's page says what the run's configuration says."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.presets import system
from pipeline.config.run_config import RunConfig
from pipeline.run_folder.description import description


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", "0.002, after a warm-up over 3% of the steps; cosine to zero"),
        ("constant", "0.002, after a warm-up over 3% of the steps; constant"),
        ("wsd", "; constant, then decay to zero over the last 20% of the steps"),
    ],
)
def test_schedule_and_origin_are_the_configuration_s(
    schedule: str, expected: str, tmp_path: Path
) -> None:
    base = system("digits")
    sft = replace(base.sft, schedule=schedule, decay=0.2, learning_rate=2e-3)
    run = RunConfig(
        stage="sft",
        system=replace(base, sft=sft),
        data=("x",),
        output=str(tmp_path),
        init_from="runs/pt",
        init_checkpoint="best",
    )
    run.save(tmp_path)
    facts = dict(description(tmp_path, [])[0].facts)
    assert str(facts["learning rate"]).endswith(expected)
    assert facts["starts from"] == "runs/pt, best"
