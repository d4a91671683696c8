"""Every kind of adapters trains on real ranks, and is read back with the trained model's logits."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from model import load
from model.spec import Lora
from model.spec.peft import Adapter, Peft, Prefix, QLora
from pipeline.config.run_config import read_run
from pipeline.convert.export import export_run
from pipeline.evaluate.evaluate import load_run
from tests.cluster.ranks import losses, run_ranks
from tests.worlds import instruct_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LORA = Lora(rank=4, alpha=8, dropout=0.0)
QLORA = QLora(rank=4, alpha=8, dropout=0.0, learning_rate=None)
KINDS: dict[str, Peft] = {
    "lora": LORA,
    "rslora": replace(LORA, use_rslora=True),
    "dora": replace(LORA, use_dora=True),
    "qlora": QLORA,
    "qdora": replace(QLORA, use_dora=True),
    "prefix": Prefix(length=3, hidden=8, learning_rate=None),
    "adapter": Adapter(bottleneck=4, learning_rate=None),
}
SMALL = ("--global-batch", 8, "--micro-batch", 2, "--max-steps", 4, "--save-every", 100)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return instruct_shards(tmp_path_factory.mktemp("data") / "dialogues", 16)


def combinations() -> Iterator[object]:
    """Kinds and ZeRO stages, all nightly but DoRA under ZeRO-3, which reads others' weights."""
    for kind, peft in KINDS.items():
        for zero in ("zero2", "zero3"):
            if zero == "zero3" and not peft.zero3:
                continue  # refused in one line: tests/test_ds_configs.py
            nightly = pytest.mark.nightly(minutes=1)
            marks = [] if (kind, zero) == ("dora", "zero3") else [nightly]
            yield pytest.param(kind, zero, marks=marks)


def train(
    data: Path, folder: Path, kind: str, zero: str, *, ranks: int, **more: str
) -> list[float]:
    peft = KINDS[kind]
    trainable = [f"backbone.*{peft.parameter_marker}*", "inputs.image.projector.*"]
    words = ("--set", f"sft.peft={json.dumps(asdict(peft))}")
    words += ("--set", f"sft.trainable={json.dumps(trainable)}")
    for name, value in more.items():
        words += (f"--{name.replace('_', '-')}", value)
    outcome = run_ranks(
        *(ranks, "sft", "digits", "--scale", "tiny", "--data", data, "--output", folder),
        *(*SMALL, *words, "--ds-config", zero),
    )
    assert outcome.code == 0, outcome.stderr
    return losses(folder)


@torch.no_grad()
def logits(backbone: nn.Module) -> Tensor:
    found: Tensor = backbone(torch.tensor([[1, 65, 66, 67, 68]]), use_cache=False).logits
    return found


@pytest.mark.parametrize(("kind", "zero"), combinations())
def test_adapters_train_and_are_read_back(kind: str, zero: str, data: Path, tmp_path: Path) -> None:
    curves = [train(data, tmp_path / str(ranks), kind, zero, ranks=ranks) for ranks in (1, 2)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][-1] < curves[0][0]
    run = tmp_path / "2"
    backbone = load_run(read_run(run), run).eval().backbone
    expected = logits(backbone)
    marker = KINDS[kind].parameter_marker
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if marker in name:
                weight.zero_()
    assert not torch.allclose(logits(backbone), expected, atol=1e-3)
    choices: tuple[Literal["auto", "separate"], ...] = ("auto", "separate")
    for adapters in choices:
        export_run(run, tmp_path / adapters, layout="mmloom", adapters=adapters)
        found = logits(load(tmp_path / adapters).module.backbone)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
