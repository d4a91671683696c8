"""`python -m pipeline import`: a run folder from a published checkpoint of a whole system.

A transformers checkpoint, LLaVA in its authors' own format, or a peft folder on top of either.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from etl.cli import UserError, parse
from model.build import build_on_meta
from model.compose.processors import image_processor
from model.convert import FAMILIES, original_llava
from model.convert.wiring import Wiring
from model.presets.blocks import LORA
from model.spec.image import ClipVision, EvaClip
from model.spec.image_processor import ImageProcessor
from model.weights import load_transformers, processor_template
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
from pipeline.convert.peft_import import (
    CONFIG,
    OTHER_TRAINED,
    ImportedAdapters,
    base_folder,
    read_adapters,
    without_prefix,
)
from pipeline.convert.safetensors_store import SafetensorsStore, write_tensors
from pipeline.convert.source_record import (
    COMPONENTS,
    LEFT_OUT,
    SOURCE,
    TEXT,
    SourceRecord,
    is_config_file,
)
from pipeline.convert.tensor_matching import match_tensors

Stage = Literal["pt", "sft"]

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "video_preprocessor_config.json",
    *_PROCESSORS,
)
"""Files of the whole system; all others next to the weights are the tokenizer's."""

_TEXT_TOKENIZER = "qformer_tokenizer"
"""Folder of the second tokenizer in transformers' InstructBLIP."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make a run folder from a checkpoint of LLaVA, BLIP-2 or InstructBLIP, or adapters of one."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """A folder with config.json and safetensors, as `save_pretrained` writes it; LLaVA in its
    authors' format (LlavaLlamaForCausalLM); or a peft folder of low-rank adapters."""
    output: Path
    """The run folder; must not exist yet."""
    stage: Stage = "sft"
    """The run's stage: `sft` to evaluate or fine-tune it, `pt` to align it further."""
    base: Path | None = None
    """Of a peft folder: the base's folder, if it is not where adapter_config.json says."""
    vision_tower: str | None = None
    """Of LLaVA in its authors' format: the CLIP's folder or hub name, if not the one that
    config.json says."""


