"""Packed samples give the same loss and gradients as separate ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from etl.storage.shards import ShardSet
from model.build import build, build_tokenizer
from model.freeze import set_trainable
from model.multimodal_lm import MultimodalLM
from model.packing import attend_by_sample
from model.presets import system
from model.spec import ModelSpec, Stage
from model.spec.backbones import Backbone, Glm, Llama, Palm, Qwen
from model.spec.peft import Lora, Peft, Prefix
from pipeline.data.collate import collate, pack
from pipeline.data.encode import Example, SampleEncoder
from tests.worlds import instruct_shards, text_sample

SIZES = {"weights": "", "width": 64, "mlp_width": 128, "layers": 2, "heads": 4}
LLAMA = system("llava").tiny().model.backbone
BACKBONES: dict[str, Backbone] = {
    "llama": LLAMA,
    "qwen": Qwen(**SIZES).tiny(),
    "glm": Glm(**SIZES).tiny(),
    "palm": Palm(**SIZES).tiny(),
}


def rows_of(spec: ModelSpec, folder: Path) -> list[Example]:
    """Return six dialogues of different lengths: with pictures, several turns, or neither."""
    encoder = SampleEncoder(
        spec, build_tokenizer(spec, weights="random"), prompt="chat", max_tokens=300
    )
    shards = ShardSet([instruct_shards(folder, 5)])
    samples = [*(shards[index] for index in range(5)), text_sample(0, 7)]
    return [encoder.encode(sample) for sample in samples]


def learnt(
    model: MultimodalLM, rows: list[Example], *, packed: bool
) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss and every gradient."""
    batch = pack(rows) if packed else collate(rows, pad_id=0, side="right")
    model.zero_grad()
    logits_ov, targets_o, *_ = model(batch)
    loss = F.cross_entropy(logits_ov, targets_o, reduction="sum")
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {name: weight.grad for name, weight in named if weight.grad is not None}


def stage(peft: Peft | None) -> Stage:
    one = system("llava").tiny().sft
    if peft is None:
        return one
    return replace(
        one,
        peft=peft,
        trainable=("inputs.image.projector.*", f"backbone.*{peft.parameter_marker}*"),
    )


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_packed_and_padded_samples_give_the_same_loss_and_gradients(
    backbone: str, tmp_path: Path
) -> None:
    spec = replace(system("llava").tiny().model, backbone=BACKBONES[backbone])
    assert spec.supports_packing
    compare(spec, stage(None), tmp_path)


@pytest.mark.parametrize("peft", [Lora(rank=4, alpha=8, dropout=0.0), Prefix(length=3, hidden=8)])
def test_adapters_get_the_same_gradients_from_packed_samples(peft: Peft, tmp_path: Path) -> None:
    compare(system("llava").tiny().model, stage(peft), tmp_path)


def compare(spec: ModelSpec, how: Stage, folder: Path) -> None:
    model = build(spec, how, weights="random", seed=1)
    assert isinstance(model, MultimodalLM)
    set_trainable(model, how.trainable)
    model.double().eval()
    rows = rows_of(spec, folder)
    loss, expected = learnt(model, rows, packed=False)
    packed_loss, found = learnt(model, rows, packed=True)
    assert packed_loss == pytest.approx(loss, rel=1e-7)
    assert found.keys() == expected.keys()
    assert expected
    for name, gradient in expected.items():
        # Norms that are always computed in float32 leave an error of this size.
        close = torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6)
        assert close, (name, (found[name] - gradient).abs().max())


def test_no_sample_attends_to_another(tmp_path: Path) -> None:
    spec = system("llava").tiny().model
    assert isinstance(spec.backbone, Llama)
    model = build(spec, stage(None), weights="random", seed=1)
    assert isinstance(model, MultimodalLM)
    model.eval()
    first, second, third, *_ = rows_of(spec, tmp_path)
    targets = sum(label >= 0 for label in third.labels[1:])
    with torch.no_grad():
        one, *_ = model(pack([first, third]))
        other, *_ = model(pack([second, third]))
    torch.testing.assert_close(one[-targets:], other[-targets:])


def test_packed_samples_are_passed_to_the_kernel_one_by_one_without_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = system("llava").tiny().model
    model = build(spec, stage(None), weights="random", seed=1)
    assert isinstance(model, MultimodalLM)
    rows = rows_of(spec, tmp_path)
    seen: list[tuple[int, object]] = []
    kernel = F.scaled_dot_product_attention

    def watched(query: Tensor, *args: object, **more: object) -> Tensor:
        mask = more.get("attn_mask", args[2] if len(args) > 2 else None)
        seen.append((query.shape[2], mask))
        return kernel(query, *args, **more)

    batch = pack(rows)
    projected = model.media_tokens(batch)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model.compute_logits(batch, projected)
    assert [length for length, _ in seen] == [len(row.ids) for row in rows] * 2  # layers
    assert all(mask is None for _, mask in seen)


class Elements(TorchDispatchMode):
    """Counts the elements of all tensors that operations return."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            self.count += each.numel() if isinstance(each, Tensor) else 0
        return result


def test_the_backward_pass_of_packed_samples_is_linear_in_their_number() -> None:
    """Each slice of a sequence has a gradient as long as the whole: quadratic in the samples."""
    written = {}
    for samples in (8, 16):
        states = [torch.randn(1, 2, 4 * samples, 8, requires_grad=True) for _ in range(3)]
        starts = tuple(range(0, 4 * samples + 1, 4))
        module = torch.nn.Module()
        module.is_causal = True  # type: ignore[assignment]
        attended_bthc, _ = attend_by_sample(module, *states, None, starts)
        with Elements() as elements:
            attended_bthc.sum().backward()
        written[samples] = elements.count
    assert written[16] < 2.2 * written[8]
