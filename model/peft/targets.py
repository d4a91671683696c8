"""The linear layers that a spec's targets match."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from model.spec import SpecError


def linear_layers(backbone: nn.Module, targets: Sequence[str]) -> list[nn.Linear]:
    """Return the linear layers whose names, or suffixes of them, are among the targets.

    Raises:
        SpecError: a target that matches no linear layer.
    """
    linear = {
        name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)
    }
    found: dict[str, nn.Linear] = {}
    for target in targets:
        matches = {n: layer for n, layer in linear.items() if f".{n}".endswith(f".{target}")}
        if not matches:
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise SpecError(
                f"peft: no linear layer is named {target!r}, the backbone has {', '.join(names)}"
            )
        found |= matches
    return list(found.values())


def block_linear_names(backbone: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the linear layers in a backbone's blocks, without the output layer's.

    Raises:
        SpecError: there are none, as in GPT-2, whose layers are of another class.
    """
    output = backbone.get_output_embeddings()
    names = dict.fromkeys(
        name.rpartition(".")[2]
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output
    )
    if not names:
        raise SpecError(f"peft: {type(backbone).__name__} has no linear layers to adapt")
    return tuple(names)
