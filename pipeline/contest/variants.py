"""The variants of a contest: the preset as it is, and what each `--vary` changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etl.cli import UserError
from model.build import build_tokenizer
from pipeline.config.run_config import RunConfig
from pipeline.data.sampler import BatchSampler, build_sampler

BASE = "base"
_NAME = re.compile(r"[\w.-]+")
_NEXT = re.compile(r";\s*(?=[\w.]+=)")
"""Between two settings of a variant."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant.

    Args:
        name: also of its run folder.
        settings: as `--set` takes them; none for the preset as it is.
    """

    name: str
    settings: tuple[str, ...] = ()


def read_variants(options: Sequence[str]) -> list[Variant]:
    """Return the preset as it is, and a variant for each `[NAME:]PATH=JSON[; PATH=JSON …]`.

    Raises:
        UserError: an option that is not of this form, or a name that is used twice.
    """
    variants = [Variant(name=BASE)]
    for option in options:
        name, colon, _ = option.partition("=")[0].rpartition(":")
        text = option[len(name) + 1 :] if colon else option
        settings = tuple(map(str.strip, _NEXT.split(text)))
        if not all(path and equals for path, equals, _ in (s.partition("=") for s in settings)):
            raise UserError(f"--vary {option}: want PATH=JSON or NAME:PATH=JSON, as in --set")
        name = name if colon else _name(settings)
        if not _NAME.fullmatch(name) or name in (one.name for one in variants):
            raise UserError(f"--vary {option}: want another name than {name!r}, as NAME:PATH=JSON")
        variants.append(Variant(name=name, settings=settings))
    if len(variants) == 1:
        raise UserError("--vary: want at least one variant of the preset, as PATH=JSON")
    return variants


def _name(settings: Sequence[str]) -> str:
    """Return a name for a variant: the last parts of its paths, and its kinds or values."""
    words = []
    for setting in settings:
        path, _, value = setting.partition("=")
        kind = re.search(r'"kind"\s*:\s*"([^"]*)"', value)
        words.append(f"{path.rpartition('.')[2]}-{kind[1] if kind else value}")
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-")


def check_same_samples(runs: Mapping[str, RunConfig]) -> int:
    """Check that all variants train on the same samples in the same steps.

    Returns:
        The number of steps.

    Raises:
        UserError: one has another order, another global batch, or skips other samples.
    """
    first: BatchSampler | None = None
    for name, run in runs.items():
        sampler = build_sampler(run, build_tokenizer(run.system.model, weights=run.weights))
        if first is None:
            first = sampler
        elif (sampler.stream, sampler.global_batch) != (first.stream, first.global_batch):
            raise UserError(
                f"--vary: {name} changes the samples of the steps; seed, epochs, global_batch and"
                " mix must be those of all variants"
            )
        elif differing := _skipped(sampler) ^ _skipped(first):
            row = min(differing)
            skips = sampler if row in _skipped(sampler) else first
            assert skips.lengths is not None
            raise UserError(
                f"--vary: {name} and {BASE} skip different samples, {len(differing)} in all (row "
                f"{row}: {skips.lengths.skip_reasons[row]}); a larger max_tokens for all may help"
            )
    assert first is not None
    return first.steps


def _skipped(sampler: BatchSampler) -> set[int]:
    return set(sampler.lengths.skip_reasons) if sampler.lengths else set()
