"""Command-line options shared by all ETL jobs."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.dedup.hamming import MAX_DISTANCE
from etl.download.base import BackendName, DownloadLimits, FetchOptions
from etl.filters import language, text
from etl.filters.base import Filter
from etl.filters.clip import ClipSpec, Device, check_model, model_identity
from etl.media.image import ImageLimits
from etl.runtime.executor import ExecutorName
from etl.sources.evaluation_sets import EvaluationSets

_NOT_IN_PLAN = (
    *(
        "input",
        "output",
        "json",
        "executor",
        "workers",
        "threads",
        "connections_per_host",
        "timeout",
    ),
    *("retries", "retry_failed", "min_yield", "clip_device", "clip_batch"),
)
"""Options that may change between a killed run and the one that resumes it."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of every job."""

    input: Path
    """The corpus as published: a file, or a folder of such files."""
    output: Path
    """Folder for the shards, manifest.json, drops.parquet and report.html."""
    allow_private_addresses: bool = False
    """Download from private and loopback addresses, too."""
    backend: BackendName = "native"
    """The download backend."""
    rows_per_shard: int = 1024
    """Input rows of a work unit, which becomes one shard; a killed job resumes by whole units."""
    min_side: int = 64
    """The minimum width and height of an image, in pixels."""
    max_aspect: float = 3.0
    """The maximum ratio of an image's longer to its shorter side."""
    max_pixels: int = 50_000_000
    """The maximum area of an image, in pixels; a larger one counts as a decompression bomb."""
    image_size: int | None = None
    """Shrink images to this length of their shorter side, in pixels; default: as served."""
    max_bytes: int = 20_000_000
    """The maximum size of a response body."""
    timeout: float = 10.0
    """Seconds to wait for a server's next packet; a whole response may take three times as long."""
    retries: int = 1
    """How often a failed download is retried."""
    retry_failed: bool = False
    """In a complete output, retry downloads that failed for a transient reason; adds shards."""
    min_yield: float = 0.0
    """The minimum share of downloads that must succeed. Below it the job fails before it writes
    the manifest; repeat the command with a lower value to accept the result."""
    threads: int = 32
    """Concurrent downloads in each worker."""
    connections_per_host: int = 8
    """Concurrent downloads from one host in each worker."""
    robots_txt: bool = True
    """Honour every host's robots.txt."""
    executor: ExecutorName = "auto"
    """Where the workers run: processes on this machine (local) or actors of a Ray cluster (ray),
    the one that RAY_ADDRESS names or a new one; auto is ray where RAY_ADDRESS is set."""
    workers: int | None = None
    """Worker processes; default: as many as there are CPUs."""
    user_agent: str | None = None
    """Product token that identifies you to servers, by which they may opt out."""
    clip_model: str | None = None
    """A CLIP model that scores pairs of an image and a caption after the download: a folder as
    transformers saves it, or a name on the hub. The score is named `clip`. Default: no model."""
    min_clip: float = 0.28
    """The minimum cosine similarity of image and caption by that model (LAION-5B's with OpenAI's
    ViT-B/32)."""
    clip_device: Device = "auto"
    """Where the model runs; auto uses GPUs if there are any."""
    clip_batch: int = 64
    """Pairs per batch of the model."""
    image_dedup_distance: int | None = None
    """Drop images whose 64-bit perceptual hash is within this Hamming distance (0 to 10) of an
    earlier row's; 4 finds most copies in another size or quality. Off by default: simple pictures
    (drawings, scans, charts) may differ and have the same hash. Records other than an image and its
    caption are dropped only if their text is the same, too."""
    text_dedup_similarity: float | None = None
    """Drop records whose text is at least this similar to an earlier row's: the Jaccard similarity
    of their 5-grams of words, up to 1. Pairs are dropped whatever their images, other records only
    if their media are the same, too."""
    decontaminate: tuple[Path, ...] = ()
    """Evaluation sets whose images and texts are dropped from the corpus: folders of shards or of
    images, and files of texts (.json, .jsonl, .parquet, .txt)."""
    eval_distance: int = 4
    """Maximum Hamming distance between the perceptual hash of an image and of an evaluation set's,
    0 to 10; COYO-700M was decontaminated with 0."""
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
        distance, similarity = self.image_dedup_distance, self.text_dedup_similarity
        bits = f"0 to {MAX_DISTANCE} bits"
        self._require("eval_distance", 0 <= self.eval_distance <= MAX_DISTANCE, bits)
        valid = distance is None or 0 <= distance <= MAX_DISTANCE
        self._require("image_dedup_distance", valid, bits)
        valid = similarity is None or 0 < similarity <= 1
        self._require("text_dedup_similarity", valid, "above 0, and up to 1")
        EvaluationSets(self.decontaminate)  # raises UserError for a path that is none
        if self.clip_model is not None:
            check_model(self.clip_model)

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(self, name)}: want {expected}")

    @property
    def fetch(self) -> FetchOptions:
        """How to download."""
        limits = DownloadLimits(
            max_bytes=self.max_bytes,
            deadline=3 * self.timeout,
            allow_private=self.allow_private_addresses,
        )
        return FetchOptions(
            threads=self.threads,
            timeout=self.timeout,
            retries=self.retries,
            user_agent=self.user_agent,
            limits=limits,
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
        """The model that scores pairs, if any."""
        if self.clip_model is None:
            return None
        return ClipSpec(
            model=self.clip_model,
            min_score=self.min_clip,
            device=self.clip_device,
            batch_size=self.clip_batch,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The options that determine which rows are kept, for the plan."""
        values = dataclasses.asdict(self)
        values["decontaminate"] = EvaluationSets(self.decontaminate).fingerprint()
        if self.clip_model is not None:
            values["clip_model"] = model_identity(self.clip_model)
        return {name: value for name, value in values.items() if name not in _NOT_IN_PLAN}


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of a job whose records may have captions."""

    min_caption: int = 5
    """The minimum characters of a caption; LAION-400M's (arXiv:2111.02114)."""
    max_caption: int | None = 1000
    """The maximum characters of a caption, if limited; COYO-700M's."""
    min_words: int = 0
    """The minimum words of a caption, separated by blanks. COYO-700M, all English, has 3."""
    max_words: int | None = None
    """The maximum words of a caption. COYO-700M has 256."""
    languages: tuple[str, ...] = ()
    """Keep captions in these languages only (ISO 639, such as en zh); und stands for captions whose
    language is unclear. A language that the list publishes takes precedence over detection."""
    min_language_confidence: float = 0.2
    """The minimum confidence of a detected language."""

    def caption_filters(self) -> tuple[Filter, ...]:
        """The filters on captions; a record without one is kept.

        Raises:
            UserError: a minimum above its maximum, or an unknown language.
        """
        for kind, minimum, maximum in (
            ("caption", self.min_caption, self.max_caption),
            ("words", self.min_words, self.max_words),
        ):
            if maximum is not None and minimum > maximum:
                raise UserError(f"--min-{kind} {minimum}: want at most --max-{kind} {maximum}")
        length = functools.partial(
            text.caption_length, minimum=self.min_caption, maximum=self.max_caption
        )
        filters = [Filter(name="caption length", function=length)]
        if self.min_words or self.max_words is not None:
            words = functools.partial(
                text.word_count, minimum=self.min_words, maximum=self.max_words
            )
            filters.append(Filter(name="caption words", function=words))
        if self.languages:
            language.check_languages(self.languages)
            in_languages = functools.partial(
                language.in_languages,
                languages=self.languages,
                min_confidence=self.min_language_confidence,
            )
            filters.append(Filter(name="language", function=in_languages))
        return tuple(filters)
