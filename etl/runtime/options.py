"""The options that every job of the ETL has."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.dedup.hamming import MAX_DISTANCE
from etl.download.base import BackendName, FetchOptions
from etl.download.safe_http import Bounds
from etl.filters import language, text
from etl.filters.base import Step
from etl.filters.clip import ClipSpec, Device, check_model, model_identity
from etl.media.image import ImageLimits
from etl.sources.evaluation_sets import Evaluation

_NOT_PLANNED = (
    *("input", "output", "json", "workers", "threads", "connections_per_host", "timeout"),
    *("retries", "retry_failed", "min_yield", "clip_device", "clip_batch"),
)
"""Options that may change between a killed run and the one that goes on."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What every job can be told."""

    input: Path
    """The corpus' list: a file, or a folder of such files."""
    output: Path
    """Folder for the shards, manifest.json, drops.parquet and report.html."""
    allow_private_addresses: bool = False
    """Download from private and loopback addresses, too."""
    backend: BackendName = "native"
    """What downloads."""
    rows_per_shard: int = 1024
    """Input rows of one planned range, which becomes one shard and is the unit of going on."""
    min_side: int = 64
    """The least width and height of an image, in pixels."""
    max_aspect: float = 3.0
    """The largest ratio of an image's longer to its shorter side."""
    max_pixels: int = 50_000_000
    """The largest area of an image, in pixels; a larger one counts as a decompression bomb."""
    image_size: int | None = None
    """Shrink images so that their shorter side is this, in pixels; as served if not given."""
    max_bytes: int = 20_000_000
    """The largest body of a download."""
    timeout: float = 10.0
    """Seconds to wait for a server's next packet; a whole answer has three times as long."""
    retries: int = 1
    """Further tries after a failed download."""
    retry_failed: bool = False
    """Of a complete output, ask again for what failed and might not now; adds shards."""
    min_yield: float = 0.0
    """The least share of downloads that must succeed. With less the job fails when all is written
    but the manifest; the same command with a lower floor ends it."""
    threads: int = 32
    """Downloads at a time in each worker."""
    connections_per_host: int = 8
    """Downloads from one host at a time in each worker."""
    robots_txt: bool = True
    """Ask every host's robots.txt what may be downloaded."""
    workers: int | None = None
    """Worker processes; as many as the cluster has CPUs if not given."""
    user_agent: str | None = None
    """Token that names you to servers, and by which they may opt out."""
    clip_model: str | None = None
    """A CLIP model that judges pairs of an image and a caption once they are downloaded: a folder
    as transformers saves it, or a name on the hub; its score is `clip`. None judges."""
    min_clip: float = 0.28
    """The least cosine of image and caption by that model (LAION-5B's with OpenAI's ViT-B/32)."""
    clip_device: Device = "auto"
    """Where the model runs; auto takes the cluster's GPUs if it has any."""
    clip_batch: int = 64
    """Pairs that the model compares at a time."""
    near_images: int | None = None
    """Drop images whose perceptual hash (64 bits) is within so many bits of an earlier row's, 0 to
    10; 4 finds most copies in another size or quality. Off if not given: simple pictures (drawings,
    scans, charts) may differ and have the same hash. Records of more than an image and its caption
    go only if their text is the same."""
    near_text: float | None = None
    """Drop records whose text is as similar as this, or more, to an earlier row's: the Jaccard
    similarity of runs of five words, up to 1. Pairs go whatever their images are, other records
    only if their media are the same."""
    decontaminate: tuple[Path, ...] = ()
    """Evaluation sets whose images and texts are to be dropped: folders of our shards or of images,
    and files of texts (.json, .jsonl, .parquet, .txt)."""
    eval_distance: int = 4
    """Bits in which an image's perceptual hash may differ from that of an evaluation set's, 0 to
    10; COYO-700M was cleared with 0."""
    json: bool = False
    """Print the summary as one JSON object instead of a table."""

    def __post_init__(self) -> None:
        counts = ("rows_per_shard", "min_side", "max_pixels", "max_bytes", "threads")
        for name in (*counts, "connections_per_host", "clip_batch"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        self._require("workers", self.workers is None or self.workers >= 1, "1 or more")
        self._require("image_size", self.image_size is None or self.image_size >= 1, "1 or more")
        self._require("retries", self.retries >= 0, "0 or more")
        self._require("timeout", self.timeout > 0, "more than 0")
        self._require("min_yield", 0 <= self.min_yield <= 1, "0 to 1")
        self._require("max_aspect", self.max_aspect >= 1, "1 or more")
        bits, similar = self.near_images, self.near_text
        wanted = f"0 to {MAX_DISTANCE} bits"
        self._require("eval_distance", 0 <= self.eval_distance <= MAX_DISTANCE, wanted)
        self._require("near_images", bits is None or 0 <= bits <= MAX_DISTANCE, wanted)
        self._require("near_text", similar is None or 0 < similar <= 1, "above 0, and up to 1")
        Evaluation(self.decontaminate)  # complains about what is none
        if self.clip_model is not None:
            check_model(self.clip_model)

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(self, name)}: want {wanted}")

    @property
    def fetch(self) -> FetchOptions:
        """How to download."""
        bounds = Bounds(
            max_bytes=self.max_bytes,
            deadline=3 * self.timeout,
            allow_private=self.allow_private_addresses,
        )
        return FetchOptions(
            threads=self.threads,
            timeout=self.timeout,
            retries=self.retries,
            user_agent=self.user_agent,
            bounds=bounds,
            per_host=self.connections_per_host,
            robots=self.robots_txt,
        )

    @property
    def image(self) -> ImageLimits:
        """Which images are kept."""
        return ImageLimits(
            min_side=self.min_side, max_aspect=self.max_aspect, max_pixels=self.max_pixels
        )

    @property
    def clip(self) -> ClipSpec | None:
        """The model that judges pairs, if any."""
        if self.clip_model is None:
            return None
        return ClipSpec(
            model=self.clip_model,
            least=self.min_clip,
            device=self.clip_device,
            batch=self.clip_batch,
        )

    @property
    def config(self) -> dict[str, Any]:
        """What decides which rows come out, for the plan."""
        values = dataclasses.asdict(self)
        values["decontaminate"] = Evaluation(self.decontaminate).fingerprint()
        if self.clip_model is not None:
            values["clip_model"] = model_identity(self.clip_model)
        return {name: value for name, value in values.items() if name not in _NOT_PLANNED}


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of a job whose records may have captions."""

    min_caption: int = 5
    """The fewest characters of a caption; LAION-400M's (arXiv:2111.02114)."""
    max_caption: int | None = 1000
    """The most characters of a caption, if bounded; COYO-700M's."""
    min_words: int = 0
    """The fewest words of a caption, parted by blanks. COYO-700M, all English, has 3."""
    max_words: int | None = None
    """The most words of a caption. COYO-700M has 256."""
    languages: tuple[str, ...] = ()
    """Keep captions in these languages only (ISO 639, such as en zh); und is one whose language is
    not clear. What the list itself publishes is believed."""
    min_language_confidence: float = 0.2
    """The least confidence at which a language is clear."""

    def caption_steps(self) -> tuple[Step, ...]:
        """The steps that judge captions; a record without one is kept.

        Raises:
            UserError: bounds that nothing can hold, or a language that is not known.
        """
        for kind, least, most in (
            ("caption", self.min_caption, self.max_caption),
            ("words", self.min_words, self.max_words),
        ):
            if most is not None and least > most:
                raise UserError(f"--min-{kind} {least}: want at most --max-{kind} {most}")
        length = functools.partial(
            text.caption_length, minimum=self.min_caption, maximum=self.max_caption
        )
        steps = [Step(name="caption length", operation=length)]
        if self.min_words or self.max_words is not None:
            words = functools.partial(
                text.word_count, minimum=self.min_words, maximum=self.max_words
            )
            steps.append(Step(name="caption words", operation=words))
        if self.languages:
            language.check_languages(self.languages)
            spoken = functools.partial(
                language.in_languages,
                languages=self.languages,
                least=self.min_language_confidence,
            )
            steps.append(Step(name="language", operation=spoken))
        return tuple(steps)
