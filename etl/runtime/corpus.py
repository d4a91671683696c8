"""Options, filters and format selection shared by all jobs over corpora of a known `Format`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.dedup.exact import FirstSeen
from etl.filters import records
from etl.filters.base import Filter
from etl.media.gather import MediaOptions
from etl.media.local import LocalMedia
from etl.runtime.job import Job, run_job
from etl.runtime.options import CaptionOptions, JobOptions
from etl.sources.base import Format, Identity, RecordReader
from etl.sources.files import (
    BadRow,
    holds_lines,
    input_files,
    input_root,
    json_lines,
    plain_suffix,
    read_json,
    table_rows,
    text_lines,
)
from etl.sources.pair_files import dialogue_rows
from etl.sources.phrasings import Phrasing, read_wordings, with_phrasing


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(JobOptions):
    """Options of a job whose records may name local files."""

    media: tuple[str, ...] = ()
    """Where to find the files that records name: folders, zip or uncompressed tar archives, JSON of
    base64 (MIMIC-IT), or one http(s) address that is prefixed to the names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        urls = [location for location in self.media if records.is_url(location)]
        if urls and len(self.media) > 1:
            raise UserError(f"--media {urls[0]}: want one address, or folders and archives")

    @property
    def media_options(self) -> MediaOptions:
        """Where the job finds its media, and which it keeps."""
        return MediaOptions(locations=self.media)

    @property
    def config(self) -> dict[str, Any]:
        """See `JobOptions.config`; local media count by their content, not by their paths."""
        paths = self.media_options.paths()
        if not paths:
            return {**super().config, "media": self.media}
        fingerprint = LocalMedia(paths, max_bytes=self.max_bytes).fingerprint()
        return {**super().config, "media": fingerprint}

    def filters(self) -> tuple[Filter, ...]:
        """The filters before any medium is fetched, in order."""
        check = functools.partial(
            records.check_media_urls,
            allow_private=self.allow_private_addresses,
            local=bool(self.media_options.locations),
        )
        return (
            Filter(name="record", function=records.well_formed),
            *([Filter(name="url", function=check)] if self.media_options.on_lost == "drop" else []),
            Filter(name="placeholders", function=records.placeholders),
            Filter(name="record dedup", function=FirstSeen("id", "duplicate_record")),
        )


@dataclass(frozen=True, kw_only=True)
class PairOptions(CaptionOptions, CorpusOptions):
    """Options of a job over media and their captions."""

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        length, *others = self.caption_filters()
        captioned = functools.partial(records.captioned_only, function=length.function)
        first, *rest = super().filters()
        return (first, Filter(name=length.name, function=captioned), *others, *rest)


@dataclass(frozen=True, kw_only=True)
class DialogueOptions(CorpusOptions):
    """Options of a job over dialogues, whose fields may have other names than expected."""

    columns: tuple[str, ...] = ()
    """Other names of fields, as OURS=THEIRS: image=frame, messages=dialog; lineage=preview keeps a
    field that names files but not the record's media. A record without THEIRS is dropped."""


@dataclass(frozen=True, kw_only=True)
class WordingOptions(CorpusOptions):
    """Options of a job whose instructions may be put into other words."""

    phrasing: Phrasing = "survey"
    """`minigpt_v2`: MiniGPT-v2's task identifiers and its wordings of each task, where the format
    says what is asked, and its form of boxes; a referring expression is also asked the other way:
    what is in the box, and of a description with boxes also the boxes of each phrase."""
    wordings: tuple[str, ...] = ()
    """Wordings of tasks instead, as TASK=FILE.json with a list of texts, such as Shikra's
    templates: refer=REC.json caption=image_cap.json."""

    @property
    def config(self) -> dict[str, Any]:
        """See `JobOptions.config`; wordings count by their texts."""
        return {**super().config, "wordings": read_wordings(self.wordings)}

    def in_words(self, fmt: Format) -> Format:
        """A format whose instructions are in the words that are asked for."""
        return with_phrasing(fmt, self.phrasing, read_wordings(self.wordings))


def run_corpus(job: str, options: CorpusOptions, corpus: str, fmt: Format) -> None:
    """Run a job over a corpus of a known format.

    Args:
        job: the job's name.
        options: as given.
        corpus: the prefix of the sample ids, usually the format's name.
        fmt: the format.
    """
    run_job(
        Job(
            name=job,
            source=RecordReader(corpus, options.input, fmt),
            filters=(*options.filters(), *_url_dedup(fmt.identity)),
            identity=fmt.identity,
            options=options,
            media=dataclasses.replace(
                options.media_options, input_folder=input_root(options.input).resolve()
            ),
        )
    )


def _url_dedup(identity: Identity) -> tuple[Filter, ...]:
    """If the medium alone identifies a record, downloading a URL twice would be wasted."""
    if identity == "record":
        return ()
    return (Filter(name="url dedup", function=FirstSeen("url", "duplicate_url")),)


def select_format(
    options: CorpusOptions, name: str, formats: Mapping[str, Format], detect: Callable[[Any], str]
) -> tuple[str, Format]:
    """The format that `--format` names, or the detected one if that is `auto`.

    Args:
        options: give the input.
        name: `auto` or a name in `formats`.
        formats: the job's formats by name.
        detect: returns the name of a format, or "", for what `peek` returned; a UserError of it
            says what the content is instead.
    """
    if name == "auto":
        suffixes = {suffix for fmt in formats.values() for suffix in fmt.suffixes}
        file = input_files(options.input, *sorted(suffixes))[0]
        try:
            name = detect(peek(file))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        except (KeyError, IndexError, TypeError, AttributeError):  # content that no format has
            name = ""
        if name not in formats:
            raise UserError(f"{file}: unknown format; want --format {' or '.join(formats)}")
    return name, formats[name]


def peek(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What identifies a file's format: the JSON document, [the first record], or a text line.

    The first record is that of a table, or of lines of JSON.
    """
    match plain_suffix(file):
        case ".parquet":
            return _first(table_rows(file))
        case ".tar":
            return _first(dialogue_rows(file))
        case ".jsonl":
            return _first(json_lines(file))
        case ".json":
            return _first(json_lines(file)) if holds_lines(file) else read_json(file)
        case _:
            return next(text_lines(file), "")


def _first(rows: Iterator[Any]) -> list[Any]:
    """[The first row that can be read], [] if there is none."""
    return list(itertools.islice((row for row in rows if not isinstance(row, BadRow)), 1))
