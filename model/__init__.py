"""Multimodal LLMs: specs, presets, and the modules built from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.exported import Loaded


def load(folder: Path | str, *, decoding: bool = False) -> Loaded:
    """Open a folder that `python -m pipeline export` wrote: (spec, module, tokenizer).

    Args:
        folder: the exported one.
        decoding: whether its generators, if it has any, can `sample`.

    Raises:
        SpecError: no such folder, or one whose files do not fit each other.
    """
    from model.exported import load_exported  # noqa: PLC0415 -- importing torch takes seconds

    return load_exported(folder, decoding=decoding)
