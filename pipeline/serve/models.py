"""The models that are served, by name; runs of the same base share its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from etl.cli import UserError
from model.batch_invariance import align_weights
from model.multimodal_lm import MultimodalLM
from model.spec.peft import QLora
from model.weights import names_in, without_adapter
from pipeline.checkpoint.adapters import ADAPTERS
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.checkpoint.files import read_manifest
from pipeline.config.run_config import RunConfig
from pipeline.evaluate.assistant import Assistant
from pipeline.generate.answers import Replier
from pipeline.generate.assistant import GeneratingAssistant, open_assistant
from pipeline.generate.replies import GenerationSettings


@dataclass(eq=False)
class SharedModule:
    """One module in memory, with the trained weights of one of its runs at a time.

    Attributes:
        active: the name of the run whose weights it has.
    """

    module: MultimodalLM
    active: str = ""

    def placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a run's trained weights as the module's parameters hold them."""
        own = dict(self.module.named_parameters())
        # As `assign` does: a weight may have been saved before its layer had an adapter.
        names = {without_adapter(name): name for name in own} | {name: name for name in own}
        return {
            names[name]: torch.empty_like(own[names[name]]).copy_(tensor)
            for name, tensor in weights.items()
        }

    def activate(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Give the module a run's trained weights: pointers move, no bytes are copied."""
        if self.active == name:
            return
        own = dict(self.module.named_parameters())
        for each, tensor in weights.items():
            own[each].data = tensor
        self.active = name


class ServedModel:
    """A trained run under a name.

    Args:
        name: by which requests choose it.
        assistant: the run's prompts and tokenizer.
        shared: the module, which other runs may use, too.
        weights: the run's trained ones; empty where the module has no others.
    """

    def __init__(
        self, name: str, assistant: Assistant, shared: SharedModule, weights: Mapping[str, Tensor]
    ) -> None:
        self.name, self.spec, self.stage = name, assistant.spec, assistant.stage
        self.encoder, self.tokenizer = assistant.encoder, assistant.tokenizer
        self.generates_media = assistant.generates_media
        self._shared, self._weights = shared, weights
        self.module = shared.module
        self.replier: Replier | None = None
        self.activate()
        if isinstance(assistant, GeneratingAssistant):
            self.replier = Replier(
                self.module, self.tokenizer, self.encoder, GenerationSettings(), batch=4
            )
            self.replier.load_negatives()

    def activate(self) -> None:
        """Give the module this run's weights."""
        self._shared.activate(self.name, self._weights)


@torch.no_grad()
def load_models(folders: Sequence[Path], *, checkpoint: str = "newest") -> dict[str, ServedModel]:
    """Load a checkpoint of runs, or exported folders, under the names of their folders.

    Runs with the same model, adapters and base that trained the same weights share one module: only
    these are in memory several times.

    Raises:
        UserError, SpecError: a folder that cannot be opened, or two of the same name.
    """
    served: dict[str, ServedModel] = {}
    shared: list[tuple[Any, SharedModule]] = []
    for folder in folders:
        name = folder.resolve().name
        if name in served:
            raise UserError(f"{folder}: a second run of the name {name!r}; rename one folder")
        assistant = open_assistant(folder, checkpoint=checkpoint)
        file, key = None, None  # an exported folder has its weights in its own files
        if assistant.config is not None:
            trained = checkpoint_weights(folder, checkpoint)
            if not _quantizes(assistant.config, trained):
                file, key = trained, _base(assistant.config, trained)
        found = next((each for other, each in shared if key is not None and other == key), None)
        if found is None:
            found = SharedModule(assistant.load_model().eval())
            align_weights(found.module)
            shared.append((key, found))
        weights = {} if file is None else found.placed(load_file(file))
        served[name] = ServedModel(name, assistant, found, weights)
    return served


def _quantizes(config: RunConfig, weights: Path) -> bool:
    """Whether trained weights of a run are quantized as they are loaded (QLoRA): no pointers move.

    MM-PT has trained the whole backbone then.
    """
    own = [
        name for name in names_in(weights) if name.startswith("backbone.") and "lora_" not in name
    ]
    return isinstance(config.settings.peft, QLora) and bool(own)


def _base(config: RunConfig, weights: Path) -> tuple[object, ...]:
    """Return what runs have in common that can share a module: all but the trained values."""
    stage = config.settings
    return (
        config.system.model,
        (stage.peft, stage.generation, stage.reference, stage.precision),
        (config.weights, config.seed),
        sorted(names_in(weights)),
        read_manifest(weights.parent).get(ADAPTERS),  # with a fingerprint of the base
    )
