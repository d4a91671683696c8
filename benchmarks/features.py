"""Feature cache: MM-PT with the encoder, and with what the encoder made before.

    python benchmarks/features.py [--samples N] [--systems llava blip_2]

Both sides train the same model from the same weights on the same samples in the same order, under
ZeRO-3; the second finds all features in a cache that the Ray job has filled, if it measures that
faster. What the cache can save is the decoding and the encoder's share of the work, which differs
much: 2 % in LLaVA-1.5 7B, 23 % in BLIP-2 with its few tokens. So one in small of each is trained.
Losses must agree, which is looked at. Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.ranks import run_ranks
from etl.cli import UserError, main, parse
from etl.storage.schema import Medium, Sample, Turn
from etl.storage.shards import write_folder

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Small:
    """A published system in small: its encoder's share of the work is about the published one's.

    Args:
        preset: the system's.
        settings: the preset's fields that make it small; the tokens of a picture stay.
        published: of the preset at full size, so that a sample is a picture and a caption.
    """

    preset: str
    settings: tuple[str, ...]
    published: tuple[str, ...]


SYSTEMS = {
    "llava": Small(
        preset="llava_1_5_7b",
        settings=(
            "model.inputs.image.encoder.layers=4",
            "model.inputs.image.encoder.width=128",
            "model.inputs.image.encoder.mlp_width=512",
            "model.inputs.image.encoder.heads=2",
            "model.backbone.layers=4",
            "model.backbone.width=512",
            "model.backbone.mlp_width=1408",
            "model.backbone.heads=8",
            "model.backbone.kv_heads=8",
            "pt.max_tokens=640",
            "pt.recompute=false",
        ),
        published=("pt.max_tokens=640",),
    ),
    "blip_2": Small(
        preset="blip_2",
        settings=(
            "model.inputs.image.encoder.layers=6",
            "model.inputs.image.encoder.width=256",
            "model.inputs.image.encoder.mlp_width=1024",
            "model.inputs.image.encoder.heads=4",
            "model.inputs.image.projector.width=192",
            "model.inputs.image.projector.mlp_width=384",
            "model.inputs.image.projector.layers=2",
            "model.inputs.image.projector.heads=4",
            "model.backbone.vocabulary=4096",
            "model.backbone.layers=6",
            "model.backbone.width=512",
            "model.backbone.mlp_width=2048",
            "model.backbone.heads=8",
            "pt.max_tokens=96",
            "pt.recompute=false",
        ),
        published=("pt.max_tokens=64",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare samples a second with and without the feature cache."""

    systems: tuple[Literal["llava", "blip_2"], ...] = ("llava", "blip_2")
    """Of which one in small is trained."""
    samples: int = 96
    """Pictures, each with a caption."""
    global_batch: int = 16
    micro_batch: int = 4
    ranks: int = 2
    warm: int = 1
    """Steps that are left out of the rate."""
    keep: Path | None = None
    """Where data, caches and runs stay; a folder that goes away if not given."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one side did in the steps after the warm ones; losses are of all steps."""

    name: str
    samples: int
    seconds: float
    steps: int
    losses: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Samples a second, of all ranks."""
        return self.samples / self.seconds


def samples(count: int) -> Iterator[Sample]:
    """Yield captions of photographs-like pictures."""
    random = np.random.default_rng(1)
    for number in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90)
        data = stream.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        medium = Medium(kind="image", data=data, mime="image/jpeg", sha256=digest)
        answer = f"picture number {number} of many colours that flow into each other"
        turns = (Turn(role="user", text="<image>"), Turn(role="assistant", text=answer))
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=(medium,))


def model_words(small: Small) -> list[str]:
    """Return the words of a command that name the model."""
    return [small.preset, "--weights", "random", "--precision", "fp32", "--set", *small.settings]


def train(
    small: Small, options: Options, data: Path, folder: Path, name: str, *more: object
) -> Side:
    """Train one epoch and return what it did."""
    run = folder / name
    words = ["pipeline", "pt", *model_words(small), "--data", data, "--output", run]
    words += ["--global-batch", options.global_batch, "--micro-batch", options.micro_batch]
    words += ["--epochs", 1, "--save-every", 10**9, *more]
    run_ranks(options.ranks, words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = lines[options.warm :]
    return Side(
        name=name,
        samples=lines[-1]["samples"] - lines[options.warm - 1]["samples"],
        seconds=sum(line["step_seconds"] for line in timed),
        steps=len(timed),
        losses=tuple(line["loss"] for line in lines),
    )


def fill(small: Small, data: Path, cache: Path) -> dict[str, float]:
    """Fill the cache; return media a second, Ray's start left out, and bytes of a medium."""
    told = _pipeline("features", *model_words(small), "--data", data, "--output", cache, "--json")
    count = told["kinds"]["image"]
    size = sum(path.stat().st_size for path in cache.rglob("part-*.arrow"))
    return {
        "media_per_second": count["encoded"] / told["encoding_seconds"],
        "bytes_per_medium": size / count["encoded"],
    }


