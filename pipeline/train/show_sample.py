"""`python -m pipeline show-sample`: samples as the model gets them, through the code of training.

Shapes: t tokens, f segments of a medium, p points.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.cli import UserError, parse
from etl.report.media import Embedded, embed_any
from etl.report.page import Card, Section, write_page
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from model.batch import IGNORED
from model.build import build_tokenizer
from pipeline.config.run_config import (
    PresetOptions,
    RunConfig,
    Scale,
    StageName,
    default_options,
    packs,
    resolve,
)
from pipeline.data.collate import collate, pack
from pipeline.data.encode import Example
from pipeline.train.train import build_encoder

_SEGMENTS = 8
"""Segments of a medium that are rendered, at most."""
_SIDE = 128
"""Side of a rendered point cloud, in pixels."""


@dataclass(frozen=True, kw_only=True)
class ShowSampleOptions:
    """Show samples as the model gets them: tokens, loss mask, positions, and encoder inputs."""

    preset: str
    """A preset's name or file, as for training; a run's config.json shows what that run gets."""
    data: tuple[Path, ...]
    """Folders of Arrow shards."""
    stage: StageName = "sft"
    """The stage whose prompts are used."""
    scale: Scale = "full"
    """`tiny`: the preset's architecture with small sizes and random weights."""
    set: tuple[str, ...] = ()
    """Fields of the preset, PATH=JSON, such as sft.max_tokens=512."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` counts bytes in place of the backbone's tokens, and needs no hub."""
    first: int = 0
    """The row of the first sample."""
    n: int = 4
    """How many samples to show."""
    output: Path | None = None
    """An HTML page to write, with the media as they are stored and as the encoders get them."""
    json: bool = False
    """Print JSON instead of lines."""

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("first", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: {getattr(self, name)}, want {least} or more")


@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """A token of a sample; consecutive ones of one medium are shown as one.

    Args:
        first, last: positions, as attention sees them.
        id: of the token.
        text: what it stands for; of a medium its kind.
        target: whether the loss is taken on it.
    """

    first: int
    last: int
    id: int
    text: str
    target: bool


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample as the model gets it.

    Args:
        row, id, source: of the sample.
        skip_reason: why training skips it; empty if it does not.
        tokens: of the sequence, or of the encoder of a seq2seq backbone.
        answer: the decoder's targets of a seq2seq backbone.
        media: kind, shape of the encoder's input and first position of each input medium.
        cut: which media the encoders take in part only.
    """

    row: int
    id: str
    source: str
    skip_reason: str = ""
    tokens: Sequence[ShownToken] = ()
    answer: Sequence[ShownToken] = ()
    media: Sequence[dict[str, Any]] = ()
    cut: str = ""
    inputs: Sequence[Tensor] = field(default=(), repr=False)


def show_sample(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ShowSampleOptions, prog="python -m pipeline show-sample", args=args)
    run = _run_config(options)
    shards = ShardSet(list(options.data), verify=False)
    if options.first >= len(shards):
        raise UserError(f"--first {options.first}: the data have {len(shards)} samples")
    rows = range(options.first, min(len(shards), options.first + options.n))
    shown = list(shown_samples(run, shards, rows))
    if options.json:
        sys.stdout.write(json.dumps([_to_json(one) for one in shown], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(map(_lines, shown)))
    if options.output is not None:
        _write_page(options.output, run, [(shards[one.row], one) for one in shown])
        sys.stderr.write(f"page: {options.output}\n")
    return 0


def _run_config(options: ShowSampleOptions) -> RunConfig:
    """Return the training run that would get these samples; nothing is written to its output."""
    preset = PresetOptions(preset=options.preset, scale=options.scale, set=options.set)
    default = default_options(preset, options.stage, part=None)
    weights = "random" if options.scale == "tiny" else options.weights
    data = tuple(map(str, options.data))
    return resolve(
        replace(default, data=data, output="show-sample", weights=weights, feature_cache=None),
        options.stage,
    )


def shown_samples(run: RunConfig, shards: ShardSet, rows: range) -> Iterator[ShownSample]:
    """Yield samples as a run's model gets them.

    Raises:
        UserError, SpecError: a shard that cannot be read, or a chat template that cannot be used.
    """
    tokenizer = build_tokenizer(run.system.model, weights=run.weights)
    encoder = build_encoder(run, tokenizer, None)
    for row in rows:
        sample = shards[row]
        try:
            example = encoder.encode(sample, position=row)
        except SampleError as error:
            yield ShownSample(row=row, id=sample.id, source=sample.source, skip_reason=str(error))
            continue
        tokens, answer = _tokens(run, tokenizer, example)
        inputs = [one.input_values for one in example.media if one.input_values is not None]
        yield ShownSample(
            row=row,
            id=sample.id,
            source=sample.source,
            tokens=tokens,
            answer=answer,
            media=[
                {"kind": one.kind, "shape": list(values.shape), "first": one.first}
                for one, values in zip(example.media, inputs, strict=True)
            ],
            cut=example.cut,
            inputs=inputs,
        )


def _tokens(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase, example: Example
) -> tuple[list[ShownToken], list[ShownToken]]:
    """Return the tokens of the sequence, and of a decoder's targets, as the collator has them."""
    if packs(run.system.model, run.settings):
        batch = pack([example])
    else:
        batch = collate([example], pad_id=tokenizer.pad_token_id, side="right")
    ids = batch.ids_bt[0].tolist()
    positions = list(range(len(ids)))
    if batch.positions_bt is not None:
        positions = batch.positions_bt[0].tolist()
    labels = batch.labels_bt[0].tolist()
    answer: list[ShownToken] = []
    if batch.decoder_bs is not None:  # its labels are the decoder's
        words = [tokenizer.decode([number]) for number in labels]
        answer = [
            ShownToken(first=place, last=place, id=number, text=word, target=True)
            for place, (number, word) in enumerate(zip(labels, words, strict=True))
        ]
        labels = [IGNORED] * len(ids)
    rows = list(zip(positions, ids, labels, example.kinds, strict=True))
    tokens = []
    for kind, group in groupby(rows, key=lambda row: row[3] or row[0]):
        items = list(group)
        position, number, label, _ = items[0]
        text = f"<{kind}>" if isinstance(kind, str) else tokenizer.decode([number])
        tokens.append(
            ShownToken(
                first=position,
                last=items[-1][0],
                id=number,
                text=text,
                target=label != IGNORED,
            )
        )
    return tokens, answer


def _to_json(one: ShownSample) -> dict[str, Any]:
    value = asdict(replace(one, inputs=()))
    del value["inputs"]
    return value


def _lines(one: ShownSample) -> str:
    """Return a sample as lines of text: position, id, `*` for a target, and the token."""
    lines = [f"row {one.row}  {one.id}  {one.source}"]
    if one.skip_reason:
        lines.append(f"  skipped: {one.skip_reason}")
    for medium in one.media:
        shape = "×".join(map(str, medium["shape"]))
        lines.append(f"  {medium['kind']} at {medium['first']}: {shape}")
    if one.cut:
        lines.append(f"  cut: {one.cut}")
    lines += _token_lines(one.tokens)
    if one.answer:
        lines += ["  decoder's targets:", *_token_lines(one.answer)]
    return "\n".join(lines) + "\n"


def _token_lines(tokens: Sequence[ShownToken]) -> list[str]:
    return [
        f"  {_span(token):>9}  {token.id:>7} {'*' if token.target else ' '} {token.text!r}"
        for token in tokens
    ]


def _span(token: ShownToken) -> str:
    return f"{token.first}" if token.first == token.last else f"{token.first}-{token.last}"


def _write_page(path: Path, run: RunConfig, shown: Sequence[tuple[Sample, ShownSample]]) -> None:
    sections = []
    for sample, one in shown:
        texts = "\n".join(f"{turn.role}: {turn.text}" for turn in sample.turns)
        stored = Card(media=[embed_any(medium) for medium in sample.media], text="as stored")
        rendered = [
            drawing
            for medium, values in zip(one.media, one.inputs, strict=True)
            for drawing in _drawings(medium["kind"], values)
        ]
        sections.append(
            Section(
                heading=f"Row {one.row}: {one.id}",
                paragraphs=[*texts.split("\n"), *filter(None, [one.skip_reason, one.cut])],
                cards=[stored, Card(media=rendered, text="as the encoders get it")]
                if rendered
                else (),
                columns=("position", "id", "target", "token"),
                rows=[
                    (_span(token), token.id, "target" if token.target else "", token.text)
                    for token in (*one.tokens, *one.answer)
                ],
            )
        )
    title = f"Samples for {run.system.name}, stage {run.stage}"
    write_page(path, title=title, sections=sections)


def _drawings(kind: str, values_f: Tensor) -> Iterator[Embedded]:
    """Yield the segments of an encoder's input as images, as far as they can be rendered."""
    shape = "×".join(map(str, values_f.shape))
    for number, values in enumerate(values_f[:_SEGMENTS], start=1):
        pixels = _pixels(kind, values.float().numpy())
        text = f"{kind}, segment {number} of {len(values_f)}, {shape}"
        if pixels is None:
            yield Embedded(kind=kind, text=text)
            continue
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        yield Embedded(kind="image", text=text, uri=uri, sharp=max(pixels.shape[:2]) <= _SIDE)


def _pixels(kind: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return bytes of an image: of pixels, of a spectrogram, or of points seen from the front."""
    if kind == "points":
        places = _scaled(values[:, :2]) * (_SIDE - 1)
        rendered = np.full((_SIDE, _SIDE), 255, np.uint8)
        columns, rows = places.round().astype(int).T
        rendered[_SIDE - 1 - rows, columns] = 0
        return rendered
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0).squeeze()
    elif values.ndim != 2:
        return None
    return (_scaled(values) * 255).round().astype(np.uint8)


def _scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(values.min()), float(values.max())
    return (values - low) / ((high - low) or 1.0)
