"""Mixing: how often each source's rows come in an epoch.

`--mix FOLDER=2` takes a folder's rows twice an epoch, `=0.5` half of them, `=0` none; `=10%` makes
it a tenth of all that is drawn: the survey's re-blending of text-only instructions (VILA's recipe)
in one word. A temperature T draws folders nearer to each other in size: in proportion to n^(1/T)
(Conneau et al. 2020, *XLM-R*, §3.1, with α = 1/T), the epoch as long as before.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from etl.cli import UserError
from pipeline.config.mix import Mix
from pipeline.data.shuffle import Source


def sources(folders: Sequence[str], rows: Sequence[int], mix: Mix) -> tuple[Source, ...]:
    """Return what an epoch is made of.

    Args:
        folders: the data folders as given.
        rows: of each folder.
        mix: as asked for.

    Raises:
        UserError: a folder that is not among the data, or shares that leave nothing or more than
            everything.
    """
    times, percents = _shares(folders, mix.shares)
    evened = [count ** (1 / mix.temperature) for count in rows]
    scale = sum(rows) / sum(evened)
    wanted = [
        times.get(number, 1.0) * scale * size if number not in percents else 0.0
        for number, size in enumerate(evened)
    ]
    for number, share in percents.items():
        # Of the rest, since that is 1 - Σ shares of the whole; of everything, if there is no rest.
        whole = sum(rows) if len(percents) == len(folders) else _whole(wanted, percents)
        wanted[number] = share * whole
    if mix.cap is not None:
        wanted = [min(size, mix.cap * count) for size, count in zip(wanted, rows, strict=True)]
    firsts = [sum(rows[:number]) for number in range(len(rows))]
    found = tuple(
        Source(first=first, rows=count, draws=max(1, round(size)))
        for first, count, size in zip(firsts, rows, wanted, strict=True)
        if size > 0
    )
    if not found:
        raise UserError("--mix: leaves no data; want a share above 0")
    return found


def _whole(wanted: Sequence[float], percents: Mapping[int, float]) -> float:
    """Return the length of an epoch of which the percentages leave the others their part."""
    rest = sum(size for number, size in enumerate(wanted) if number not in percents)
    return rest / (1 - sum(percents.values()))


def _shares(
    folders: Sequence[str], words: Sequence[str]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return how often a folder's rows come, and which share of all others are to be."""
    times: dict[int, float] = {}
    percents: dict[int, float] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        number = _folder(name, folders, word)
        if number in times or number in percents:
            raise UserError(f"--mix {word}: {name} has a share already")
        try:
            share = float(value.removesuffix("%"))
        except ValueError:
            share = -1.0
        if not 0 <= share < float("inf"):
            raise UserError(f"--mix {word}: want FOLDER=TIMES or FOLDER=PERCENT%")
        if value.endswith("%"):
            percents[number] = share / 100
        else:
            times[number] = share
    total = sum(percents.values())
    alone = len(percents) == len(folders)
    if (alone and abs(total - 1) > 1e-6) or (not alone and total >= 1):
        want = "100 % in all" if alone else "less than 100 % in all"
        raise UserError(f"--mix: shares of {100 * total:g} %; want {want}")
    return times, percents


def _folder(name: str, folders: Sequence[str], word: str) -> int:
    found = [number for number, folder in enumerate(folders) if folder == name]
    found = found or [n for n, folder in enumerate(folders) if Path(folder).name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--mix {word}: {len(found)} folders are called {name!r}; give the path")
    known = [Path(folder).name for folder in folders]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; want one of {', '.join(known)}"
    raise UserError(f"--mix {word}: {name!r} is no folder of --data{hint}")
