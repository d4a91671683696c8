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
from model.convert.wiring import Wiring
from model.spec.image import ClipVision, EvaClip
from model.weights import load_transformers
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
from pipeline.convert.match import match
from pipeline.convert.source import COMPONENTS, LEFT_OUT, SOURCE, TEXT, SourceRecord, is_text
from pipeline.convert.store import Store, write_store

Stage = Literal["pt", "sft"]

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "video_preprocessor_config.json",
    *_PROCESSORS,
)
"""Files of the whole system; those beside them that are no weights are the tokenizer's."""

_TEXT_TOKENIZER = "qformer_tokenizer"
"""Where transformers' InstructBLIP keeps its second tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make a run folder from a transformers checkpoint of LLaVA, BLIP-2 or InstructBLIP."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """A folder with config.json and safetensors, as `save_pretrained` leaves it."""
    output: Path
    """The run folder; must not be there yet."""
    stage: Stage = "sft"
    """Of which stage the run is: `sft` to evaluate or fine-tune it, `pt` to align it further."""


def import_(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ImportOptions, prog="python -m pipeline import", args=args)
    for line in import_run(options.source, options.output, options.stage):
        sys.stdout.write(f"{line}\n")
    return 0


def import_run(source: Path, output: Path, stage: Stage) -> list[str]:
    """Make a run folder from a transformers checkpoint.

    Returns:
        Lines that say what became of its tensors; each is used once, or named in one of them.

    Raises:
        UserError, SpecError: no such checkpoint, one of a system that we have not got, or a
            tensor that is missing or unexpected.
    """
    output = output.absolute()
    if output.exists():
        raise UserError(f"{output}: is there already; name another --output, or remove it")
    wiring = read_wiring(source, output / COMPONENTS)
    run = RunConfig(stage=stage, system=wiring.system, data=(), output=str(output))
    store = Store.of_folder(source)
    bare = replace(run.settings, peft=None, recompute=False)
    record, said = match(store, wiring, build_on_meta(wiring.system.model, bare))
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    said += _write_parts(partial / COMPONENTS, store, wiring, record)
    _copy_texts(source, partial / COMPONENTS)
    record.save(partial / COMPONENTS)
    left = {t.name: store[t.name] for t in record.tensors if t.ours is None}
    if left:
        save_file(left, partial / COMPONENTS / SOURCE / LEFT_OUT)
    said.append(_write_trained(partial, store, wiring, record))
    run.save(partial)
    partial.rename(output)
    return said


def read_wiring(source: Path, components: Path) -> Wiring:
    """Read a checkpoint's configuration.

    Args:
        source: the checkpoint's folder.
        components: where its frozen parts will be.

    Raises:
        UserError, SpecError: no configuration, or of a system that we have not got.
    """
    file = source / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; want a folder that `save_pretrained` has left")
    try:
        architecture = (json.loads(file.read_bytes()).get("architectures") or ["no class"])[0]
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    if architecture not in FAMILIES:
        raise UserError(f"{file}: is of {architecture}, want one of {', '.join(FAMILIES)}")
    wiring = FAMILIES[architecture](load_transformers(AutoConfig, str(source)), components)
    return _with_colours(wiring, source)


def _with_colours(wiring: Wiring, source: Path) -> Wiring:
    """Return the wiring with the pixels' mean and deviation that the checkpoint's processor has."""
    read = {}
    for name in _PROCESSORS:
        if (source / name).is_file():
            read = json.loads((source / name).read_bytes())
            read = read.get("image_processor", read)
    if "image_mean" not in read or "image_std" not in read:
        return wiring
    model, slots = wiring.system.model, []
    for slot in wiring.system.model.inputs:
        assert isinstance(slot.encoder, ClipVision | EvaClip)
        mean, std = tuple(read["image_mean"]), tuple(read["image_std"])
        slots.append(replace(slot, encoder=replace(slot.encoder, mean=mean, std=std)))
    return replace(wiring, system=replace(wiring.system, model=replace(model, inputs=tuple(slots))))


def _write_parts(
    components: Path, store: Store, wiring: Wiring, record: SourceRecord
) -> Iterator[str]:
    """Write each frozen part as a checkpoint of its own; yield a line for each."""
    for folder, part in wiring.components.items():
        tensors = {
            ours.removeprefix(part.prefix): store.later(name)
            for ours, name in record.names().items()
            if ours.startswith(part.prefix)
        }
        size = write_store(components / folder, tensors)
        part.config.save_pretrained(components / folder)
        yield f"{folder}: {len(tensors)} tensors, {size:,} bytes"


def _write_trained(run: Path, store: Store, wiring: Wiring, record: SourceRecord) -> str:
    """Write what is no frozen part's as the run's first checkpoint; return a line on it."""
    prefixes = tuple(part.prefix for part in wiring.components.values())
    names = {o: name for o, name in record.names().items() if not o.startswith(prefixes)}
    write_weights(
        run,
        {ours: store[name] for ours, name in names.items()},
        identity={"preset": wiring.system.name, "imported from": str(store.place)},
    )
    return f"checkpoint of step 0: {len(names)} tensors"


def _copy_texts(source: Path, components: Path) -> None:
    """Keep all files beside the weights, and give the tokenizers to the parts that they serve."""
    (components / SOURCE).mkdir()
    for path in filter(is_text, source.iterdir()):
        shutil.copy(path, components / SOURCE)
        if path.name not in _CONFIGURATIONS:
            shutil.copy(path, components / "backbone")
    if (source / _TEXT_TOKENIZER).is_dir():
        shutil.copytree(source / _TEXT_TOKENIZER, components / SOURCE / _TEXT_TOKENIZER)
        shutil.copytree(source / _TEXT_TOKENIZER, components / TEXT)
