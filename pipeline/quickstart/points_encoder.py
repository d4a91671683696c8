"""Train the digits world's 3D encoder.

    python -m pipeline.quickstart.points_encoder --data DIR --test DIR

A small PointBERT learns from dialogues about clouds to answer each of their questions from its one
token, by a linear head a question. It is kept under the names of ULIP's published checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from etl.cli import main, parse
from etl.storage.atomic import atomic_file
from etl.storage.schema import PLACEHOLDER_PATTERN, Sample
from etl.storage.shards import ShardSet
from model.encoders import pointbert
from model.presets.digits import points_encoder
from pipeline.data.readers import read_points

log = logging.getLogger(__name__)

_BATCH = 64
_UNASKED = -100
_BENT = 0.08  # standard deviation of the nine numbers that turn, stretch and shear a cloud
_PLACE_STD = 1.5
_THEIRS = {
    "patches.points.": "encoder.first_conv.",
    "patches.patch.": "encoder.second_conv.",
    "reduce.": "reduce_dim.",
    "cls_position": "cls_pos",
    "positions.": "pos_embed.",
    "blocks.": "blocks.blocks.",
    ".attention.qkv.": ".attn.qkv.",
    ".attention.out.": ".attn.proj.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
}
"""Parts of our names → the published ones', the other way round than the encoder reads them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the digits world's 3D encoder; five minutes on a core."""

    data: Path
    """Shards of dialogues about clouds: `python -m etl.digits --shards points` writes them."""
    test: Path
    """Shards of questions about held-out ones."""
    output: Path = Path(points_encoder().weights)
    """The safetensors file."""
    steps: int = 400
    """Batches of 64 clouds."""
    seed: int = 0
    """Of weights and order."""


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """All clouds (N, P, C), and per question the number of each cloud's answer, or `_UNASKED`."""

    clouds: Tensor
    answers: Mapping[str, Tensor]


def run(args: Sequence[str]) -> None:
    """Train and keep the encoder."""
    options = parse(Options, prog="python -m pipeline.quickstart.points_encoder", args=args)
    torch.manual_seed(options.seed)
    asked = ShardSet([options.data])
    samples = [asked[number] for number in range(len(asked))]
    heads = _candidates(samples)
    train = _load(samples, heads)
    held_out = ShardSet([options.test])
    test = _load([held_out[number] for number in range(len(held_out))], heads)
    model = CloudReader({question: len(answers) for question, answers in heads.items()})
    _train(model, train, test, options)
    state = {_published(name): tensor for name, tensor in model.encoder.state_dict().items()}
    with atomic_file(options.output) as stream:
        stream.write(save(state))


class CloudReader(nn.Module):
    """The encoder and the linear heads that teach it; only the encoder is kept."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        super().__init__()
        spec = points_encoder()
        self.encoder = pointbert.build(spec, weights="random", dtype=torch.float32)
        _initialise(self.encoder)
        self.heads = nn.ModuleList(nn.Linear(spec.width, number) for number in answers.values())

    def forward(self, clouds_bpc: Tensor) -> list[Tensor]:
        """Return logits (b, answers) of every question."""
        token_bd = self.encoder(clouds_bpc)[:, 0]
        return [head(token_bd) for head in self.heads]


def _initialise(encoder: pointbert.PointBertEncoder) -> None:
    """Draw weights anew, for a narrow encoder that has minutes to learn.

    With the published ones it takes longer to tell places apart than all of the training here.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    nn.init.normal_(encoder.positions.get_parameter("0.weight"), std=_PLACE_STD)
    nn.init.uniform_(encoder.positions.get_parameter("0.bias"), -_PLACE_STD, _PLACE_STD)


def _candidates(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return every question with all answers that it gets, in order."""
    found: dict[str, set[str]] = {}
    for sample in samples:
        for question, answer in _asked(sample):
            found.setdefault(question, set()).add(answer)
    return {question: sorted(found[question]) for question in sorted(found)}


def _asked(sample: Sample) -> list[tuple[str, str]]:
    texts = [PLACEHOLDER_PATTERN.sub("", turn.text).strip() for turn in sample.turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _load(samples: Sequence[Sample], heads: Mapping[str, list[str]]) -> Clouds:
    spec = points_encoder()
    clouds = [pointbert.preprocess(spec, read_points(sample.media[0].data)) for sample in samples]
    answers = {question: torch.full((len(samples),), _UNASKED) for question in heads}
    for row, sample in enumerate(samples):
        for question, answer in _asked(sample):
            answers[question][row] = heads[question].index(answer)
    return Clouds(clouds=torch.cat(clouds), answers=answers)


def _train(model: CloudReader, train: Clouds, test: Clouds, options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    optimizers = _optimizers(model)
    schedules = [LambdaLR(o, partial(_slope, steps=options.steps)) for o in optimizers]
    for step in range(options.steps):
        model.train()
        chosen = torch.from_numpy(rng.integers(len(train.clouds), size=_BATCH))
        logits = model(_bent(train.clouds[chosen]))
        loss = torch.stack(
            [
                F.cross_entropy(found, right[chosen], ignore_index=_UNASKED)
                for found, right in zip(logits, train.answers.values(), strict=True)
            ]
        ).sum()
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            log.info("points step %d: loss %.4f, %s", step, loss.item(), _accuracy(model, test))


def _optimizers(model: CloudReader) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest."""
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim == 2 and "blocks" in name]
    others = [p for name, p in parameters if p.ndim != 2 or "blocks" not in name]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0),
    ]


def _slope(step: int, steps: int) -> float:
    """Warm up over 20 steps while falling to zero as a cosine does."""
    return min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2


def _bent(clouds_bpc: Tensor) -> Tensor:
    """Return clouds turned, stretched and sheared a little, each in its own way."""
    bend_b33 = torch.eye(3) + _BENT * torch.randn(len(clouds_bpc), 3, 3)
    return torch.cat([clouds_bpc[..., :3] @ bend_b33, clouds_bpc[..., 3:]], dim=-1)


@torch.no_grad()
def _accuracy(model: CloudReader, test: Clouds) -> dict[str, float]:
    """Return the share of right answers to each question."""
    model.eval()
    parts = [model(part) for part in test.clouds.split(_BATCH)]
    scores = {}
    for number, (question, right) in enumerate(test.answers.items()):
        found = torch.cat([part[number] for part in parts]).argmax(-1)
        asked = right != _UNASKED
        scores[question] = round(float((found == right)[asked].float().mean()), 3)
    return scores


def _published(name: str) -> str:
    for ours, theirs in _THEIRS.items():
        if name.startswith(ours) or ours.startswith("."):
            name = name.replace(ours, theirs, 1)
    return f"module.point_encoder.{name}"


if __name__ == "__main__":
    main(run)
