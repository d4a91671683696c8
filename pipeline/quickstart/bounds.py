"""What a model's generated media are compared with: a ceiling and a floor.

The ceiling is the frozen generator's own, prompted with the caption itself; the floor is that of an
output projector before its training, in the same model. Both are written as `generate` writes its
replies, with the same seeds, so that the same command judges them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from etl.cli import main, parse
from etl.storage.atomic import atomic_file
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from model.build import OUTPUT_PROJECTORS
from model.generators import latent_diffusion
from model.sampling import seed_of
from model.spec.generators import SoundDiffusion
from model.spec.output_branches import OutputBranchSpec
from pipeline.checkpoint.checkpoints import newest_weights, write_weights
from pipeline.checkpoint.files import read_manifest
from pipeline.config.files import CONFIG_FILE
from pipeline.config.run_config import read_run
from pipeline.data.generation_targets import captions
from pipeline.generate.replies import REPLIES, GeneratedMedium, Reply, reply_line

_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """Let the generators of a run fulfil requests from their captions, without the model."""

    run: Path
    """The run folder."""
    data: Path
    """Shards of requests, each for one medium in its last turn."""
    output: Path
    """Folder for replies.jsonl and the media."""
    seed: int = 0
    """Of the media's first noise."""
    guidance_scale: float | None = None
    """Of classifier-free guidance; 1 is without. Default: each generator's own."""


def run(args: Sequence[str]) -> None:
    """Run the command with command-line arguments."""
    options = parse(Options, prog="python -m pipeline.quickstart.bounds", args=args)
    branches = {b.modality: b for b in read_run(options.run).system.model.outputs}
    requests = ShardSet([options.data])
    samples = [requests[number] for number in range(len(requests))]
    replies: dict[str, Reply] = {}
    for kind, branch in branches.items():
        own = [sample for sample in samples if sample.media[-1].kind == kind]
        prompted = _Prompted(branch, seed=options.seed, guidance_scale=options.guidance_scale)
        for start in range(0, len(own), _BATCH):
            replies |= prompted(own[start : start + _BATCH])
    options.output.mkdir(parents=True, exist_ok=True)
    with atomic_file(options.output / REPLIES) as stream:
        for number, sample in enumerate(samples):
            saved = replies[sample.id].save(options.output, f"{number:06d}")
            stream.write(reply_line(saved))


class _Prompted:
    """A generator that is prompted with the captions of samples' last media."""

    def __init__(
        self, branch: OutputBranchSpec, *, seed: int, guidance_scale: float | None
    ) -> None:
        self._spec, self._seed, self._scale = branch.generator, seed, guidance_scale
        self._tokenizers = latent_diffusion.tokenizers(self._spec, weights="pretrained")
        self._model = latent_diffusion.build(
            self._spec,
            denoising=False,
            decoding=True,
            weights="pretrained",
            dtype=torch.float32,
        ).eval()

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Reply]:
        """Return a reply with one medium for each sample, by its id."""
        spec = self._spec
        texts = [captions(sample.turns, sample.lineage)[-1] for sample in samples]
        ids = [latent_diffusion.caption_ids(spec, self._tokenizers, text) for text in texts]
        seeds = [seed_of(self._seed, sample.id, 0) for sample in samples]
        values = self._model.sample(
            self._model.embed(torch.tensor(ids)),
            seeds=seeds,
            steps=spec.steps,
            guidance_scale=self._scale or spec.guidance_scale,
        )
        rate = spec.sample_rate if isinstance(spec, SoundDiffusion) else None
        return {
            sample.id: Reply(
                id=sample.id,
                text=f"<{spec.media[0]}>",
                media=(
                    GeneratedMedium(kind=spec.media[0], values=one, seed=seed, sample_rate=rate),
                ),
            )
            for sample, one, seed in zip(samples, values, seeds, strict=True)
        }


def with_untrained_projectors(run: Path, output: Path, *, seed: int = 0) -> None:
    """Write a run with the weights of another, but with initial ones of its output projectors.

    Args:
        run: the run folder; it has a checkpoint.
        output: the new run folder.
        seed: of the initial weights.
    """
    file = newest_weights(run)
    weights = load_file(file)
    model = read_run(run).system.model
    torch.manual_seed(seed)
    for branch in model.outputs:
        projector = OUTPUT_PROJECTORS[type(branch.projector)].build(
            branch.projector, model.backbone.width, branch.generator.streams
        )
        for name, tensor in projector.state_dict().items():
            whole = f"outputs.{branch.modality}.projector.{name}"
            if whole in weights:  # all others were never trained
                weights[whole] = tensor.to(weights[whole])
    output.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / CONFIG_FILE, output / CONFIG_FILE)
    write_weights(output, weights, read_manifest(file.parent)["identity"])


if __name__ == "__main__":
    main(run)
