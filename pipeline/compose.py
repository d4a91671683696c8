"""`python -m pipeline compose`: a preset file for published encoders and a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from etl.cli import UserError, parse
from etl.storage.atomic import write_json
from model.compose.backbones import backbone_from
from model.compose.encoders import encoder_from
from model.compose.system import compose, with_template
from model.presets import PRESETS
from model.presets.templates import CONTINUATION
from model.spec import System
from model.spec.backbones import Backbone
from model.spec.input_branches import Encoder, Modality, Projector
from pipeline.config.decode import decode
from pipeline.config.files import is_file
from pipeline.config.run_config import changed_preset


@dataclass(frozen=True, kw_only=True)
class ComposeOptions:
    """Write a preset file for encoders and a language model, which every command takes as PRESET.

    A part is a folder, a name on the hub, or a preset (or a preset file) that has such a part.
    """

    llm: str
    """The language model; also FOLDER/FILE.gguf or OWNER/NAME:FILE.gguf."""
    image: str | None = None
    """The encoder of images."""
    video: str | None = None
    """The encoder of the frames of videos; the same as of images is shared."""
    audio: str | None = None
    """The encoder of sounds."""
    points: str | None = None
    """The encoder of point clouds."""
    projector: str | None = None
    """The kind of the input projectors, such as mlp or qformer, or a JSON object with its fields.
    Default: two linear layers; where a medium has many tokens, adjacent ones are joined."""
    name: str | None = None
    """The system's name. Default: the file's."""
    output: Path | None = None
    """The file to write, .json. Default: print it."""


def compose_command(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ComposeOptions, prog="python -m pipeline compose", args=args)
    if options.output is not None and options.output.suffix != ".json":
        raise UserError(f"--output {options.output}: want a name that ends in .json")
    system = _compose(options)
    fields = json.loads(json.dumps(asdict(system)))
    decode(System, fields, "compose")  # what is written can be read
    if options.output is None:
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
        return 0
    if options.output.exists() and json.loads(options.output.read_bytes()) != fields:
        raise UserError(
            f"--output {options.output}: exists, and differs; choose another name, or remove it"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, fields)
    sys.stdout.write("\n".join(_summary(system, options.output)) + "\n")
    return 0


def _compose(options: ComposeOptions) -> System:
    sources: dict[Modality, str | None] = {
        "image": options.image,
        "video": options.video,
        "audio": options.audio,
        "points": options.points,
    }
    encoders = {kind: _encoder(source, kind) for kind, source in sources.items() if source}
    if not encoders:
        raise UserError("compose: name at least one encoder, such as --image FOLDER")
    name = options.name or (options.output.stem if options.output else "composed")
    return compose(name, encoders, _backbone(options.llm), _projector(options.projector))


def _encoder(source: str, modality: Modality) -> Encoder:
    if _is_preset(source):
        return changed_preset(source, "full", ()).model.input_branch(modality).encoder
    return encoder_from(_absolute(source), modality)


def _backbone(source: str) -> Backbone:
    if _is_preset(source):
        return changed_preset(source, "full", ()).model.backbone
    return with_template(backbone_from(_absolute(source)))


def _is_preset(source: str) -> bool:
    return not Path(source).is_dir() and (source in PRESETS or is_file(source))


def _absolute(source: str) -> str:
    """Return a folder or a file with its whole path, for commands that run elsewhere."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _projector(text: str | None) -> Projector | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"kind": text}
    projector: Projector = decode(Projector, value, "--projector")  # type: ignore[arg-type]
    return projector


def _summary(system: System, output: Path) -> list[str]:
    """Return a line per branch, one about the backbone, and the command that comes next."""
    backbone = system.model.backbone
    lines = [
        f"{branch.modality}: {branch.encoder.kind} → {branch.projector.kind}, "
        f"{branch.tokens} tokens of the backbone's {backbone.max_positions} positions"
        for branch in system.model.inputs
    ]
    chat = "its own chat template" if backbone.template is None else "a preset's chat template"
    if backbone.template == CONTINUATION:
        chat = "no chat template, so none is used"
    packed = "packed" if system.model.supports_packing else "padded: its class cannot pack them"
    return [
        *lines,
        f"backbone: {backbone.kind}, {backbone.layers} layers of width {backbone.width}; "
        f"{chat}; samples are {packed}",
        f"{output}: next, `python -m pipeline plan {output} --stage pt --gpus 1`, then "
        f"`deepspeed --module pipeline pt {output} --data DIR --output RUN`",
    ]
