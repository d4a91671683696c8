"""Prompts, targets, pixels and answers of imported checkpoints, compared with transformers' own.

    python benchmarks/published_processors.py [--images 4]

Each checkpoint is tiny and random, but has a tokenizer, an image processor and a chat template of
the published kind (`tests/published_processors.py`). It is imported, or a tiny preset is exported,
and every dialogue about every image file is encoded and answered twice: by us, and by
transformers' processor, its chat template and `generate`. Prints a table of equal / compared, and
as the last line one JSON object; takes two minutes. Exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from tests.published_processors import (
    CASES,
    EXPORTED,
    Comparison,
    Exported,
    Oracle,
    write_image,
)

SIZES = ((60, 44), (44, 60), (32, 32), (200, 31))
"""Width and height of the image files, in pixels; repeated with other contents."""


def main() -> int:
    """Print the table and the JSON object; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=len(SIZES), help="image files per case")
    images = parser.parse_args().images
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: dict[str, Comparison] = {}
    makers = {case.name: partial(Oracle, case) for case in CASES}
    makers |= {f"export of {name}": partial(Exported, name) for name in EXPORTED}
    for title, make in makers.items():
        with tempfile.TemporaryDirectory() as name:
            oracle = make(Path(name))
            total = Comparison()
            for number in range(images):
                width, height = SIZES[number % len(SIZES)]
                path = Path(name) / f"{number}.png"
                total += oracle.compare(write_image(path, width=width, height=height, seed=number))
            found[title] = total
    table = Table("checkpoint", "ids", "mask", "pixels", "answers", title="equal / compared")
    for name, row in found.items():
        counts = (row.ids, row.mask, row.pixels, row.answers)
        table.add_row(name, *(f"{count} / {row.compared}" for count in counts))
    Console(width=100).print(table)
    different = [name for name, row in found.items() if not row.equal]
    result = {"cases": {name: asdict(row) for name, row in found.items()}, "different": different}
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
