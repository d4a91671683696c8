"""Peak memory of eq. 5 for one picture, with and without recomputation of the generator's UNet.

    python benchmarks/recompute.py [--generator GENERATOR] [--image-size N] [--media N]

Runs the forward and backward pass of eq. 5 through a frozen generator with random weights, each
side in a process of its own, in float32 on the CPU. Compares the growth of the process over what it
held before with what `plan` forecasts, and the gradients bit by bit. Prints a table and as the last
line one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from model.generators import latent_diffusion
from model.output_branch import OutputBranch
from model.presets.generators import stable_diffusion_2_1_base
from model.spec.generators import StableDiffusion
from model.spec.output_branches import OutputBranchSpec

GENERATORS = {"1.5": StableDiffusion, "2.1": stable_diffusion_2_1_base}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Lets glibc return freed memory at once, as an accelerator's allocator reuses it."""
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the peak memory of eq. 5 with and without recomputation."""

    generator: Literal["1.5", "2.1"] = "1.5"
    """Of Stable Diffusion, at full size."""
    image_size: int = 256
    """Side of a picture in pixels."""
    media: int = 1
    """Pictures in the micro-batch."""
    recompute: bool | None = None
    """Measure this side alone, in this process."""


def build(options: Options, device: str) -> latent_diffusion.LatentDiffusionTeacher:
    """Return the frozen generator without its autoencoder."""
    spec = replace(GENERATORS[options.generator](), image_size=options.image_size)
    with torch.device(device):
        made = latent_diffusion.build(
            spec, denoising=True, encoding=False, weights="random", dtype=torch.float32
        )
    made.set_recompute(bool(options.recompute))
    return made.requires_grad_(False).eval()


class Given(torch.nn.Module):
    """An output projector whose condition is a parameter."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.condition = torch.nn.Parameter(torch.zeros(1, *shape))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """Return the condition."""
        return self.condition


def forecast(options: Options) -> int:
    """Return the bytes that `plan` counts for these pictures."""
    from pipeline.forecast.plan import saved_by_branch  # noqa: PLC0415 - with DeepSpeed

    generator = build(options, "meta")
    spec = OutputBranchSpec(generator=generator.spec)
    with torch.device("meta"):
        projector = Given(generator.spec.condition_shape)
        branch = OutputBranch(spec, 1, projector=projector, generator=generator, denoising=True)
    return options.media * saved_by_branch(branch, recompute=bool(options.recompute))


def measure(options: Options) -> dict[str, object]:
    """Run eq. 5 once; returns seconds, the growth of this process, and what was computed."""
    torch.manual_seed(0)
    generator = build(options, "cpu")
    latents = torch.randn(options.media, *generator.spec.latent_shape)
    condition = torch.randn(options.media, *generator.spec.condition_shape, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before, started = _status("VmRSS"), time.monotonic()
    noise = generator.denoise(latents, condition, torch.arange(options.media))
    loss = (noise.noise_pred_gcyx - noise.noise_target_gcyx).square().mean()
    loss.backward()
    assert condition.grad is not None
    digest = hashlib.sha256(condition.grad.numpy().tobytes()).hexdigest()
    return {
        "recompute": options.recompute,
        "actual_mib": round((_status("VmHWM") - before) / _MIB),
        "seconds": round(time.monotonic() - started, 1),
        "loss": loss.item(),
        "gradient": digest,
    }


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def run(args: list[str]) -> None:
    """Measure both sides and print them, or one side in this process."""
    options = parse(Options, prog="python benchmarks/recompute.py", args=args)
    if options.recompute is not None:
        print(json.dumps(measure(options)))
        return
    sides = []
    for recompute in (False, True):
        own = replace(options, recompute=recompute)
        command = [sys.executable, __file__, *args, "--recompute", str(recompute)]
        env = {**os.environ, **ALLOCATOR}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=env)
        if done.returncode:
            raise UserError(f"--recompute {recompute}: exit code {done.returncode}")
        side = json.loads(done.stdout.splitlines()[-1])
        sides.append(side | {"forecast_mib": round(forecast(own) / _MIB)})
    table = Table("recompute", "forecast, MiB", "actual, MiB", "seconds", "loss")
    for side in sides:
        names = ("recompute", "forecast_mib", "actual_mib", "seconds", "loss")
        table.add_row(*(str(side[name]) for name in names))
    Console(stderr=True).print(table)
    same = all(sides[0][name] == sides[1][name] for name in ("loss", "gradient"))
    ratio = sides[1]["actual_mib"] / sides[0]["actual_mib"]
    print(json.dumps({"sides": sides, "ratio": round(ratio, 3), "equal": same}))


if __name__ == "__main__":
    main(run)
