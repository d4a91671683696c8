"""Media in the answers of GRPO: conditions sampled around the policy's, and the media generated.

Each condition is an action of the policy's, a Gaussian around what it says (`condition_logps` of
`model.preference_lm`); the frozen generator then makes the medium as it does at inference. What is
random is keyed by the run's seed, the sample's place in the run, the answer's number and the
medium's: a killed run gives the same media again, on any number of ranks.

Shapes: l and w, positions and width of a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etl.storage.schema import Medium, sha256
from model.batch_invariance import batch_invariant
from model.output_branch import OutputBranch
from model.preference_lm import PreferenceLM
from model.sampling import token_rng
from model.signal_decoding import Condition
from model.spec.generators import SoundDiffusion
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.generation_targets import GenerationTarget
from pipeline.distributed import device, max_over_ranks
from pipeline.generate.replies import MIMES, GeneratedMedium

_TOGETHER = 16
"""Media that a generator makes at a time, at most."""
_CONDITION, _FIRST_NOISE = 1, 2
"""What a seed is for."""


@dataclass(frozen=True, kw_only=True)
class SampledMedium:
    """A medium of a sampled answer, before the generator has made it.

    Args:
        start, end: of its signal tokens in the answer, as of a slice.
        target: what the update reads: the condition, and the noise in it.
        seed: of the generator's first noise.
    """

    start: int
    end: int
    target: GenerationTarget
    seed: int


def sample_condition(
    branch: OutputBranchSpec, medium: Condition, *, noise: float, key: tuple[int, int, int, int]
) -> SampledMedium:
    """Return a medium whose condition is sampled from a Gaussian around the policy's.

    All answers to a prompt share the generator's first noise, as in DanceGRPO (Xue et al. 2025,
    arXiv:2505.07818): what then differs in their rewards is owing to what the policy has done.

    Args:
        branch: of the medium.
        medium: with H, the policy's condition.
        noise: standard deviation relative to the root mean square of H.
        key: seed of the run, position of the sample, number of the answer, number of the medium.
    """
    seed, position, answer, number = key
    rng = token_rng(_seed((seed, position, answer), _CONDITION, number))
    condition_lw = medium.condition_1lw[0].float().cpu()
    deviation = noise * float(condition_lw.square().mean().sqrt())
    sampled_lw = condition_lw + deviation * torch.randn(
        condition_lw.shape, generator=rng, device="cpu"
    )
    return SampledMedium(
        start=medium.start,
        end=medium.start + branch.signals,
        target=GenerationTarget(
            kind=branch.kind, seed=0, cached_embeds=sampled_lw, noise=deviation
        ),
        seed=_seed((seed, position), _FIRST_NOISE, number),
    )


def _seed(key: tuple[int, ...], purpose: int, number: int) -> int:
    sequence = np.random.SeedSequence(key, spawn_key=(purpose, number))
    return int(sequence.generate_state(1)[0])


@torch.no_grad()
def generate_media(
    model: PreferenceLM, sampled: Sequence[SampledMedium], *, synced: bool
) -> list[Medium]:
    """Return the media, encoded as files, in the order of the conditions; a collective.

    Args:
        model: the policy; its generators are used.
        sampled: conditions of this rank.
        synced: whether the ranks must call the generators together, as under ZeRO-3.
    """
    media: dict[int, Medium] = {}
    for kind, branch in model.output_branches().items():
        own = [number for number, one in enumerate(sampled) if one.target.kind == kind]
        count = max_over_ranks(len(own)) if synced else len(own)
        if not count:
            continue
        with batch_invariant(branch):
            negative_1lw = branch.negative_condition()
            for first in range(0, count, _TOGETHER):
                part = own[first : first + _TOGETHER]
                made = _generate(branch, [sampled[number] for number in part], negative_1lw)
                media |= dict(zip(part, made, strict=True))
    return [media[number] for number in range(len(sampled))]


def _generate(
    branch: OutputBranch, sampled: Sequence[SampledMedium], negative_1lw: Tensor
) -> list[Medium]:
    """Return the media of one kind, generated together; without any, a dummy is, for nothing."""
    spec = branch.spec.generator
    conditions = [
        one.target.cached_embeds for one in sampled if one.target.cached_embeds is not None
    ]
    condition_glw = torch.stack(conditions or [torch.zeros(spec.condition_shape)])
    seeds = [one.seed for one in sampled]
    values = branch.generator.sample(
        condition_glw.to(device()),
        seeds=seeds or [0],
        steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        negative_glw=negative_1lw.expand(len(condition_glw), -1, -1),
    ).cpu()
    rate = spec.sample_rate if isinstance(spec, SoundDiffusion) else None
    media = []
    for seed, each in zip(seeds, values[: len(seeds)], strict=True):
        made = GeneratedMedium(kind=branch.spec.modality, values=each, seed=seed, sample_rate=rate)
        data = made.encoded()
        media.append(Medium(kind=made.kind, data=data, mime=MIMES[made.kind], sha256=sha256(data)))
    return media
