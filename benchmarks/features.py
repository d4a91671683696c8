"""Feature cache: MM-PT of a LLaVA in small, with its encoder and with what the encoder made before.

    python benchmarks/features.py [--samples N] [--encoder-layers N] [--backbone-layers N]

Both sides train the same model from the same weights on the same samples in the same order, under
ZeRO-3, packed; the second finds all features in a cache that the Ray job has filled. What the cache
can save is the decoding and the encoder's share of the work, which is told beside that of LLaVA-1.5
7B. Losses must agree, which is looked at. Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from etl.command import UserError, main, parse
from etl.schema import Medium, Sample, Turn
from etl.shards import write_folder

ROOT = Path(__file__).parents[1]
PRESET = "llava_1_5_7b"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare samples a second with and without the feature cache."""

    samples: int = 96
    """Pictures, each with a caption."""
    global_batch: int = 16
    micro_batch: int = 4
    ranks: int = 2
    warm: int = 1
    """Steps that are left out of the rate."""
    encoder_layers: int = 6
    encoder_width: int = 256
    backbone_layers: int = 4
    backbone_width: int = 512
    keep: Path | None = None
    """Where data, cache and runs stay; a folder that goes away if not given."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The preset's fields that make it small; 576 tokens a picture stay."""
        encoder, backbone = "model.inputs.image.encoder", "model.backbone"
        return (
            f"{encoder}.layers={self.encoder_layers}",
            f"{encoder}.width={self.encoder_width}",
            f"{encoder}.mlp_width={4 * self.encoder_width}",
            f"{encoder}.heads={self.encoder_width // 64}",
            f"{backbone}.layers={self.backbone_layers}",
            f"{backbone}.width={self.backbone_width}",
            f"{backbone}.mlp_width={self.backbone_width * 11 // 4}",
            f"{backbone}.heads={self.backbone_width // 64}",
            f"{backbone}.kv_heads={self.backbone_width // 64}",
            "pt.recompute=false",
        )


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


def set_words(options: Options) -> list[str]:
    """Return the words of a command that make the preset small."""
    return ["--set", *options.settings]


def model_words(options: Options) -> list[str]:
    """Return the words of a command that name the model."""
    return [PRESET, "--weights", "random", "--precision", "fp32", *set_words(options)]


def train(options: Options, folder: Path, name: str, *more: object) -> Side:
    """Train one epoch and return what it did."""
    run = folder / name
    words = ["pipeline", "pt", *model_words(options), "--data", folder / "data", "--output", run]
    words += ["--global-batch", options.global_batch, "--micro-batch", options.micro_batch]
    words += ["--epochs", 1, "--save-every", 10**9, *more]
    _ranks(options.ranks, words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = lines[options.warm :]
    return Side(
        name=name,
        samples=lines[-1]["samples"] - lines[options.warm - 1]["samples"],
        seconds=sum(line["step_seconds"] for line in timed),
        steps=len(timed),
        losses=tuple(line["loss"] for line in lines),
    )


def fill(options: Options, folder: Path) -> dict[str, float]:
    """Fill the cache; return media a second and bytes of a medium."""
    words = ["features", *model_words(options), "--data", folder / "data"]
    told = _pipeline(*words, "--output", folder / "cache", "--json")
    count = told["kinds"]["image"]
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("part-*.arrow"))
    return {
        "media_per_second": count["encoded"] / told["encoding_seconds"],
        "bytes_per_medium": size / count["encoded"],
    }


def encoder_share(*words: object) -> float:
    """Return the encoders' part of the FLOPs of a sample, as `plan` reckons it."""
    flops = _pipeline("plan", *words, "--stage", "pt", "--json")["flops_per_sample"]
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


def _ranks(number: int, words: Sequence[object]) -> None:
    """Run a module on several ranks of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=ROOT,
            env={
                **os.environ,
                **{name: str(value) for name, value in shared.items()},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            },
        )
        for rank in range(number)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise UserError(f"{words[1]}: a rank failed")


def table(sides: Sequence[Side], options: Options) -> Table:
    """Return both sides as a table."""
    title = f"MM-PT of a LLaVA in small, {options.ranks} ranks, float32, ZeRO-3"
    shown = Table("", "samples/s", "s a step", "first loss", "last loss", title=title)
    for side in sides:
        figures = (f"{side.rate:.2f}", f"{side.seconds / side.steps:.2f}")
        shown.add_row(side.name, *figures, f"{side.losses[0]:.5f}", f"{side.losses[-1]:.5f}")
    return shown


def run(args: list[str]) -> None:
    """Run both sides and print what they did."""
    options = parse(Options, prog="python benchmarks/features.py", args=args)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder / "data", samples(options.samples), job="bench")
        filled = fill(options, folder)
        without = train(options, folder, "encoder")
        cached = train(options, folder, "known", "--features", folder / "cache")
        verdict = json.loads((folder / "known" / "features.json").read_text())["image"]
    sides = [without, cached]
    worst = max(abs(a - b) / b for a, b in zip(cached.losses, without.losses, strict=True))
    shares = {
        "here": encoder_share(PRESET, *set_words(options)),
        "llava_1_5_7b": encoder_share(PRESET),
    }
    console = Console(stderr=True)
    console.print(table(sides, options))
    console.print(verdict["reason"])
    figures = {
        "sides": [asdict(side) | {"samples_per_second": side.rate} for side in sides],
        "ratio": cached.rate / without.rate,
        "fill": filled,
        "verdict": verdict,
        "encoder_share": shares,
        "largest_difference_of_losses": worst,
        "options": asdict(options) | {"keep": str(options.keep)},
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(run)
