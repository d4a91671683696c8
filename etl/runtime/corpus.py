"""What the jobs have in common whose records name files or several media: options and steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.dedup.exact import FirstSeen
from etl.filters import records
from etl.filters.base import Step
from etl.media.gather import MediaPlan
from etl.media.local import Places
from etl.runtime.job import Job, run_job
from etl.runtime.options import CaptionOptions, JobOptions
from etl.runtime.worker import Identity
from etl.sources.base import Format, Records
from etl.sources.files import input_files, json_lines, read_json


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(JobOptions):
    """Options of a job whose records may name files."""

    media: tuple[str, ...] = ()
    """Where the files lie that records name: folders, zip or uncompressed tar archives, JSON of
    base64 (MIMIC-IT), or one http(s) address that is put before the names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        urls = [place for place in self.media if records.is_url(place)]
        if urls and len(self.media) > 1:
            raise UserError(f"--media {urls[0]}: want one address, or folders and archives")

    @property
    def plan(self) -> MediaPlan:
        """How the job comes by its media."""
        return MediaPlan(places=self.media)

    @property
    def config(self) -> dict[str, Any]:
        """See `JobOptions.config`; local media count by what they are, not where they lie."""
        local = self.plan.local()
        lying = Places(local, max_bytes=self.max_bytes).fingerprint() if local else self.media
        return {**super().config, "media": lying}

    def steps(self) -> tuple[Step, ...]:
        """What happens before any medium is fetched, in order."""
        check = functools.partial(
            records.check_media_urls,
            allow_private=self.allow_private_addresses,
            names=bool(self.media),
        )
        return (
            Step(name="record", operation=records.well_formed),
            *([Step(name="url", operation=check)] if self.plan.lost == "drop" else []),
            Step(name="placeholders", operation=records.placeholders),
            Step(name="record dedup", operation=FirstSeen("id", "duplicate_record")),
        )


@dataclass(frozen=True, kw_only=True)
class PairOptions(CaptionOptions, CorpusOptions):
    """Options of a job of media and their captions."""

    def steps(self) -> tuple[Step, ...]:
        """See `CorpusOptions.steps`."""
        length, *others = self.caption_steps()
        only = functools.partial(records.pairs_only, operation=length.operation)
        first, *rest = super().steps()
        return (first, Step(name=length.name, operation=only), *others, *rest)


def run_corpus(
    job: str, options: CorpusOptions, corpus: str, how: Format, *, identity: Identity = "record"
) -> None:
    """Run a job over a corpus of a known format.

    Args:
        job: the job's name.
        options: as given.
        corpus: the format's name, with which ids begin.
        how: the format.
        identity: what a duplicate is.
    """
    run_job(
        Job(
            name=job,
            source=Records(corpus, options.input, how),
            before=(*options.steps(), *_by_url(identity)),
            identity=identity,
            options=options,
            media=options.plan,
        )
    )


def _by_url(identity: Identity) -> tuple[Step, ...]:
    """Where the medium alone makes a record, a second download of it would be in vain."""
    if identity == "record":
        return ()
    return (Step(name="url dedup", operation=FirstSeen("url", "duplicate_url")),)


def choose(
    options: CorpusOptions, wanted: str, formats: Mapping[str, Format], guess: Callable[[Any], str]
) -> tuple[str, Format]:
    """The format that was asked for; if that was `auto`, the one that the input looks like.

    Args:
        options: where the input is.
        wanted: `auto` or a name of `formats`.
        formats: what there is.
        guess: the name of a format, or "", from what `glimpse` saw.
    """
    if wanted == "auto":
        suffixes = {suffix for one in formats.values() for suffix in one.suffixes}
        file = input_files(options.input, *sorted(suffixes))[0]
        wanted = guess(glimpse(file))
        if wanted not in formats:
            raise UserError(f"{file}: of no format that is known; want --format {_list(formats)}")
    return wanted, formats[wanted]


def _list(names: Mapping[str, Format]) -> str:
    return " or ".join(names)


def glimpse(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What tells a file's format: a JSON document, a first line of JSON, or a first line."""
    if file.suffix == ".jsonl":
        return next(_first(file), None)
    if file.suffix == ".json":
        return read_json(file)
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline().rstrip("\r\n")


def _first(file: Path) -> Iterator[Any]:
    for record in json_lines(file):
        yield [record]
        return


def fields(seen: Any) -> frozenset[str]:  # noqa: ANN401
    """The field names of a document's first record, or of the document."""
    if isinstance(seen, list) and seen:
        seen = seen[0]
    return frozenset(seen) if isinstance(seen, dict) else frozenset()
