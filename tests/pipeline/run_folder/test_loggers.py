"""Metrics arrive in the files of TensorBoard and W&B."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from etl.cli import UserError
from pipeline.config import loggers as config_loggers
from pipeline.config.loggers import check_loggers
from pipeline.run_folder.loggers import flat, start_loggers

STEP = {
    "step": 3,
    "loss": 1.5,
    "losses": {"text": 1.5},
    "sources": {"captions": {"samples": 4, "loss": None}},
    "memory_bytes": [10, 30, 20],
}


def test_nested_metrics_become_names_with_slashes():
    assert flat(STEP) == {
        "step": 3,
        "loss": 1.5,
        "losses/text": 1.5,
        "sources/captions/samples": 4,
        "memory_bytes/max": 30,
    }


def log(names, run, steps):
    started = start_loggers(names, run, {"seed": 0}, step=steps[0] - 1)
    for step in steps:
        for logger in started:
            logger.log(step, {"loss": 1 / step})
    for logger in started:
        logger.close()


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path):
    log(["tensorboard"], tmp_path, [1, 2, 3, 4])
    log(["tensorboard"], tmp_path, [3, 4, 5])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    log(["wandb"], tmp_path, [1, 2])
    log(["wandb"], tmp_path, [2, 3])
    run_id = (tmp_path / "wandb" / "id").read_text()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    assert {folder.name.rpartition("-")[2] for folder in folders} == {run_id}
    assert all(list(folder.glob("*.wandb")) for folder in folders)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(config_loggers, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--log-to wandb: not installed; pip install mmloom\[wandb"
    ):
        check_loggers(["wandb"])
