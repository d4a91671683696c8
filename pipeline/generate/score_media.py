"""`python -m pipeline score-media`: how good generated media are, beside the true ones of shards.

Every model is read from a folder (or a file) and named in the result. Where a metric is defined by
a model, the same arithmetic on another model's features is a stand-in and marked as one: its values
compare with those of the same stand-in alone.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from etl.cli import UserError, parse
from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Sample, words_of
from etl.storage.shards import ShardSet
from pipeline.data.generation_targets import captions
from pipeline.generate.media_encoders import Encoder, Inception, TransformersEncoder
from pipeline.generate.media_scores import clip_score, frechet_distance
from pipeline.generate.replies import REPLIES

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreMediaOptions:
    """Score generated media: Fréchet distances from the true ones, and agreement with their texts.

    Wants at least one model.
    """

    generated: Path
    """The output of `generate --data`: replies.jsonl and the media."""
    data: tuple[Path, ...]
    """The folders of Arrow shards that were answered: the true media, and their captions."""
    inception: Path | None = None
    """FID: torch-fidelity's file of Inception's weights (weights-inception-2015-12-05-….pth)."""
    image_encoder: Path | None = None
    """A stand-in for FID: the Fréchet distance of a transformers vision encoder's features."""
    clip: Path | None = None
    """CLIPScore: a transformers CLIP checkpoint."""
    clap: Path | None = None
    """FAD on CLAP, and the CLAP score: a transformers CLAP checkpoint."""
    video_encoder: Path | None = None
    """A stand-in for FVD, whose I3D no checkpoint of transformers has: a video encoder of its."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        models = (self.inception, self.image_encoder, self.clip, self.clap, self.video_encoder)
        if not any(models):
            raise UserError(
                "want a model: --inception, --image-encoder, --clip, --clap or --video-encoder"
            )


@dataclass(frozen=True, kw_only=True)
class MediaScore:
    """One score.

    Args:
        kind: of media.
        metric: its name.
        value: of the metric.
        model: whose features it is computed of.
        stand_in: whether the metric is defined by another model.
        generated: media that were scored.
        real: that they were compared with; 0 for agreement with texts.
        missing: samples whose true answer has such a medium, and whose reply has none.
    """

    kind: str
    metric: str
    value: float
    model: str
    stand_in: bool
    generated: int
    real: int
    missing: int


@dataclass(frozen=True, kw_only=True)
class MediaPairs:
    """The media of one kind.

    Args:
        generated: their files.
        texts: what each was to show.
        real: numbers of the samples and of the media in them, of the true ones.
        missing: see `MediaScore`.
    """

    generated: list[Path]
    texts: list[str]
    real: list[tuple[int, int]]
    missing: int


def score_media(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ScoreMediaOptions, prog="python -m pipeline score-media", args=args)
    scores = list(_scores(options))
    if options.json:
        sys.stdout.write(json.dumps([asdict(one) for one in scores], indent=2) + "\n")
        return 0
    table = Table("kind", "metric", "value", "generated", "real", "missing", "model")
    for one in scores:
        metric = f"{one.metric} (stand-in)" if one.stand_in else one.metric
        counts = map(str, (one.generated, one.real, one.missing))
        table.add_row(one.kind, metric, f"{one.value:.3f}", *counts, one.model)
    Console().print(table)
    return 0


def _scores(options: ScoreMediaOptions) -> Iterator[MediaScore]:
    shards = ShardSet(options.data, verify=False)
    replies = _read_replies(options.generated)
    found: dict[str, MediaPairs] = {}

    def pairs(kind: str) -> MediaPairs:
        if kind not in found:
            found[kind] = media_pairs(kind, options.generated, replies, shards)
        return found[kind]

    def distance(kind: str, metric: str, encoder: Encoder, *, stand_in: bool) -> MediaScore:
        media = pairs(kind)
        real = (shards[row].media[number].data for row, number in media.real)
        made = (file.read_bytes() for file in media.generated)
        try:
            generated_nd, real_rd = encoder.media(made), encoder.media(real)
            value = frechet_distance(generated_nd, real_rd)
        except (OSError, ValueError) as error:
            raise UserError(f"{kind}: {error}") from None
        (count, width), others = generated_nd.shape, len(real_rd)
        if min(count, others) <= width:
            log.warning(
                "%s: %d generated and %d true media for features of %d: a distance of so few is "
                "biased upwards; it compares only with one of as many",
                *(metric, count, others, width),
            )
        return score(media, kind, metric, value, encoder, stand_in=stand_in, real=others)

    def agreement(kind: str, metric: str, encoder: TransformersEncoder) -> MediaScore:
        media = pairs(kind)
        texts_nd = encoder.texts(media.texts)
        value = clip_score(encoder.media(file.read_bytes() for file in media.generated), texts_nd)
        return score(media, kind, metric, value, encoder)

    def score(
        media: MediaPairs,
        kind: str,
        metric: str,
        value: float,
        encoder: Encoder,
        *,
        stand_in: bool = False,
        real: int = 0,
    ) -> MediaScore:
        return MediaScore(
            kind=kind,
            metric=metric,
            value=value,
            model=encoder.name,
            stand_in=stand_in,
            generated=len(media.generated),
            real=real,
            missing=media.missing,
        )

    if options.inception is not None:
        yield distance("image", "FID", Inception(options.inception), stand_in=False)
    if options.image_encoder is not None:
        encoder = TransformersEncoder(options.image_encoder, "image")
        yield distance("image", "FID", encoder, stand_in=True)
    if options.clip is not None:
        yield agreement("image", "CLIPScore", TransformersEncoder(options.clip, "image"))
    if options.clap is not None:
        clap = TransformersEncoder(options.clap, "audio")
        yield distance("audio", "FAD (CLAP)", clap, stand_in=False)
        yield agreement("audio", "CLAP score", clap)
    if options.video_encoder is not None:
        encoder = TransformersEncoder(options.video_encoder, "video")
        yield distance("video", "FVD", encoder, stand_in=True)


def _read_replies(folder: Path) -> dict[str, Any]:
    """Return the replies of `generate --data` by id of the sample."""
    file = folder / REPLIES
    if not file.is_file():
        raise UserError(f"{file}: no such file; want the output of `generate --data`")
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    return {line["id"]: line for line in lines}


def media_pairs(kind: str, folder: Path, replies: dict[str, Any], shards: ShardSet) -> MediaPairs:
    """Return the generated media of a kind, their texts, and the true ones.

    Raises:
        UserError: there are none.
    """
    pairs = MediaPairs(generated=[], texts=[], real=[], missing=0)
    missing = 0
    for row in range(len(shards)):
        sample = shards[row]
        reply = replies.get(sample.id)
        made = [one for one in reply["media"] if one["kind"] == kind] if reply else []
        true = _answer_media(sample, kind)
        pairs.real.extend((row, number) for number in true)
        missing += bool(true) and not made
        texts = captions(sample.turns, sample.lineage)
        for number, one in enumerate(made):
            pairs.generated.append(folder / one["file"])
            own = texts[true[min(number, len(true) - 1)]] if true else _question(sample)
            pairs.texts.append(own)
    if not pairs.generated or not pairs.real:
        which = "generated" if not pairs.generated else "true"
        raise UserError(f"{folder}: no {which} media of kind {kind} for these samples")
    return MediaPairs(**{**vars(pairs), "missing": missing})


def _answer_media(sample: Sample, kind: str) -> list[int]:
    """Return the numbers of the media of a kind in a sample's last turn."""
    places = [
        (turn is sample.turns[-1], found == PLACEHOLDERS[kind])
        for turn in sample.turns
        for found in PLACEHOLDER_PATTERN.findall(turn.text)
    ]
    return [number for number, (last, of_kind) in enumerate(places) if last and of_kind]


def _question(sample: Sample) -> str:
    users = [turn.text for turn in sample.turns if turn.role == "user"]
    return words_of(users[-1] if users else "").strip()
