"""Reward models of GRPO: runs of `rlhf` with the objective `reward`, loaded beside the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file

from etl.cli import UserError
from model.preference_lm import PreferenceLM
from model.spec.peft import Lora, QLora
from model.spec.rlhf import RewardModel
from model.spec.system import RlhfStage
from pipeline.checkpoint.adapters import BASE
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.checkpoint.files import OBJECTIVE_WEIGHTS, read_manifest
from pipeline.config.run_config import read_run

PREFIX = "model:"
"""Of the name of a reward; the run folder follows."""


def reward_weights(rewards: Sequence[str]) -> list[Path]:
    """Return the files of trained weights of the reward models among the names of rewards.

    Raises:
        UserError: no such run, or one that is no reward model.
    """
    folders = [Path(name.removeprefix(PREFIX)) for name in rewards if name.startswith(PREFIX)]
    return [_checked(folder) for folder in folders]


def _checked(folder: Path) -> Path:
    settings = read_run(folder).settings
    if not isinstance(settings, RlhfStage) or not isinstance(settings.objective, RewardModel):
        raise UserError(
            f"rewards: {PREFIX}{folder}: is no reward model; want a run of rlhf with the objective "
            '{"kind": "reward"}'
        )
    return newest_weights(folder)


def add_reward_models(
    model: PreferenceLM, peft: Lora | QLora, rewards: Sequence[str], base: Mapping[str, str]
) -> None:
    """Load the reward models among the names of rewards, in place.

    Args:
        model: the policy, with its trained weights.
        peft: the shape of its adapters.
        rewards: names, see `model.spec.rlhf.Grpo`.
        base: what the policy is based on, see `pipeline.checkpoint.adapters.base_record`.

    Raises:
        UserError: a run that is no reward model, or one that was trained on other weights.
    """
    for file in reward_weights(rewards):
        run = file.parents[2]
        stored = read_manifest(file.parent).get(BASE, {})
        other = [name for name in base if base[name] != stored.get(name)]
        if other:
            raise UserError(
                f"rewards: {PREFIX}{run}: was trained on other weights of {', '.join(other)} than "
                "this policy has; want one whose --init-from has the same projectors and backbone"
            )
        own = read_run(run).settings.peft
        assert isinstance(own, Lora | QLora)
        further = sorted(set(own.targets) - set(peft.targets))
        if further:
            raise UserError(
                f"rewards: {PREFIX}{run}: adapts {', '.join(further)}, which the policy does not; "
                "want the same rlhf.peft.targets, or fewer"
            )
        model.add_reward_model(own, load_file(file) | load_file(file.parent / OBJECTIVE_WEIGHTS))
