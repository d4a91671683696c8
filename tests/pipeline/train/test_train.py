"""How a run ends: the last line of its log, and a finished run that is started again."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from etl.cli import UserError
from model.presets import system
from pipeline.checkpoint.files import CheckpointFolder
from pipeline.config.run_config import RunConfig
from pipeline.config.trainer_state import TrainerState
from pipeline.forecast.workload import WorkTotals
from pipeline.train import train
from tests.runs import add_checkpoint, random_run
from tests.worlds import caption_shards

STEPS = 47


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    output = str(tmp_path / "run")
    return RunConfig(stage="pt", system=system("digits"), data=("data",), output=output)


def inputs(run: RunConfig, step: int | None) -> SimpleNamespace:
    """Return the inputs of a run of `STEPS` steps with a checkpoint of a step."""
    folder = CheckpointFolder(Path(run.output) / "checkpoints")
    return SimpleNamespace(
        steps=STEPS,
        validation=None,
        checkpoint=None if step is None else folder.final(step),
        checkpoints=SimpleNamespace(folder=folder),
    )


@pytest.fixture
def last_line(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., str]:
    """Report a run that has ended at a step; return the last line of the log."""
    monkeypatch.setattr(train, "compare_with_forecast", lambda *args, **more: None)
    monkeypatch.setattr(train, "run_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(train, "record_end", lambda *args: None)

    def call(step: int, *, complete: bool) -> str:
        totals = WorkTotals(media={})
        state = TrainerState(step=step)
        with caplog.at_level(logging.INFO):
            train.write_report(
                run,
                inputs(run, step),  # type: ignore[arg-type]
                state,
                totals,
                complete=complete,
                memory_before=0,
            )
        return caplog.messages[-1]

    return call


@pytest.mark.parametrize("step", [5, STEPS])  # the last one's validation may be left out
def test_a_stopped_run_says_how_to_resume(step: int, last_line: Callable[..., str]) -> None:
    expected = f"stopped after step {step} of 47, saved; the same command resumes"
    assert last_line(step, complete=False) == expected


def test_a_finished_run_names_its_results(run: RunConfig, last_line: Callable[..., str]) -> None:
    folder = run.output
    expected = f"done: {folder}/report.html, {folder}/checkpoints/step-00000047"
    assert last_line(STEPS, complete=True) == expected


def test_a_stage_starts_from_any_checkpoint_of_another(run: RunConfig, tmp_path: Path) -> None:
    random_run(tmp_path / "sft", "digits")
    add_checkpoint(tmp_path / "sft", 4, 0.5)
    data = caption_shards(tmp_path / "captions", 32)
    run = replace(run, data=(str(data),), init_from=str(tmp_path / "sft"))
    for checkpoint, step in (("newest", 4), ("0", 0)):
        found = train.open_inputs(replace(run, init_checkpoint=checkpoint), "auto")
        assert found.initial_weights is not None
        assert found.initial_weights.parent.name == f"step-{step:08d}"
    with pytest.raises(UserError, match="sft: has no checkpoint 'best'; want newest, 0, 4"):
        train.open_inputs(replace(run, init_checkpoint="best"), "auto")


class TrainingStarted(Exception):  # noqa: N818 -- not an error
    """Raised in place of training."""


@pytest.mark.parametrize(
    ("step", "resume", "trains"),
    [
        (STEPS, "auto", False),
        (STEPS - 1, "auto", True),
        (None, "auto", True),
        (STEPS, str(STEPS), True),
        (None, "never", True),
    ],
)
def test_a_finished_run_is_not_trained_again(
    step: int | None,
    resume: str,
    trains: bool,
    run: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start(run: RunConfig) -> None:
        raise TrainingStarted

    monkeypatch.setattr(train, "StopRequest", lambda: None)
    monkeypatch.setattr(train, "open_inputs", lambda run, resume: inputs(run, step))
    monkeypatch.setattr(train, "create_run_folder", start)
    if trains:
        with pytest.raises(TrainingStarted):
            train.train_stage(run, resume)
        return
    with caplog.at_level(logging.INFO):
        assert train.train_stage(run, resume) == 0
    assert caplog.messages == [f"already complete: {run.output} (step 47 of 47)"]
