"""Load published backbones: transformers checkpoints, and those with other tensor names."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from model.spec import SpecError
from model.weights import check_config, check_folder, load_transformers


def load(
    cls: Any,  # noqa: ANN401 -- transformers' classes
    source: str,
    config: PretrainedConfig,
    **options: Any,  # noqa: ANN401 -- transformers' options
) -> Any:  # noqa: ANN401
    """Load a transformers checkpoint that agrees with `config` in all that changes the logits.

    Args:
        cls: the model class.
        source: a hub name or a folder.
        config: the spec's configuration.
        options: of `from_pretrained`.

    Raises:
        SpecError: there are no such weights, a field differs, or tensors are missing.
    """
    model, found = load_transformers(cls, source, output_loading_info=True, **options)
    check_config(model, config, source)
    if found["missing_keys"]:
        raise SpecError(f"weights {source!r}: missing {sorted(found['missing_keys'])[:3]}")
    return model


def load_renamed(
    cls: type[PreTrainedModel],
    source: str,
    config: PretrainedConfig,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    dtype: torch.dtype,
) -> Any:  # noqa: ANN401 -- an object of `cls`, which is Any to us
    """Load a checkpoint with the publisher's tensor names, using every tensor exactly once.

    Args:
        cls: the model class.
        source: a hub name or a folder, with files of safetensors or torch (`weights_only`).
        config: of the model.
        rename: from the published names to the class's; drops unused tensors.
        dtype: of the weights.

    Raises:
        SpecError: there is no such checkpoint, or tensors are missing, unused or of another shape.
    """
    try:
        state = dict(rename(read(source)))
    except KeyError as error:
        raise SpecError(f"weights {source!r}: missing {error}") from error
    with torch.device("meta"):
        skeleton = cls(config)
    own = skeleton.state_dict()
    tied = set(skeleton.all_tied_weights_keys) - state.keys()
    missing, unused = sorted(own.keys() - state.keys() - tied), sorted(state.keys() - own.keys())
    if missing or unused:
        raise SpecError(f"weights {source!r}: missing {missing[:3]}, unused {unused[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise SpecError(
                f"weights {source!r}: {name} is {tuple(tensor.shape)}, the preset says "
                f"{tuple(own[name].shape)}"
            )
    return cls.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def read(source: str) -> dict[str, Tensor]:
    """Return all tensors of a folder or of a repository on the hub, from any number of files.

    Raises:
        SpecError: there is no such folder or repository, or it cannot be read.
    """
    check_folder(source)
    try:
        files = _files(source)
        state: dict[str, Tensor] = {}
        for file in files:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, ValueError, HfHubHTTPError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"weights {source!r} cannot be loaded ({reason}); use --weights random to run without"
        ) from error
    return state


def _files(source: str) -> list[Path]:
    """Return the files with tensors, preferring safetensors."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        folder = (
            source if Path(source).is_dir() else snapshot_download(source, allow_patterns=pattern)
        )
        files = sorted(Path(folder).glob(pattern))
        if files:
            return files
    raise FileNotFoundError("no *.safetensors and no pytorch_model*.bin")
