"""Local media and their texts to shards: `python etl/pairs.py --input FOLDER|TAR|PARQUET …`.

The same command runs on a Ray cluster: `ray job submit -- python etl/pairs.py …`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from etl.cli import main, parse
from etl.filters import records
from etl.filters.base import Filter
from etl.media.gather import MediaOptions
from etl.runtime.corpus import PairOptions, run_corpus
from etl.sources import captions
from etl.sources.base import Format
from etl.sources.pair_files import FORMATS, detect_pairs, folder_fingerprint, pair_formats
from etl.sources.pairs import read_columns

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal["auto", *FORMATS, *captions.FORMATS]


@dataclass(frozen=True, kw_only=True)
class Options(PairOptions):
    """Check and deduplicate pairs of a medium and its text that are on this machine.

    Images, videos, sounds and point clouds: a folder of files with captions next to them (x.jpg and
    x.txt or x.json) or with metadata.jsonl, .csv or .parquet; tar archives of webdataset and
    img2dataset; parquet and folders of Hugging Face datasets; tables of names and captions; the
    files of COCO and its kin. Each is recognised by its looks (docs/corpora.md).
    """

    format: FormatName = "auto"
    """How the pairs are stored; auto looks at the input."""
    columns: tuple[str, ...] = ()
    """Which columns to use where their names do not say it, such as image=photo caption=TEXT: one
    or more of image, video, audio, points and url (of the kind that its suffix says), and caption;
    a field of a struct is column.field."""
    splits: tuple[str, ...] = ()
    """Keep these splits only, where the input has splits; default: all."""
    min_caption: int = 1
    """The minimum characters of a caption."""
    max_bytes: int = 200_000_000
    """The maximum size of a medium."""

    @functools.cached_property
    def selected(self) -> tuple[str, Format]:
        """The format's name and the format.

        Raises:
            UserError: the input has no format that is known, or --columns is not valid.
        """
        name = self.format
        columns = read_columns(self.columns)
        if name == "auto":
            name = detect_pairs(self.input)
        return name, pair_formats(columns, self.input)[name]

    @property
    def media_options(self) -> MediaOptions:
        """See `CorpusOptions.media_options`; metadata name files of their own folder."""
        found = super().media_options
        if self.selected[0] != "metadata":
            return found
        folder = self.input if self.input.is_dir() else self.input.parent
        return dataclasses.replace(found, locations=(str(folder), *self.media))

    @property
    def config(self) -> dict[str, Any]:
        """See `JobOptions.config`; a folder of captions has no list whose bytes identify it."""
        config = super().config
        if self.selected[1].reads_folder:
            config["input"] = folder_fingerprint(self.input)
        return config

    def filters(self) -> tuple[Filter, ...]:
        """See `CorpusOptions.filters`."""
        first, *rest = super().filters()
        if not self.splits:
            return (first, *rest)
        in_splits = functools.partial(records.in_splits, splits=self.splits)
        return (first, Filter(name="split", function=in_splits), *rest)


def run(args: Sequence[str]) -> None:
    """Run the job with command-line arguments."""
    options = parse(Options, prog="python etl/pairs.py", args=args)
    _, fmt = options.selected
    run_corpus("pairs", options, "pairs", fmt)


if __name__ == "__main__":
    main(run)
