"""Draw README's picture of a result: questions about images, with the answers of a real run.

    python docs/draw_answers.py --run runs/quickstart/sft --data runs/quickstart/questions

Takes the first question of each kind, right or wrong: the picture is no selection of good ones.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from etl.cli import main, parse
from etl.storage.shards import ShardSet

_COLUMNS = 7
_RIGHT, _WRONG, _TEXT = "#2e7d32", "#b3261e", "#1f2933"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw one question of each kind with the answers of an evaluated run."""

    run: Path
    """The run folder, with evaluation/."""
    data: Path
    """The folder of shards that it was evaluated on."""
    output: Path = Path("docs/answers.jpg")
    """The picture."""


def run(args: Sequence[str]) -> None:
    """Draw the picture with the words after the command's name."""
    options = parse(Options, prog="python docs/draw_answers.py", args=args)
    seeing = _predictions(options.run, "predictions")
    blind = {item["id"]: item for item in _predictions(options.run, "predictions_blind")}
    first = {item["kind"]: item for item in reversed(seeing)}
    shards = ShardSet([options.data])
    images = {sample.id: sample.media[0].data for sample in (shards[i] for i in range(len(shards)))}
    mpl.rcParams["font.size"] = 7.5
    figure = Figure(figsize=(8.8, 1.95))
    for number, kind in enumerate(sorted(first)[:_COLUMNS]):
        item = first[kind]
        axes = figure.add_axes((number / _COLUMNS + 0.01, 0.44, 1 / _COLUMNS - 0.02, 0.54))
        axes.imshow(Image.open(io.BytesIO(images[item["id"]])))
        axes.set_axis_off()
        question = textwrap.fill(f"{item['question']}?", 20)
        for height, text, colour in (
            (0.41, question, _TEXT),
            (0.18, f"with image: {item['answer']}", _colour(item)),
            (0.09, f"without: {blind[item['id']]['answer']}", _colour(blind[item["id"]])),
        ):
            where = {"ha": "center", "va": "top"}
            figure.text((number + 0.5) / _COLUMNS, height, text, color=colour, **where)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, facecolor="white")
    with Image.open(buffer) as picture:
        picture.convert("RGB").save(options.output, quality=88, optimize=True)


def _predictions(run: Path, name: str) -> list[dict[str, str]]:
    lines = (run / "evaluation" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _colour(item: dict[str, str]) -> str:
    return _RIGHT if item["correct"] else _WRONG


if __name__ == "__main__":
    main(run)
