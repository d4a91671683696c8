"""Load weights: published ones from the hub or a folder, trained ones from safetensors files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from model.compat.bitsandbytes import is_quantized, quantize_into, unquantized_shape
from model.positions import fit_positions
from model.spec import SpecError

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.gguf", "*.tiktoken", "tekken.json")

Weights = Literal["pretrained", "random"]
"""`pretrained` loads a spec's weights from the hub or a folder, `random` initialises them."""


IRRELEVANT = frozenset(
    {
        # Settings of training and generation, and metadata.
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
        "hidden_dropout",
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
        # CLIP's projection, which no tower here has.
        "projection_dim",
        # T5: its training length, and a name that implies two other fields.
        "n_positions",
        "feed_forward_proj",
    }
)
"""Fields of a configuration that do not change the logits in evaluation mode."""


def load_transformers(cls: Any, source: str, **options: Any) -> Any:  # noqa: ANN401 -- their classes
    """Load with `from_pretrained` from a folder or the hub; failures become one-line errors.

    Raises:
        SpecError: there is no such folder, or there are no such weights.
    """
    what, way_out = "weights", "; use --weights random to run without"
    if cls is AutoConfig:
        what, way_out = "configuration", ""
    check_folder(source, way_out)
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        where = "folder" if Path(source).is_dir() else "hub name"
        raise SpecError(
            f"{what} of {where} {source!r} cannot be loaded ({reason}){way_out}"
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


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub, with the chat template that its processor has.

    Raises:
        SpecError: there is none. Of a folder without one, transformers makes an empty tokenizer for
            some models, and gives advice about converting one for others.
    """
    name, options = source_options(source)
    folder = Path(name)
    if (
        folder.is_dir()
        and "gguf_file" not in options
        and not any(found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern))
    ):
        names = ", ".join(_TOKENIZER_FILES)
        raise SpecError(f"{source}: holds no tokenizer; want one of {names} next to the weights")
    tokenizer: PreTrainedTokenizerBase = load_transformers(AutoTokenizer, name, **options)
    if not tokenizer.chat_template:
        tokenizer.chat_template = processor_template(folder)
    return tokenizer


def check_folder(source: str, way_out: str = "") -> None:
    """Raise SpecError for a folder that does not exist, before it is looked for on the hub.

    A name on the hub is `NAME` or `OWNER/NAME`. Anything else is a path, and so is `FOLDER/NAME`
    where there is such a folder here: the hub is asked for minutes before it gives up.
    """
    path = Path(source).expanduser()
    is_path = (
        path.is_absolute()
        or source.startswith((".", "~"))
        or source.endswith("/")
        or len(path.parts) > 2
        or (len(path.parts) == 2 and path.parent.is_dir())
    )
    if is_path and not path.exists():
        near = get_close_matches(path.name, _names_in(path.parent), n=1)
        hint = f"did you mean {str(path.parent / near[0])!r}?" if near else "was it moved?"
        raise SpecError(f"{source!r}: no such folder; {hint}{way_out}")


def _names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()] if folder.is_dir() else []


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


def source_options(weights: str) -> tuple[str, dict[str, Any]]:
    """Return a spec's `weights` as Auto classes take it: a folder or a hub name, and options.

    `FOLDER/FILE.gguf` and `OWNER/NAME:FILE.gguf` name a GGUF file. Code in a repository is never
    run, nor asked about.

    Raises:
        SpecError: a GGUF file without the package that reads it.
    """
    if not weights.endswith(".gguf"):
        return weights, {"trust_remote_code": False}
    if find_spec("gguf") is None:
        raise SpecError(f"weights {weights!r}: reading GGUF needs pip install mmloom[gguf]")
    name, _, file = weights.rpartition(":") if ":" in weights else weights.rpartition("/")
    return name or ".", {"gguf_file": file}


def check_config(
    published: PreTrainedModel | PretrainedConfig,
    config: PretrainedConfig,
    source: str,
    free: Collection[str] = (),
) -> None:
    """Raise SpecError where a checkpoint differs from the spec in a field that is not `free`."""
    theirs = published if isinstance(published, PretrainedConfig) else published.config
    for name, loaded, expected in config_differences(theirs, config):
        if name not in free:
            raise SpecError(
                f"weights {source!r}: {name} is {loaded!r}, the preset says {expected!r}"
            )


def config_differences(
    theirs: PretrainedConfig, ours: PretrainedConfig
) -> Iterator[tuple[str, object, object]]:
    """Yield each field that changes the logits in evaluation mode and differs, with both values."""
    published, own = theirs.to_dict(), ours.to_dict()
    for name in sorted((published.keys() & own.keys()) - IRRELEVANT):
        if published[name] != own[name]:
            yield name, published[name], own[name]


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

    The weight of a layer that had no adapter when it was saved goes to the layer below the adapter:
    VILA trains the whole backbone in MM-PT, and may adapt it in MM-IT. Where that layer is in four
    bits (QLoRA), the weight is quantized. An encoder's position embeddings are interpolated to the
    model's size of pictures.

    Raises:
        SpecError: a name or shape does not fit the model; names the source and the tensor.
    """
    own = dict(model.named_parameters())
    own |= {without_adapter(name): weight for name, weight in own.items()} | own
    fitting: dict[str, Tensor] = {}
    for name, each in stored.items():
        if name not in own:
            raise SpecError(f"{source}: {name} is not a parameter of this model (another preset?)")
        shape = unquantized_shape(own[name])
        fitting[name] = tensor = fit_positions(name, each, shape)
        if shape != tensor.shape:
            raise SpecError(
                f"{source}: {name} is {tuple(tensor.shape)}, the model's is "
                f"{tuple(shape)} (another preset?)"
            )
    with torch.no_grad():
        for name, tensor in fitting.items():
            if is_quantized(own[name]):
                quantize_into(own[name], tensor)
            else:
                own[name].copy_(tensor)


def without_adapter(name: str) -> str:
    """Return the name that a weight has, or would have, in a model without LoRA."""
    return name.replace(".base_layer.", ".")


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a name with the first occurrence of each published substring replaced by ours."""
    for theirs, own in pairs:
        name = name.replace(theirs, own, 1)
    return name
