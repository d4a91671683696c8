"""Which changes of a command a resumed run accepts."""

import hashlib
import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etl.cli import UserError
from etl.storage.atomic import write_json
from etl.storage.positions import Positions, Version
from model.presets import system
from model.spec import Stage
from pipeline.checkpoint.checkpoints import Checkpoints, RetentionPolicy
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig, StageName
from pipeline.data.packing import PackedLayout
from pipeline.data.removed import RemovedRows
from pipeline.data.sampler import BatchSampler, CostModel
from pipeline.data.shuffle import ShuffledStream, Source
from pipeline.train.identity import complete_identity, run_identity


def run_of(stage: StageName = "pt", **changes: Any) -> RunConfig:
    """Return a run of which fields of the stage are changed."""
    preset = system("dlp" if stage == "init" else "digits")
    settings = replace(preset.stage(stage, "qformer" if stage == "init" else None), **changes)
    if stage == "init":
        preset = replace(preset, init=(settings,))  # type: ignore[arg-type]
    else:
        preset = replace(preset, **{stage: settings})
    return RunConfig(stage=stage, system=preset, data=("data",), output="run")


def sampler_of(run: RunConfig) -> BatchSampler:
    """Return the sampler of ten samples."""
    source = Source(first=0, rows=10, samples_per_epoch=10)
    return BatchSampler(
        stream=ShuffledStream(sources=(source,), seed=0, epochs=1),
        global_batch=run.settings.global_batch,
        layout=PackedLayout(max_tokens=1, max_media=1),
        lengths=None,
        cost_model=CostModel(per_medium={}),
    )


def identity(run: RunConfig, *, steps: int = 10, world: int = 2) -> dict[str, object]:
    return run_identity(run, "data", None, steps=steps, world=world)


def resumes(folder: Path, stored: dict[str, object], run: RunConfig, *, steps: int = 10) -> bool:
    """Return whether a run resumes from a checkpoint with an identity."""
    checkpoint = folder / "checkpoints" / "step-00000005"
    manifest = {"trainer_state": {"step": 5}, "identity": stored, "files": {}}
    write_json(checkpoint / "manifest.json", json.loads(json.dumps(manifest)))
    checkpoints = Checkpoints(
        folder,
        identity(run, steps=steps),
        RetentionPolicy(),
        complete=partial(complete_identity, run, sampler_of(run), "data"),
    )
    return checkpoints.choose("auto") == checkpoint


@pytest.mark.parametrize(
    "changes", [{"micro_batch": 1}, {"epochs": 3}, {"recompute": True}, {"pack_media": 1}]
)
def test_how_a_step_is_computed_may_change(changes: dict[str, Any], tmp_path: Path) -> None:
    assert resumes(tmp_path, identity(run_of()), run_of(**changes))


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.5}, {"global_batch": 4}, {"gradient_clipping": 0.1}]
)
def test_what_a_step_learns_may_not(changes: dict[str, Any], tmp_path: Path) -> None:
    [name] = changes
    with pytest.raises(UserError, match=f"belongs to a run with {name} "):
        resumes(tmp_path, identity(run_of()), run_of(**changes))


def test_a_field_deep_in_the_model_is_named_alone(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(identity(run_of())))
    stored["model"]["inputs"][0]["encoder"]["weights"] = "elsewhere"
    with pytest.raises(
        UserError, match=r"model\.inputs\.0\.encoder\.weights 'elsewhere', this "
    ) as e:
        resumes(tmp_path, stored, run_of())
    assert len(str(e.value)) < 400


def test_a_micro_batch_may_not_change_where_its_samples_are_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="micro_batch"):
        resumes(tmp_path, identity(run_of("init")), run_of("init", micro_batch=1))


def test_there_may_be_more_steps_but_not_fewer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = identity(run_of(), steps=10)
    with caplog.at_level(logging.INFO):
        assert resumes(tmp_path, stored, run_of(), steps=10)
        assert caplog.messages == []
        assert resumes(tmp_path, stored, run_of(epochs=2), steps=20)
    [line] = caplog.messages
    assert line == (
        "20 steps in place of 10: from here on, the learning rate is that of a run of 20 steps"
    )
    with pytest.raises(UserError, match="a run of 10 steps, this one has 9; --epochs and"):
        resumes(tmp_path, stored, run_of(), steps=9)


@pytest.mark.parametrize(("decay", "warns"), [(0.5, False), (0.6, True)])
def test_a_rate_that_has_decayed_rises_again_with_a_warning(
    decay: float, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At step 5 of 10; a checkpoint of the stable phase just goes on."""
    wsd = {"schedule": "wsd", "decay": decay}
    assert resumes(tmp_path, identity(run_of(**wsd), steps=10), run_of(**wsd), steps=20)
    assert ("has decayed since step 4 and now rises again" in caplog.text) == warns


def test_a_field_that_an_older_version_lacked_has_its_default(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(identity(run_of())))
    del stored["gradient_clipping"], stored["z_loss"], stored["model"]["backbone"]["weights"]
    with pytest.raises(UserError, match="model"):
        resumes(tmp_path, stored, run_of())  # a field without a default
    stored = json.loads(json.dumps(identity(run_of())))
    del stored["gradient_clipping"], stored["z_loss"], stored["model"]["fusion"]
    assert resumes(tmp_path, stored, run_of())
    with pytest.raises(UserError, match=r"gradient_clipping 1\.0, this one has 0\.5"):
        resumes(tmp_path, stored, run_of(gradient_clipping=0.5))
    assert isinstance(run_of().settings, Stage)


def test_a_run_resumes_where_no_removed_sample_was_trained_on(tmp_path: Path) -> None:
    """Ten samples in steps of two; of the removed one depends where the run may resume."""
    run = replace(run_of(global_batch=2), data=("data",), output=str(tmp_path))
    stored = {**identity(run), "data": hashlib.sha256(b"before").hexdigest()}
    order = sampler_of(run).stream.rows(0, 10).tolist()
    (tmp_path / "bad_samples.jsonl").write_text(
        json.dumps({"step": 1, "position": 0, "row": order[0], "id": "a", "reason": "b"}) + "\n"
    )

    def resumed(removed: int, step: int) -> object:
        before = Version(shards=("before",), removed_r=np.empty(0, np.int64))
        positions = Positions(rows=10, removed_r=np.array([removed]), versions=(before,))
        now = RemovedRows(folders=(positions,), shards=(("now",),))
        sampler = replace(sampler_of(run), removed=now)
        checkpoint = tmp_path / f"step-{step:08d}"
        return complete_identity(run, sampler, "now", checkpoint, stored)["data"]

    assert resumed(order[5], 2) == "now"  # of step 3
    with pytest.raises(UserError, match="the first in step 3; want --resume"):
        resumed(order[5], 3)
    assert resumed(order[0], 3) == "now"  # it was skipped
    stored["data"] = "of other data"
    assert resumed(order[5], 2) == "of other data"


def test_a_mix_names_its_folders_by_the_last_part_of_their_paths(tmp_path: Path) -> None:
    run = replace(run_of(), data=("a/x", "b/y"), mix=Mix(shares=("a/x=2", "y=10%")))
    moved = replace(run, data=("c/x", "y"), mix=Mix(shares=("c/x=2", "y=10%")))
    assert identity(run)["mix"] == identity(moved)["mix"]
    ambiguous = replace(run, data=("a/x", "b/x"), mix=Mix(shares=("a/x=2",)))
    other = replace(ambiguous, mix=Mix(shares=("b/x=2",)))
    assert identity(ambiguous)["mix"] != identity(other)["mix"]
