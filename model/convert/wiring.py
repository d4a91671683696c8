"""What a published system is in our terms: its spec, and where each of its tensors goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from model.spec import SpecError, System

DERIVED = (".position_ids", ".rotary_emb.inv_freq")
"""Endings of buffers in older checkpoints that follow from the configuration."""

SILENT = frozenset(
    {
        # Of training and of generation, and of what transformers knows about a file.
        "activation_dropout",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "dropout",
        "dropout_rate",
        "dtype",
        "eos_token_id",
        "hidden_dropout_prob",
        "id2label",
        "init_std",
        "initializer_factor",
        "initializer_range",
        "is_decoder",
        "label2id",
        "layerdrop",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        # CLIP's own text-image space, which no tower here has.
        "projection_dim",
        # T5: how many tokens it was trained with, and a name that stands for two other fields.
        "n_positions",
        "feed_forward_proj",
    }
)
"""Fields of a configuration that leave the logits of a model in evaluation as they are."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A frozen part, which gets a folder of its own.

    Args:
        prefix: of its parameters in our model.
        config: of the transformers class that our spec loads it with.
    """

    prefix: str
    config: PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """A published system in our terms.

    Args:
        system: the preset with the sizes of a published configuration.
        parts: folder → frozen part; all else trains, or did.
        names: prefixes of tensor names, theirs → ours; the first that fits counts.
    """

    system: System
    parts: Mapping[str, Part]
    names: Sequence[tuple[str, str]]

    def ours(self, name: str) -> str:
        """Return our name of one of their tensors; their own where there is none."""
        for theirs, ours in self.names:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name

    def derived(self, name: str) -> bool:
        """Whether one of their tensors follows from the configuration."""
        return name.endswith(DERIVED)

    def part(self, ours: str) -> str | None:
        """Return the folder of the frozen part that a tensor of ours belongs to, if any."""
        return next((n for n, part in self.parts.items() if ours.startswith(part.prefix)), None)


def agree(theirs: PretrainedConfig, ours: PretrainedConfig, where: str) -> None:
    """Check that a spec says all that a published configuration says.

    Raises:
        SpecError: a field that changes the numbers differs; names it.
    """
    published, own = theirs.to_dict(), ours.to_dict()
    for name in sorted((published.keys() & own.keys()) - SILENT):
        if published[name] != own[name]:
            raise SpecError(f"{where}.{name}: {published[name]!r}, want {own[name]!r}")


def want(config: PretrainedConfig, where: str = "config", **fields: Any) -> None:  # noqa: ANN401 -- JSON
    """Raise SpecError where a configuration's field has another value than ours can have."""
    for name, value in fields.items():
        found = config.to_dict().get(name)
        if found != value:
            raise SpecError(f"{where}.{name}: {found!r}, want {value!r}")


def folder_of(components: Path, name: str) -> str:
    """Return where the specs find a frozen part."""
    return str(components / name)
