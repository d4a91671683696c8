"""Throughput of MM-IT: this trainer against HF Trainer with transformers' own LLaVA.

    python benchmarks/step_rate.py [--samples N] [--length N]

Both sides train the same small LLaVA (one folder, imported here, loaded there) from the same
weights on the same samples in the same order, under the same ZeRO-2 configuration, in float32, on
equally many ranks. The same code tokenizes each sample and decodes its image. So the losses of each
step must agree, which is checked; what differs is the layout of the batches, the computation on
them and its overhead. The lengths are like those of LLaVA-1.5's 665K mix: see `lengths`.

Useful tokens are those of the samples, without padding. Prints a table and as the last line one
JSON object.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from benchmarks.ranks import run_ranks
from etl.cli import main, parse
from etl.storage.schema import Medium, Sample, Turn
from etl.storage.shards import write_folder
from model.byte_tokenizers import plain
from pipeline.convert.import_ import import_run

ROOT = Path(__file__).parents[1]
SIDE = 336
"""Side of an image in pixels: with patches of 14, LLaVA-1.5's 576 tokens."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare useful tokens per second with those of HF Trainer."""

    samples: int = 192
    """Number of samples."""
    global_batch: int = 16
    micro_batch: int = 4
    length: int = 2048
    """The longest sample, in tokens; LLaVA-1.5's is 2,048."""
    width: int = 256
    layers: int = 4
    vocabulary: int = 32_000
    ranks: int = 2
    warm: int = 2
    """Steps at the beginning that are not measured."""
    keep: Path | None = None
    """Folder for data and runs. Default: a temporary one."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The measurements of one side after the warm-up.

    Args:
        tokens: useful tokens.
        seconds: wall time.
        losses: of all steps.
    """

    name: str
    tokens: int
    seconds: float
    losses: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Useful tokens per second, over all ranks."""
        return self.tokens / self.seconds


def lengths(count: int, longest: int, seed: int = 0) -> list[tuple[bool, int]]:
    """Sample lengths like those of LLaVA-1.5's 665K mix: (whether with an image, bytes of text).

    Of its 665,298 records (Liu et al. 2023, *Improved baselines*, table 7), 40,688 are ShareGPT's,
    which have no image and mostly fill the context; the others are 158K of LLaVA's own dialogues
    and descriptions, and questions with short answers, many about one image together. The
    distribution of text lengths is chosen, not published: log-normal with a median of 150 tokens
    for records with an image, and of 1,100 for those without.
    """
    random = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        picture = bool(random.random() >= 40_688 / 665_298)
        middle, spread = (150, 0.8) if picture else (1100, 0.7)
        text = int(np.clip(random.lognormal(np.log(middle), spread), 20, longest))
        result.append((picture, min(text, longest - 60 - (SIDE // 14) ** 2 * picture)))
    return result


def samples(count: int, longest: int) -> Iterator[Sample]:
    """Yield dialogues of those lengths about images that resemble photographs."""
    random = np.random.default_rng(1)
    words = ("two red digits stand above a blue one ", "it moves to the left ")
    for number, (picture, text) in enumerate(lengths(count, longest)):
        question = "<image>\nWhat do you see?" if picture else "Tell a story."
        answer = (words[number % 2] * (text // 20 + 1))[:text]
        turns = (Turn(role="user", text=question), Turn(role="assistant", text=answer))
        media = (photograph(random),) if picture else ()
        yield Sample(id=f"{number:06d}", source="bench", turns=turns, media=media)


def photograph(random: np.random.Generator) -> Medium:
    """Return a JPEG file of a random smooth image, as photographs are."""
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((448, SIDE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    data = stream.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return Medium(kind="image", data=data, mime="image/jpeg", sha256=digest, width=448, height=SIDE)


def checkpoint(options: Options, folder: Path) -> None:
    """Save a small LLaVA with random weights in transformers' format."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=options.width * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        max_position_embeddings=options.length,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=options.vocabulary - 1
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    plain().save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.2, 0.3],
    ).save_pretrained(folder)


def train_with_mmloom(options: Options, folder: Path) -> Side:
    """Train with this trainer."""
    run = folder / "mmloom"
    words = ["pipeline", "sft", folder / "imported" / "config.json", *_common(options, folder)]
    words += ["--init-from", folder / "imported", "--output", run]
    words += ["--set", "sft.recompute=false", f"sft.max_tokens={options.length}"]
    run_ranks(options.ranks, words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Side(
        name="mmloom",
        tokens=lines[-1]["tokens"] - lines[options.warm - 1]["tokens"],
        seconds=sum(line["step_seconds"] for line in lines[options.warm :]),
        losses=tuple(line["loss"] for line in lines),
    )


def train_with_hf_trainer(options: Options, folder: Path, tokens: int) -> Side:
    """Train with HF Trainer, see `step_rate_trainer.py`."""
    file = folder / "hf_trainer.json"
    words = ["benchmarks.step_rate_trainer", "--checkpoint", folder / "llava"]
    words += ["--run", folder / "mmloom", "--output", file]
    run_ranks(options.ranks, words)
    results = json.loads(file.read_bytes())
    return Side(
        name="HF Trainer",
        tokens=tokens,
        seconds=results["ended"][-1] - results["ended"][options.warm - 1],
        losses=tuple(results["losses"]),
    )


def _common(options: Options, folder: Path) -> list[object]:
    return [
        *("--data", folder / "data", "--ds-config", "zero2", "--precision", "fp32"),
        *("--global-batch", options.global_batch, "--micro-batch", options.micro_batch),
        *("--save-every", 10**9, "--learning-rate", 1e-4, "--epochs", 1),
    ]


def table(sides: list[Side], options: Options) -> Table:
    """Return both sides as a table."""
    title = f"MM-IT of a small LLaVA, {options.ranks} ranks, float32, ZeRO-2"
    printed = Table("", "useful tokens/s", "s", "first loss", "last loss", title=title)
    for side in sides:
        speed = (f"{side.rate:.0f}", f"{side.seconds:.1f}")
        printed.add_row(side.name, *speed, f"{side.losses[0]:.4f}", f"{side.losses[-1]:.4f}")
    return printed


def run(args: list[str]) -> None:
    """Run both sides and print the results."""
    options = parse(Options, prog="python benchmarks/step_rate.py", args=args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder / "data", samples(options.samples, options.length), job="bench")
        checkpoint(options, folder / "llava")
        import_run(folder / "llava", folder / "imported", "sft")
        mine = train_with_mmloom(options, folder)
        other = train_with_hf_trainer(options, folder, mine.tokens)
    worst = max(abs(a - b) / b for a, b in zip(mine.losses, other.losses, strict=True))
    Console(stderr=True).print(table([mine, other], options))
    results = {
        "sides": [asdict(side) | {"tokens_per_second": side.rate} for side in (mine, other)],
        "ratio": mine.rate / other.rate,
        "largest_difference_of_losses": worst,
        "options": asdict(options) | {"keep": str(options.keep)},
    }
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main(run)
