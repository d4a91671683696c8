"""Reward models as rewards of GRPO: which runs are taken, and which are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from etl.cli import UserError
from model.build import build_policy, build_reward_model
from model.peft.reference import add_reference
from model.preference_lm import PreferenceLM
from model.presets import system
from model.reward_lm import HEAD
from model.spec.peft import Lora
from model.spec.rlhf import RewardModel
from model.spec.system import RlhfStage
from pipeline.checkpoint.adapters import BASE, base_record
from pipeline.checkpoint.files import OBJECTIVE_WEIGHTS, WEIGHTS, CheckpointFolder, checksums
from pipeline.config.run_config import RunConfig
from pipeline.train.reward_models import add_reward_models

PRESET = system("digits")


def run_of(folder: Path, objective: RewardModel | None, **peft: object) -> RunConfig:
    stage = PRESET.stage("rlhf")
    assert isinstance(stage, RlhfStage)
    assert isinstance(stage.peft, Lora)
    changes = {} if objective is None else {"objective": objective}
    stage = replace(stage, peft=replace(stage.peft, **peft), **changes)  # type: ignore[arg-type]
    preset = replace(PRESET, rlhf=stage)
    return RunConfig(
        stage="rlhf", system=preset, weights="random", data=("data",), output=str(folder)
    )


@pytest.fixture
def reward_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the run folder of a reward model, as the trainer would."""

    def write(*, seed: int = 0, **peft: object) -> Path:
        run = run_of(tmp_path / "reward", RewardModel(), **peft)
        settings = run.settings
        assert isinstance(settings, RlhfStage)
        model = build_reward_model(PRESET.model, settings, weights="random", seed=seed)
        own = dict(model.named_parameters())
        folder = CheckpointFolder(Path(run.output) / "checkpoints")
        partial = folder.partial(3)
        partial.mkdir(parents=True)
        trained = {name: w.detach() for name, w in own.items() if "lora_" in name}
        save_file(trained, partial / WEIGHTS)
        save_file({f"{HEAD}.weight": own[f"{HEAD}.weight"].detach()}, partial / OBJECTIVE_WEIGHTS)
        files = checksums(partial, [partial / WEIGHTS, partial / OBJECTIVE_WEIGHTS])
        folder.publish(partial, {"identity": {}, BASE: base_record(run, model)}, files)
        run.save(Path(run.output))
        return Path(run.output)

    return write


def policy(seed: int = 0) -> tuple[PreferenceLM, Lora, dict[str, str]]:
    run = run_of(Path("policy"), None)
    settings = run.settings
    assert isinstance(settings, RlhfStage)
    assert isinstance(settings.peft, Lora)
    model = build_policy(PRESET.model, settings, weights="random", seed=seed)
    base = base_record(run, model)
    add_reference(model.backbone, settings.peft)
    return model, settings.peft, base


def test_of_the_same_base_with_other_adapters(reward_run: Callable[..., Path]) -> None:
    model, peft, base = policy()
    add_reward_models(model, peft, ["exact", f"model:{reward_run(rank=3)}"], base)
    (head,) = model.reward_heads.values()
    assert not head.weight.requires_grad
    weights = [w for name, w in model.named_parameters() if "lora_" in name and "reward" in name]
    assert {min(weight.shape) for weight in weights} == {3}


def test_of_other_weights_or_layers(reward_run: Callable[..., Path]) -> None:
    model, peft, base = policy()
    folder = reward_run()
    with torch.no_grad():
        next(model.projector("image").parameters()).add_(0.5)
    with pytest.raises(UserError, match=r"model:.*trained on other weights of inputs.image.proj"):
        moved = base_record(run_of(Path("policy"), None), model)
        add_reward_models(model, peft, [f"model:{folder}"], moved)
    fewer = replace(peft, targets=("q_proj",))
    with pytest.raises(UserError, match=r"adapts .*v_proj.*, which the policy does not"):
        add_reward_models(model, fewer, [f"model:{folder}"], base)


def test_of_runs_that_are_no_reward_models(tmp_path: Path) -> None:
    model, peft, base = policy()
    run = run_of(tmp_path / "dpo", None)
    (tmp_path / "dpo").mkdir()
    run.save(tmp_path / "dpo")
    with pytest.raises(UserError, match="is no reward model; want a run of rlhf with"):
        add_reward_models(model, peft, [f"model:{tmp_path}/dpo"], base)
    with pytest.raises(UserError, match="none: no such folder"):
        add_reward_models(model, peft, [f"model:{tmp_path}/none"], base)
