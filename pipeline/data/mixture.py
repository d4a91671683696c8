"""The mix: how often each data folder's samples come in an epoch.

`--mix FOLDER=2` takes each sample of a folder twice an epoch, `=0.5` half of them, `=0` none;
`=10%` makes the folder a tenth of the epoch, as in VILA's re-blending of text-only instructions. A
temperature T samples folders in proportion to n^(1/T) (Conneau et al. 2020, *XLM-R*, §3.1, with
α = 1/T), with the length of the epoch unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from etl.cli import UserError
from pipeline.config.mix import Mix
from pipeline.data.shuffle import Source


def build_sources(folders: Sequence[str], rows: Sequence[int], mix: Mix) -> tuple[Source, ...]:
    """Return the sources of an epoch.

    Args:
        folders: the data folders as given.
        rows: of each folder.
        mix: the options.

    Raises:
        UserError: a folder that is not among the data, or shares that add up to nothing or to more
            than everything.
    """
    times, percents = _parse_shares(folders, mix.shares)
    tempered = [count ** (1 / mix.temperature) for count in rows]
    scale = sum(rows) / sum(tempered)
    sizes = [
        times.get(number, 1.0) * scale * size if number not in percents else 0.0
        for number, size in enumerate(tempered)
    ]
    for number, share in percents.items():
        # The other folders are 1 - Σ shares of the epoch, if there are any.
        whole = sum(rows) if len(percents) == len(folders) else _epoch_length(sizes, percents)
        sizes[number] = share * whole
    if mix.cap is not None:
        sizes = [min(size, mix.cap * count) for size, count in zip(sizes, rows, strict=True)]
    firsts = [sum(rows[:number]) for number in range(len(rows))]
    found = tuple(
        Source(first=first, rows=count, samples_per_epoch=max(1, round(size)))
        for first, count, size in zip(firsts, rows, sizes, strict=True)
        if size > 0
    )
    if not found:
        raise UserError("--mix: leaves no data; want a share above 0")
    return found


def _epoch_length(sizes: Sequence[float], percents: Mapping[int, float]) -> float:
    """Return the length of an epoch in which the percentages leave the other folders their size."""
    rest = sum(size for number, size in enumerate(sizes) if number not in percents)
    return rest / (1 - sum(percents.values()))


def _parse_shares(
    folders: Sequence[str], options: Sequence[str]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return, by the folder's index, the factors and the shares of the epoch."""
    times: dict[int, float] = {}
    percents: dict[int, float] = {}
    for option in options:
        name, _, value = option.rpartition("=")
        number = _find_folder(name, folders, option)
        if number in times or number in percents:
            raise UserError(f"--mix {option}: {name} has a share already")
        try:
            share = float(value.removesuffix("%"))
        except ValueError:
            share = -1.0
        if not 0 <= share < float("inf"):
            raise UserError(f"--mix {option}: want FOLDER=TIMES or FOLDER=PERCENT%")
        if value.endswith("%"):
            percents[number] = share / 100
        else:
            times[number] = share
    total = sum(percents.values())
    only_percents = len(percents) == len(folders)
    if (only_percents and abs(total - 1) > 1e-6) or (not only_percents and total >= 1):
        want = "100 % in all" if only_percents else "less than 100 % in all"
        raise UserError(f"--mix: shares of {100 * total:g} %; want {want}")
    return times, percents


def _find_folder(name: str, folders: Sequence[str], option: str) -> int:
    found = [number for number, folder in enumerate(folders) if folder == name]
    found = found or [n for n, folder in enumerate(folders) if Path(folder).name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--mix {option}: {len(found)} folders are called {name!r}; give the path")
    names = [Path(folder).name for folder in folders]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; want one of {', '.join(names)}"
    raise UserError(f"--mix {option}: {name!r} is no folder of --data{hint}")
