"""A published model as one of our systems: its spec, and our name for each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from model.spec import SpecError, System
from model.weights import config_differences

DERIVED = (".position_ids", ".rotary_emb.inv_freq")
"""Suffixes of buffers in older checkpoints that are derived from the configuration."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A frozen component, which is written to its own folder.

    Args:
        prefix: of its parameters in our model.
        config: of the transformers class that our spec loads it with.
    """

    prefix: str
    config: PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """How a published model maps to one of our systems.

    Args:
        system: the preset with the sizes of a published configuration.
        components: folder → frozen component; all other weights are trained ones.
        names: prefixes of tensor names, theirs → ours; the first match applies.
        elsewhere: prefixes of our names of tensors that the checkpoint need not have: the specs say
            where they are.
    """

    system: System
    components: Mapping[str, Component]
    names: Sequence[tuple[str, str]]
    elsewhere: tuple[str, ...] = ()

    def our_name(self, name: str) -> str:
        """Return our name of one of their tensors; theirs if none is defined."""
        return our_name(self.names, name)

    def is_derived(self, name: str) -> bool:
        """Return whether one of their tensors is derived from the configuration."""
        return name.endswith(DERIVED)


def our_name(names: Sequence[tuple[str, str]], name: str) -> str:
    """Return a tensor's name with the first prefix that matches replaced, theirs → ours."""
    for theirs, ours in names:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def check_agreement(theirs: PretrainedConfig, ours: PretrainedConfig, where: str) -> None:
    """Check that the configuration of a spec equals a published one.

    Raises:
        SpecError: a field that changes the logits differs; names it.
    """
    for name, published, own in config_differences(theirs, ours):
        raise SpecError(f"{where}.{name}: {published!r}, must be {own!r}")


def require(config: PretrainedConfig, where: str = "config", **fields: Any) -> None:  # noqa: ANN401
    """Raise SpecError where a configuration's field has an unsupported value."""
    for name, value in fields.items():
        found = config.to_dict().get(name)
        if found != value:
            raise SpecError(f"{where}.{name}: {found!r}, must be {value!r}")


def folder_of(components: Path, name: str) -> str:
    """Return the folder of a frozen component, as the specs name it."""
    return str(components / name)
