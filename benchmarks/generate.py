"""Batch inference: pictures that a multimodal LLM asks for, against the bare diffusers pipeline.

    python benchmarks/generate.py [--prompts N] [--batch-size B] [--steps N]

Ours reads the prompts, decodes the answers (text, then MiniGPT-5's eight signal tokens), projects
their hidden states, generates and encodes PNG files; conditions are the model's own. The other side
is `StableDiffusionPipeline` with the same autoencoder, UNet and scheduler, given ready embeddings:
the same batch, steps and guidance scale, and PNG files, too. Weights are random.

The sizes keep the proportions of the full size, where denoising dominates: at 512 pixels, in 50
steps with guidance, Stable Diffusion 2.1's UNet takes about 100 · 0.8 TFLOP a picture, Vicuna 7B
about 2 · 7e9 · 100 = 1.4 TFLOP for a prompt and answer of 100 tokens: 2 %. Both sides
alternate, and the ratio is of their medians. Prints a table and as the last line one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from rich.console import Console
from rich.table import Table

from etl.cli import UserError, main, parse
from etl.storage.schema import Sample, Turn
from model import byte_tokenizers
from model.build import build
from model.freeze import set_trainable
from model.generators.latent_diffusion import LatentDiffusionTeacher
from model.multimodal_lm import MultimodalLM
from model.presets import system
from model.spec import System
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
from pipeline.generate import GeneratingAssistant, GenerationSettings
from pipeline.generate.answers import Replier

GUIDANCE = 7.5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Images per second of batch inference, and of the bare diffusers pipeline."""

    prompts: int = 8
    """Pictures per round."""
    batch_size: int = 4
    """Prompts, and pictures, per batch."""
    steps: int = 10
    """Of denoising."""
    rounds: int = 3
    """Of each side, in turn."""
    width: int = 64
    """Channels of the UNet's first level; Stable Diffusion's has 320."""
    image_size: int = 128
    """Side of the pictures in pixels."""
    threads: int = 1
    """Without a GPU."""


def _preset(options: Options) -> System:
    """Return MiniGPT-5 with a small backbone, and a UNet of four levels that dominates."""
    tiny = system("minigpt_5").tiny()
    [branch] = tiny.model.outputs
    width = options.width
    generator = replace(
        branch.generator,
        widths=(width, 2 * width, 4 * width, 4 * width),
        vae_widths=(32, 64, 64, 64),
        blocks=2,
        heads=(2, 4, 8, 8),
        image_size=options.image_size,
    )
    model = replace(tiny.model, outputs=(replace(branch, generator=generator),))
    assert tiny.sft is not None
    return replace(tiny, model=model, sft=replace(tiny.sft, precision="fp32"))


def _random_run(folder: Path, preset: System) -> None:
    """Write a run whose trained weights are those of the start."""
    assert preset.sft is not None
    model = build(preset.model, preset.sft, weights="random")
    names = set_trainable(model, preset.sft.trainable)
    trained = {name: weight for name, weight in model.named_parameters() if name in names}
    write_weights(folder, trained, identity={})
    config = RunConfig(stage="sft", system=preset, weights="random", data=(), output=str(folder))
    config.save(folder)


def _prompt(number: int) -> Sample:
    turns = (
        Turn(role="user", text=f"Draw a picture of {number} red squares on a table."),
        Turn(role="assistant", text="<image>"),
    )
    return Sample(id=f"prompt-{number}", source="", turns=turns)


@torch.no_grad()
def _ask_for_pictures(model: MultimodalLM, replier: Replier, samples: Sequence[Sample]) -> None:
    """Have the first signal token be the likeliest after the prompts, as training would."""
    states: list[torch.Tensor] = []
    hook = model.backbone.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: states.append(args[0][:, -1].mean(0))
    )
    replier.reply(samples)
    hook.remove()
    [branch] = model.output_branches().values()
    branch.head.weight.zero_()
    branch.head.weight[0] = 1e3 * states[0]


def _ours(replier: Replier, samples: Sequence[Sample], batch: int, folder: Path) -> int:
    """Reply to all prompts and write the pictures; return their number."""
    pictures = 0
    for start in range(0, len(samples), batch):
        for reply in replier.reply(samples[start : start + batch]):
            pictures += len(reply.save(folder / "ours")["media"])
    return pictures


def _diffusers(model: MultimodalLM, options: Options, folder: Path) -> Callable[[], int]:
    """Return what generates as many pictures with diffusers' pipeline and writes them."""
    [branch] = model.output_branches().values()
    generator = cast(LatentDiffusionTeacher, branch.generator)
    pipe = StableDiffusionPipeline(
        vae=generator.vae,
        text_encoder=generator.text.get_submodule("text_encoder"),
        tokenizer=byte_tokenizers.clip_style(),
        unet=generator.unet,
        scheduler=DDIMScheduler.from_config(generator.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    shape = branch.spec.generator.condition_shape
    weight = next(branch.parameters())
    (folder / "diffusers").mkdir()

    def generate() -> int:
        for start in range(0, options.prompts, options.batch_size):
            seeds = range(start, min(options.prompts, start + options.batch_size))
            embeds = torch.randn(len(seeds), *shape, device=weight.device, dtype=weight.dtype)
            pictures = pipe(
                prompt_embeds=embeds,
                negative_prompt_embeds=torch.zeros_like(embeds),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=options.steps,
                guidance_scale=GUIDANCE,
            ).images
            for seed, picture in zip(seeds, pictures, strict=True):
                picture.save(folder / "diffusers" / f"{seed}.png")
        return options.prompts

    return generate


def run(args: Sequence[str]) -> int:
    """Run both sides in turn; returns the exit code."""
    options = parse(Options, prog="python benchmarks/generate.py", args=args)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _random_run(folder / "run", _preset(options))
        assistant = GeneratingAssistant.open(folder / "run")
        settings = GenerationSettings(
            steps=options.steps, guidance_scale=GUIDANCE, max_new_tokens=1
        )
        samples = [_prompt(number) for number in range(options.prompts)]
        replier = assistant.replier(settings, batch=options.batch_size)
        _ask_for_pictures(replier.model, replier, samples)
        sides: dict[str, Callable[[], int]] = {
            "ours": partial(_ours, replier, samples, options.batch_size, folder),
            "diffusers": _diffusers(replier.model, options, folder),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(options.rounds + 1):
            for side, generate in sides.items():
                started = time.perf_counter()
                if generate() != options.prompts:
                    raise UserError(f"{side} did not generate a picture for each prompt")
                if number:  # the first warms up
                    rates[side].append(options.prompts / (time.perf_counter() - started))
    _print(options, rates)
    return 0


def _print(options: Options, rates: Mapping[str, Sequence[float]]) -> None:
    table = Table("side", "pictures per second", "of each round")
    for side, each in rates.items():
        table.add_row(side, f"{median(each):.3f}", ", ".join(f"{rate:.3f}" for rate in each))
    Console().print(table)
    medians = {side: median(each) for side, each in rates.items()}
    ratio = medians["ours"] / medians["diffusers"]
    value = asdict(options) | {"pictures_per_second": medians, "ratio": ratio}
    sys.stdout.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main(run)