def encoder_share(preset: str, settings: Sequence[str]) -> float:
    """Return the encoders' part of the FLOPs of a sample, as `plan` reckons it."""
    told = _pipeline("plan", preset, "--set", *settings, "--stage", "pt", "--json")
    flops = told["flops_per_sample"]
    share: float = flops["encoders"] / flops["total"]
    return share


def _pipeline(*words: object) -> dict:
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{words[0]}: failed")
    told: dict = json.loads(done.stdout)
    return told


def compare(name: str, options: Options, data: Path, folder: Path) -> dict[str, object]:
    """Train one system both ways; return its figures."""
    small = SYSTEMS[name]
    filled = fill(small, data, folder / "cache")
    without = train(small, options, data, folder, "encoder")
    known = train(small, options, data, folder, "known", "--feature-cache", folder / "cache")
    verdict = json.loads((folder / "known" / "feature_cache.json").read_text())["image"]
    pairs = zip(known.losses, without.losses, strict=True)
    return {
        "system": name,
        "sides": [asdict(side) | {"samples_per_second": side.rate} for side in (without, known)],
        "ratio": known.rate / without.rate,
        "fill": filled,
        "verdict": verdict,
        "encoder_share": {
            "here": encoder_share(small.preset, small.settings),
            "published": encoder_share(small.preset, small.published),
        },
        "largest_difference_of_losses": max(abs(a - b) / b for a, b in pairs),
    }


def table(compared: Sequence[dict], options: Options) -> Table:
    """Return all figures as a table."""
    title = f"MM-PT with and without the feature cache, {options.ranks} ranks, float32, ZeRO-3"
    columns = ("samples/s", "ratio", "last loss", "encoder's FLOPs", "KB a medium", "filled/s")
    shown = Table("", "", *columns, title=title)
    for found in compared:
        for side in found["sides"]:
            known = side["name"] == "known"
            shown.add_row(
                found["system"],
                side["name"],
                f"{side['samples_per_second']:.2f}",
                f"{found['ratio']:.2f}" if known else "",
                f"{side['losses'][-1]:.5f}",
                "" if known else f"{found['encoder_share']['here']:.1%}",
                f"{found['fill']['bytes_per_medium'] / 1000:,.0f}" if known else "",
                f"{found['fill']['media_per_second']:.1f}" if known else "",
            )
    return shown


def run(args: list[str]) -> None:
    """Run both sides of each system and print what they did."""
    options = parse(Options, prog="python benchmarks/features.py", args=args)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.rmtree(folder, ignore_errors=True)
        data = write_folder(folder / "data", samples(options.samples), job="bench")
        compared = [compare(name, options, data, folder / name) for name in options.systems]
    console = Console(stderr=True)
    console.print(table(compared, options))
    for found in compared:
        console.print(f"{found['system']}: {found['verdict']['reason']}", highlight=False)
    figures = {
        "systems": compared,
        "ratio": {found["system"]: found["ratio"] for found in compared},
        "options": asdict(options) | {"keep": str(options.keep)},
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(run)