def import_(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ImportOptions, prog="python -m pipeline import", args=args)
    for line in import_run(
        options.source,
        options.output,
        options.stage,
        base=options.base,
        vision_tower=options.vision_tower,
    ):
        sys.stdout.write(f"{line}\n")
    return 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is imported.

    Args:
        folder: with the configuration.
        texts: the folder with the tokenizer.
        store: all tensors of the model, without adapters.
        adapters: a peft folder, or None.
    """

    folder: Path
    texts: Path
    store: SafetensorsStore
    adapters: Path | None = None


def import_run(
    source: Path,
    output: Path,
    stage: Stage,
    *,
    base: Path | None = None,
    vision_tower: str | None = None,
) -> list[str]:
    """Make a run folder from a published checkpoint.

    Returns:
        Lines for the user: the components written, and each tensor left out.

    Raises:
        UserError, SpecError: no such checkpoint, one of an unsupported system, or a tensor that is
            missing or unexpected.
    """
    output = output.absolute()
    if output.exists():
        raise UserError(f"{output}: exists already; choose another --output, or remove it")
    checkpoint = open_checkpoint(source, base)
    folder, store = checkpoint.folder, checkpoint.store
    wiring = _within_positions(
        read_wiring(folder, output / COMPONENTS, store, vision_tower=vision_tower)
    )
    original = _architecture(folder) in original_llava.ARCHITECTURES
    wiring, messages = (wiring, []) if original else _with_processors(wiring, folder)
    adapters = None
    if checkpoint.adapters is not None:
        adapters = read_adapters(checkpoint.adapters, wiring)
        wiring = _with_adapters(wiring, adapters, stage)
    run = RunConfig(stage=stage, system=wiring.system, data=(), output=str(output))
    plain = replace(run.settings, peft=None, recompute=False)
    record, left_out = match_tensors(store, wiring, build_on_meta(wiring.system.model, plain))
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    messages += left_out
    messages += _write_components(partial / COMPONENTS, store, wiring, record)
    if original:  # it is exported in transformers' layout, so nothing of its own form is kept
        _copy_tokenizer(checkpoint.texts, partial / COMPONENTS)
    else:
        _copy_config_files(folder, partial / COMPONENTS)
        record.save(partial / COMPONENTS)
        left = {t.name: store[t.name] for t in record.tensors if t.ours is None}
        if left:
            save_file(left, partial / COMPONENTS / SOURCE / LEFT_OUT)
    more = adapters.weights if adapters is not None else {}
    messages.append(_write_trained(partial, store, wiring, record, more))
    run.save(partial)
    partial.rename(output)
    return messages


def open_checkpoint(source: Path, base: Path | None) -> Checkpoint:
    """Open the files of what is imported.

    Args:
        source: the folder that the user names.
        base: of a peft folder; None for the one that it names.

    Raises:
        UserError: no checkpoint, or a base that there is not.
    """
    if not (source / CONFIG).is_file():
        if base is not None:
            raise UserError(f"--base: {source} has no {CONFIG}, want a peft folder")
        return Checkpoint(folder=source, texts=source, store=_open_store(source))
    below = base_folder(source, base)
    if not (source / "config.json").is_file():
        return replace(open_checkpoint(below, None), adapters=source)
    # LLaVA's own: the configuration of the whole, and the projector, are beside the adapters.
    store = _open_store(below)
    other = source / OTHER_TRAINED
    if other.is_file():
        files = list(dict.fromkeys(entry.file for entry in store.entries.values()))
        store = SafetensorsStore(source, [*files, other], rename=without_prefix)
    return Checkpoint(folder=source, texts=below, store=store, adapters=source)


def _open_store(folder: Path) -> SafetensorsStore:
    _architecture(folder)  # a folder that is no checkpoint at all is said first
    return SafetensorsStore.of_folder(folder)


def _architecture(folder: Path) -> str:
    """Return the class that a folder's configuration names."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a folder written by `save_pretrained`")
    try:
        return str((json.loads(file.read_bytes()).get("architectures") or ["no class"])[0])
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _with_adapters(wiring: Wiring, adapters: ImportedAdapters, stage: Stage) -> Wiring:
    """Return the wiring with a stage that has the adapters."""
    system = wiring.system
    settings = replace(system.stage(stage), peft=adapters.lora)
    trainable = (*system.stage(stage).trainable, LORA)
    settings = replace(settings, trainable=tuple(dict.fromkeys(trainable)))
    changed = replace(system, pt=settings) if stage == "pt" else replace(system, sft=settings)
    return replace(wiring, system=changed)


def read_wiring(
    source: Path,
    components: Path,
    store: SafetensorsStore,
    *,
    vision_tower: str | None = None,
) -> Wiring:
    """Read a checkpoint's configuration.

    Args:
        source: the checkpoint's folder.
        components: the folder that its frozen components will be in.
        store: its tensors.
        vision_tower: of an original LLaVA; None for the one that it names.

    Raises:
        UserError, SpecError: no configuration, or one of an unsupported system.
    """
    architecture = _architecture(source)
    if architecture in original_llava.ARCHITECTURES:
        return original_llava.wire_original_llava(
            json.loads((source / "config.json").read_bytes()),
            components,
            tower=vision_tower,
            has_tower=original_llava.has_tower(store),
        )
    if vision_tower is not None:
        raise UserError("--vision-tower: is for LLaVA in its authors' format alone")
    if architecture not in FAMILIES:
        supported = ", ".join([*FAMILIES, original_llava.ARCHITECTURES[0]])
        file = source / "config.json"
        raise UserError(f"{file}: a checkpoint of {architecture}, want one of {supported}")
    wiring = FAMILIES[architecture](load_transformers(AutoConfig, str(source)), components)
    return wiring if processor_template(source) is None else _with_own_template(wiring)


def _with_own_template(wiring: Wiring) -> Wiring:
    """Return the wiring with the checkpoint's chat template, not the preset's.

    BLIP-2's processors have none: they put pictures before the beginning of the sequence, which no
    template can express.
    """
    model = wiring.system.model
    preset = model.backbone.template
    if preset is not None and preset.media_first:
        return wiring
    model = replace(model, backbone=replace(model.backbone, template=None))
    return replace(wiring, system=replace(wiring.system, model=model))


