"""`python -m pipeline import`: a run folder from a transformers checkpoint of a whole system."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from safetensors.torch import save_file
from transformers import AutoConfig

from etl.cli import UserError, parse
from model.build import build_on_meta
from model.convert import FAMILIES
from model.convert.processors import image_processor
from model.convert.wiring import Wiring
from model.spec.image import ClipVision, EvaClip
from model.weights import load_transformers, processor_template
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
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
    """Make a run folder from a transformers checkpoint of LLaVA, BLIP-2 or InstructBLIP."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """A folder with config.json and safetensors, as written by `save_pretrained`."""
    output: Path
    """The run folder; must not exist yet."""
    stage: Stage = "sft"
    """The run's stage: `sft` to evaluate or fine-tune it, `pt` to align it further."""


def import_(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ImportOptions, prog="python -m pipeline import", args=args)
    for line in import_run(options.source, options.output, options.stage):
        sys.stdout.write(f"{line}\n")
    return 0


def import_run(source: Path, output: Path, stage: Stage) -> list[str]:
    """Make a run folder from a transformers checkpoint.

    Returns:
        Lines for the user: the components written, and each tensor left out.

    Raises:
        UserError, SpecError: no such checkpoint, one of an unsupported system, or a tensor that is
            missing or unexpected.
    """
    output = output.absolute()
    if output.exists():
        raise UserError(f"{output}: exists already; choose another --output, or remove it")
    wiring, absent = _with_processors(read_wiring(source, output / COMPONENTS), source)
    run = RunConfig(stage=stage, system=wiring.system, data=(), output=str(output))
    store = SafetensorsStore.of_folder(source)
    plain = replace(run.settings, peft=None, recompute=False)
    record, messages = match_tensors(store, wiring, build_on_meta(wiring.system.model, plain))
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    messages += absent
    messages += _write_components(partial / COMPONENTS, store, wiring, record)
    _copy_config_files(source, partial / COMPONENTS)
    record.save(partial / COMPONENTS)
    left = {t.name: store[t.name] for t in record.tensors if t.ours is None}
    if left:
        save_file(left, partial / COMPONENTS / SOURCE / LEFT_OUT)
    messages.append(_write_trained(partial, store, wiring, record))
    run.save(partial)
    partial.rename(output)
    return messages


def read_wiring(source: Path, components: Path) -> Wiring:
    """Read a checkpoint's configuration.

    Args:
        source: the checkpoint's folder.
        components: the folder that its frozen components will be in.

    Raises:
        UserError, SpecError: no configuration, or one of an unsupported system.
    """
    file = source / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a folder written by `save_pretrained`")
    try:
        architecture = (json.loads(file.read_bytes()).get("architectures") or ["no class"])[0]
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    if architecture not in FAMILIES:
        raise UserError(
            f"{file}: a checkpoint of {architecture}, want one of {', '.join(FAMILIES)}"
        )
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


def _with_processors(wiring: Wiring, source: Path) -> tuple[Wiring, list[str]]:
    """Return the wiring with the checkpoint's image processors, and a line where it has none."""
    model, inputs, messages = wiring.system.model, [], []
    for branch in model.inputs:
        encoder = branch.encoder
        assert isinstance(encoder, ClipVision | EvaClip)
        processor = image_processor(
            str(source),
            encoder.image_size,
            default="BlipImageProcessor" if encoder.kind == "eva_clip" else "CLIPImageProcessor",
            video=branch.modality == "video",
        )
        if processor is None:
            messages.append(f"no preprocessor_config.json: {branch.modality}s as in the preset")
        encoder = replace(encoder, processor=processor or encoder.processor)
        inputs.append(replace(branch, encoder=encoder))
    model = replace(model, inputs=tuple(inputs))
    return replace(wiring, system=replace(wiring.system, model=model)), messages


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


def _write_trained(run: Path, store: SafetensorsStore, wiring: Wiring, record: SourceRecord) -> str:
    """Write all other tensors as the run's first checkpoint; return a line about it."""
    prefixes = tuple(part.prefix for part in wiring.components.values())
    names = {o: name for o, name in record.names().items() if not o.startswith(prefixes)}
    write_weights(
        run,
        {ours: store[name] for ours, name in names.items()},
        identity={"preset": wiring.system.name, "imported from": str(store.path)},
    )
    return f"checkpoint of step 0: {len(names)} tensors"


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
