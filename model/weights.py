"""Load weights: published ones from the hub or a folder, trained ones from safetensors files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from model.spec import SpecError

Weights = Literal["pretrained", "random"]
"""`pretrained` loads a spec's weights from the hub or a folder, `random` initialises them."""


def load_transformers(cls: Any, source: str, **options: Any) -> Any:  # noqa: ANN401 -- their classes
    """Load with `from_pretrained` from a folder or the hub; failures become one-line errors.

    Raises:
        SpecError: there are no such weights.
    """
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        where = "folder" if Path(source).is_absolute() else "hub name"
        raise SpecError(
            f"weights of {where} {source!r} cannot be loaded ({reason}); "
            "use --weights random to run without"
        ) from error


def processor_template(folder: Path) -> str | None:
    """Return the chat template that a checkpoint's processor has, in any of its forms, if any.

    Raises:
        SpecError: a file that is not JSON.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text()
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            found = json.loads((folder / name).read_bytes()).get("chat_template")
        except ValueError as error:
            raise SpecError(f"{folder / name}: {error}") from error
        if isinstance(found, list):  # several by name
            found = next((one["template"] for one in found if one["name"] == "default"), None)
        if isinstance(found, str):
            return found
    return None


def cast(module: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model with random weights as `from_pretrained(dtype=…)` does, and return it.

    RoPE's frequencies stay in float32: rounded to bfloat16 they would be off by up to 0.4 %.
    """
    buffers = dict(module.named_buffers())
    module.to(dtype)
    for name, buffer in buffers.items():
        parent, _, leaf = name.rpartition(".")
        if leaf.endswith("inv_freq"):
            setattr(module.get_submodule(parent), leaf, buffer)
    return module


def check_config(module: PreTrainedModel, config: PretrainedConfig, source: str) -> None:
    """Raise SpecError where the sizes of loaded weights differ from the spec's."""
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        expected, loaded = getattr(config, name), getattr(module.config, name)
        if expected != loaded:
            raise SpecError(f"weights {source!r}: {name} is {loaded}, the preset says {expected}")


def load_published(
    module: nn.Module, source: str, rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> None:
    """Load a published checkpoint into a module of ours, using every tensor exactly once.

    Args:
        module: with our parameter names.
        source: `FOLDER/FILE`, or `OWNER/NAME:FILE` on the hub; safetensors or torch's format
            (loaded with `weights_only`).
        rename: from the published names to the module's; drops unused tensors.

    Raises:
        SpecError: there is no such file, or tensors are missing, unused or of another shape.
    """
    state = dict(rename(_read(source)))
    own = module.state_dict()
    missing, unused = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unused:
        raise SpecError(f"weights {source!r}: missing {missing[:3]}, unused {unused[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise SpecError(
                f"weights {source!r}: {name} is {tuple(tensor.shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
    module.load_state_dict(state)


def _read(source: str) -> Mapping[str, Tensor]:
    repository, _, name = source.partition(":")
    try:
        file = Path(hf_hub_download(repository, name) if name else source)
        if file.suffix == ".safetensors":
            return load_file(file)
        state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"weights {source!r} cannot be loaded ({reason}); use --weights random to run without"
        ) from error


def load_trained(model: nn.Module, file: Path) -> None:
    """Load a file's weights into the parameters of the same names; others stay unchanged.

    Raises:
        SpecError: there is no such safetensors file, or a name or shape does not fit the model.
    """
    if not file.is_file():
        raise SpecError(f"{file}: no such weights")
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise SpecError(f"{file}: not a valid safetensors file ({error})") from error
    assign(model, stored, str(file))


def names_in(file: Path) -> tuple[str, ...]:
    """Return the names of the weights in a safetensors file, without reading them."""
    with safe_open(file, framework="pt") as opened:
        return tuple(opened.keys())


def assign(model: nn.Module, stored: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a model's parameters.

    Raises:
        SpecError: a name or shape does not fit the model; names the source and the tensor.
    """
    own = dict(model.named_parameters())
    for name, tensor in stored.items():
        if name not in own:
            raise SpecError(f"{source}: {name} is no parameter of this model (another preset?)")
        if own[name].shape != tensor.shape:
            raise SpecError(
                f"{source}: {name} is {tuple(tensor.shape)}, the model's is "
                f"{tuple(own[name].shape)} (another preset?)"
            )
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a name with the first occurrence of each published substring replaced by ours."""
    for theirs, own in pairs:
        name = name.replace(theirs, own, 1)
    return name