def _within_positions(wiring: Wiring) -> Wiring:
    """Return the wiring with stages whose samples are no longer than its backbone takes."""
    system = wiring.system
    backbone = system.model.backbone
    if backbone.relative_positions:
        return wiring
    pt, sft = (
        own and replace(own, max_tokens=min(own.max_tokens, backbone.max_positions))
        for own in (system.pt, system.sft)
    )
    return replace(wiring, system=replace(system, pt=pt, sft=sft))


def _with_processors(wiring: Wiring, source: Path) -> tuple[Wiring, list[str]]:
    """Return the wiring with the checkpoint's image processors, and a line where it has none."""
    model, inputs, messages = wiring.system.model, [], []
    for branch in model.inputs:
        encoder = branch.encoder
        assert isinstance(encoder, ClipVision | EvaClip)
        processor = image_processor(
            str(source),
            default="BlipImageProcessor" if encoder.kind == "eva_clip" else "CLIPImageProcessor",
            video=branch.modality == "video",
        )
        if processor is not None and processor.size != encoder.processor.size:
            raise UserError(
                f"{source}: its processor makes pictures of {_pixels(processor)}, but its encoder "
                f"takes {_pixels(encoder.processor)}"
            )
        if processor is None:
            messages.append(f"no preprocessor_config.json: {branch.modality}s as in the preset")
        encoder = replace(encoder, processor=processor or encoder.processor)
        inputs.append(replace(branch, encoder=encoder))
    model = replace(model, inputs=tuple(inputs))
    return replace(wiring, system=replace(wiring.system, model=model)), messages


def _pixels(processor: ImageProcessor) -> str:
    height, width = processor.size
    return f"{height} x {width} pixels"


def _write_components(
    components: Path, store: SafetensorsStore, wiring: Wiring, record: SourceRecord
) -> Iterator[str]:
    """Write each frozen component as its own checkpoint; yield a line for each."""
    for folder, part in wiring.components.items():
        tensors = {
            ours.removeprefix(part.prefix): store.lazy(name)
            for ours, name in record.names().items()
            if ours.startswith(part.prefix)
        }
        size = write_tensors(components / folder, tensors)
        part.config.save_pretrained(components / folder)
        yield f"{folder}: {len(tensors)} tensors, {size:,} bytes"


def _write_trained(
    run: Path,
    store: SafetensorsStore,
    wiring: Wiring,
    record: SourceRecord,
    adapters: Mapping[str, Tensor],
) -> str:
    """Write all other tensors as the run's first checkpoint; return a line about it."""
    prefixes = tuple(part.prefix for part in wiring.components.values())
    names = {o: name for o, name in record.names().items() if not o.startswith(prefixes)}
    write_weights(
        run,
        {**{ours: store[name] for ours, name in names.items()}, **adapters},
        identity={"preset": wiring.system.name, "imported from": str(store.path)},
    )
    return f"checkpoint of step 0: {len(names) + len(adapters)} tensors"


def _copy_tokenizer(source: Path, components: Path) -> None:
    """Copy the files next to the weights that are the tokenizer's."""
    for path in filter(is_config_file, source.iterdir()):
        if path.name not in _CONFIGURATIONS:
            shutil.copy(path, components / "backbone")


def _copy_config_files(source: Path, components: Path) -> None:
    """Copy all files next to the weights, and each tokenizer to its component."""
    (components / SOURCE).mkdir()
    for path in filter(is_config_file, source.iterdir()):
        shutil.copy(path, components / SOURCE)
        if path.name not in _CONFIGURATIONS:
            shutil.copy(path, components / "backbone")
    # A processor's template, in whatever file it was, is the tokenizer's here.
    if (template := processor_template(source)) is not None:
        (components / "backbone" / "chat_template.jinja").write_text(template)
    if (source / _TEXT_TOKENIZER).is_dir():
        shutil.copytree(source / _TEXT_TOKENIZER, components / SOURCE / _TEXT_TOKENIZER)
        shutil.copytree(source / _TEXT_TOKENIZER, components / TEXT)
