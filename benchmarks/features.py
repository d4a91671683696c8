"""Feature cache: MM-PT with the encoder, and with its cached features.

    python benchmarks/features.py [--samples N] [--systems llava blip_2 minigpt_5]

Both runs train the same model from the same weights on the same samples in the same order, under
ZeRO-3; the second reads all features from a precomputed cache. The cache can save the decoding and
the encoder's share of the FLOPs, which varies: 2 % in LLaVA-1.5 7B, 23 % in BLIP-2 with its few
tokens. So a scaled-down model of each is trained. It pays after as many epochs as precomputing
takes longer than they save. In MiniGPT-5 the images are generated: cached are the latents of eq. 5
and the conditions of eq. 4, which spare autoencoder and text encoder. The losses of both runs are
compared. Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
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
class ScaledDown:
    """A scaled-down system whose encoder has about the same share of the FLOPs as at full size.

    Args:
        preset: of the system.
        settings: that scale the preset down; the number of image tokens stays.
        published: settings at full size, for samples of an image and a caption.
        scale: of the preset, before the settings.
        kind: of the media that are cached.
    """

    preset: str
    settings: tuple[str, ...]
    published: tuple[str, ...]
    scale: str = "full"
    kind: str = "image"


SYSTEMS = {
    "llava": ScaledDown(
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
    "blip_2": ScaledDown(
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
    "minigpt_5": ScaledDown(
        preset="minigpt_5",
        settings=(
            "model.outputs.image.generator.image_size=128",
            "model.outputs.image.generator.text_layers=4",
            "pt.recompute=false",
        ),
        published=("pt.max_tokens=128",),
        scale="tiny",
        kind="to_image.latents",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare samples a second with and without the feature cache."""

    systems: tuple[Literal["llava", "blip_2", "minigpt_5"], ...] = ("llava", "blip_2", "minigpt_5")
    """Systems to train, scaled down."""
    samples: int = 96
    """Images, each with a caption."""
    global_batch: int = 16
    micro_batch: int = 4
    ranks: int = 2
    warmup_steps: int = 1
    """Steps that do not count in the rate."""
    keep: Path | None = None
    """Folder for data, caches and runs. Default: a temporary one."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one run after the warm-up steps; losses are of all steps."""

    name: str
    samples: int
    seconds: float
    steps: int
    losses: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Samples per second of all ranks."""
        return self.samples / self.seconds


def samples(count: int, *, generated: bool) -> Iterator[Sample]:
    """Yield captioned images that compress like photographs; to be generated, or as inputs."""
    random = np.random.default_rng(1)
    for number in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90)
        data = stream.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        medium = Medium(kind="image", data=data, mime="image/jpeg", sha256=digest)
        words = f"image number {number} of many colours that flow into each other"
        texts = (words, "<image>") if generated else ("<image>", words)
        turns = (Turn(role="user", text=texts[0]), Turn(role="assistant", text=texts[1]))
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=(medium,))


def model_arguments(model: ScaledDown) -> list[str]:
    """Return the command-line arguments that select the model."""
    words = [model.preset, "--scale", model.scale, "--weights", "random", "--precision", "fp32"]
    return [*words, "--set", *model.settings]


def train(
    model: ScaledDown, options: Options, data: Path, folder: Path, name: str, *more: object
) -> Result:
    """Train one epoch and return its result."""
    run = folder / name
    arguments = ["pipeline", "pt", *model_arguments(model), "--data", data, "--output", run]
    arguments += ["--global-batch", options.global_batch, "--micro-batch", options.micro_batch]
    arguments += ["--epochs", 1, "--save-every", 10**9, *more]
    run_ranks(options.ranks, arguments)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = lines[options.warmup_steps :]
    return Result(
        name=name,
        samples=lines[-1]["samples"] - lines[options.warmup_steps - 1]["samples"],
        seconds=sum(line["step_seconds"] for line in timed),
        steps=len(timed),
        losses=tuple(line["loss"] for line in lines),
    )


def precompute(model: ScaledDown, data: Path, cache: Path) -> dict[str, float]:
    """Precompute the cache; return media per second, without Ray's start, and bytes per medium."""
    output = _pipeline(
        "features", *model_arguments(model), "--data", data, "--output", cache, "--json"
    )
    count = output["kinds"][model.kind]
    size = sum(path.stat().st_size for path in cache.rglob("part-*.arrow"))
    return {
        "media_per_second": count["encoded"] / output["encoding_seconds"],
        "bytes_per_medium": size / count["encoded"],
    }


def encoder_share(preset: str, settings: Sequence[str], scale: str = "full") -> float:
    """Return the encoders' share of the FLOPs of a sample, as estimated by `plan`."""
    words = ["--scale", scale, "--set", *settings, "--stage", "pt", "--json"]
    output = _pipeline("plan", preset, *words)
    flops = output["flops_per_sample"]
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
    output: dict = json.loads(done.stdout)
    return output


def compare(name: str, options: Options, data: Path, folder: Path) -> dict[str, object]:
    """Train one system with and without the cache; return the results."""
    model = SYSTEMS[name]
    precomputed = precompute(model, data, folder / "cache")
    without = train(model, options, data, folder, "encoder")
    cached = train(model, options, data, folder, "cached", "--feature-cache", folder / "cache")
    saved = 1 / without.rate - 1 / cached.rate  # seconds per sample of an epoch
    pairs = zip(cached.losses, without.losses, strict=True)
    return {
        "system": name,
        "sides": [asdict(run) | {"samples_per_second": run.rate} for run in (without, cached)],
        "ratio": cached.rate / without.rate,
        "precompute": precomputed,
        "pays_after_epochs": 1 / precomputed["media_per_second"] / saved if saved > 0 else None,
        "encoder_share": {
            "here": encoder_share(model.preset, model.settings, model.scale),
            "published": encoder_share(model.preset, model.published),
        },
        "largest_difference_of_losses": max(abs(a - b) / b for a, b in pairs),
    }


def table(compared: Sequence[dict], options: Options) -> Table:
    """Return all results as a table."""
    title = f"MM-PT with and without the feature cache, {options.ranks} ranks, float32, ZeRO-3"
    columns = ("samples/s", "ratio", "last loss", "encoder's FLOPs", "KB/medium", "precomputed/s")
    shown = Table("", "", *columns, "pays after epochs", title=title)
    for found in compared:
        for side in found["sides"]:
            cached = side["name"] == "cached"
            shown.add_row(
                found["system"],
                side["name"],
                f"{side['samples_per_second']:.2f}",
                f"{found['ratio']:.2f}" if cached else "",
                f"{side['losses'][-1]:.5f}",
                "" if cached else f"{found['encoder_share']['here']:.1%}",
                f"{found['precompute']['bytes_per_medium'] / 1000:,.0f}" if cached else "",
                f"{found['precompute']['media_per_second']:.1f}" if cached else "",
                f"{found['pays_after_epochs'] or math.inf:.1f}" if cached else "",
            )
    return shown


def run(args: list[str]) -> None:
    """Train each system with and without the cache and print the results."""
    options = parse(Options, prog="python benchmarks/features.py", args=args)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.rmtree(folder, ignore_errors=True)
        compared = []
        for name in options.systems:
            made = samples(options.samples, generated=SYSTEMS[name].kind != "image")
            data = write_folder(folder / name / "data", made, job="bench")
            compared.append(compare(name, options, data, folder / name))
    Console(stderr=True).print(table(compared, options))
    results = {
        "systems": compared,
        "ratio": {found["system"]: found["ratio"] for found in compared},
        "options": asdict(options) | {"keep": str(options.keep)},
    }
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(run)
