"""Train the 3D encoder of the digits toy world.

    python -m pipeline.quickstart.points_encoder --data DIR --test DIR

A small PointBERT learns from dialogues about point clouds to answer each question from its one
token, by a linear head per question. It is saved under the names of ULIP's published checkpoint.
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
from etl.storage.schema import Sample, words_of
from etl.storage.shards import ShardSet
from model.encoders import pointbert
from model.presets.digits import points_encoder
from pipeline.data.readers import read_points

log = logging.getLogger(__name__)

_BATCH = 64
_NOT_ASKED = -100
_AUGMENTATION = 0.08  # standard deviation of the elements of a random linear map
_POSITION_STD = 1.5
_PUBLISHED_NAMES = {
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
"""Parts of our names → parts of the published names, the reverse of the encoder's mapping."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the 3D encoder of the digits toy world; five minutes on one core."""

    data: Path
    """Shards of dialogues about clouds, as `python -m etl.digits --shards points` writes them."""
    test: Path
    """Shards of questions about held-out clouds."""
    output: Path = Path(points_encoder().weights)
    """The safetensors file."""
    steps: int = 400
    """Batches of 64 clouds."""
    seed: int = 0
    """Of the weights and the order of samples."""


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """All clouds (N, P, C), and by question the index of each cloud's answer, or `_NOT_ASKED`."""

    clouds: Tensor
    answers: Mapping[str, Tensor]


def run(args: Sequence[str]) -> None:
    """Train and save the encoder."""
    options = parse(Options, prog="python -m pipeline.quickstart.points_encoder", args=args)
    torch.manual_seed(options.seed)
    dialogues = ShardSet([options.data])
    samples = [dialogues[number] for number in range(len(dialogues))]
    heads = _answers_by_question(samples)
    train = _load(samples, heads)
    held_out = ShardSet([options.test])
    test = _load([held_out[number] for number in range(len(held_out))], heads)
    model = CloudReader({question: len(answers) for question, answers in heads.items()})
    _train(model, train, test, options)
    state = {_published_name(name): tensor for name, tensor in model.encoder.state_dict().items()}
    with atomic_file(options.output) as stream:
        stream.write(save(state))


class CloudReader(nn.Module):
    """The encoder and a linear head per question; only the encoder is saved."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        super().__init__()
        spec = points_encoder()
        self.encoder = pointbert.build(spec, weights="random", dtype=torch.float32)
        _initialise(self.encoder)
        self.heads = nn.ModuleList(nn.Linear(spec.width, number) for number in answers.values())

    def forward(self, clouds_bpc: Tensor) -> list[Tensor]:
        """Return the logits (b, answers) of every question."""
        token_bd = self.encoder(clouds_bpc)[:, 0]
        return [head(token_bd) for head in self.heads]


def _initialise(encoder: pointbert.PointBertEncoder) -> None:
    """Reinitialize the weights, for a narrow encoder that is trained for minutes.

    With the published initialization it takes longer than that to distinguish positions.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    nn.init.normal_(encoder.positions.get_parameter("0.weight"), std=_POSITION_STD)
    nn.init.uniform_(encoder.positions.get_parameter("0.bias"), -_POSITION_STD, _POSITION_STD)


def _answers_by_question(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return every question with the sorted set of its answers."""
    answers: dict[str, set[str]] = {}
    for sample in samples:
        for question, answer in _questions(sample):
            answers.setdefault(question, set()).add(answer)
    return {question: sorted(answers[question]) for question in sorted(answers)}


def _questions(sample: Sample) -> list[tuple[str, str]]:
    texts = [words_of(turn.text).strip() for turn in sample.turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _load(samples: Sequence[Sample], heads: Mapping[str, list[str]]) -> Clouds:
    spec = points_encoder()
    clouds = [pointbert.preprocess(spec, read_points(sample.media[0].data)) for sample in samples]
    answers = {question: torch.full((len(samples),), _NOT_ASKED) for question in heads}
    for row, sample in enumerate(samples):
        for question, answer in _questions(sample):
            answers[question][row] = heads[question].index(answer)
    return Clouds(clouds=torch.cat(clouds), answers=answers)


def _train(model: CloudReader, train: Clouds, test: Clouds, options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    optimizers = _optimizers(model)
    schedules = [LambdaLR(o, partial(_lr_factor, steps=options.steps)) for o in optimizers]
    for step in range(options.steps):
        model.train()
        batch = torch.from_numpy(rng.integers(len(train.clouds), size=_BATCH))
        logits = model(_augment(train.clouds[batch]))
        loss = torch.stack(
            [
                F.cross_entropy(one, answers[batch], ignore_index=_NOT_ASKED)
                for one, answers in zip(logits, train.answers.values(), strict=True)
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
    """Return Muon (Jordan et al. 2024) for the layers' matrices and AdamW for the rest."""
    parameters = list(model.named_parameters())
    matrices = [p for name, p in parameters if p.ndim == 2 and "blocks" in name]
    others = [p for name, p in parameters if p.ndim != 2 or "blocks" not in name]
    return [
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0),
    ]


def _lr_factor(step: int, steps: int) -> float:
    """Return the learning rate's factor: 20 steps of warm-up times a cosine decay to zero."""
    return min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2


def _augment(clouds_bpc: Tensor) -> Tensor:
    """Rotate, stretch and shear each cloud a little at random."""
    map_b33 = torch.eye(3) + _AUGMENTATION * torch.randn(len(clouds_bpc), 3, 3)
    return torch.cat([clouds_bpc[..., :3] @ map_b33, clouds_bpc[..., 3:]], dim=-1)


@torch.no_grad()
def _accuracy(model: CloudReader, test: Clouds) -> dict[str, float]:
    """Return the share of correct answers to each question."""
    model.eval()
    logits = [model(clouds) for clouds in test.clouds.split(_BATCH)]
    scores = {}
    for number, (question, answers) in enumerate(test.answers.items()):
        predicted = torch.cat([batch[number] for batch in logits]).argmax(-1)
        asked = answers != _NOT_ASKED
        scores[question] = round(float((predicted == answers)[asked].float().mean()), 3)
    return scores


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES.items():
        if name.startswith(ours) or ours.startswith("."):
            name = name.replace(ours, published, 1)
    return f"module.point_encoder.{name}"


if __name__ == "__main__":
    main(run)
