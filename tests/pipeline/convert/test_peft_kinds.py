"""Every kind of adapters is exported, merged where it can be, and read back with equal logits."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from model import load
from model.peft.lora import merge_adapters, unmerge_adapters
from model.spec import Lora, SpecError
from model.spec.peft import Adapter, Peft, Prefix, QLora
from pipeline.convert.export import export_run
from pipeline.evaluate.evaluate import load_run
from tests.runs import random_run

TARGETS = ("q_proj", "v_proj", "down_proj")
LORA = Lora(rank=4, alpha=8, dropout=0.1, targets=TARGETS)
QLORA = QLora(rank=4, alpha=8, targets=TARGETS)
KINDS: dict[str, Peft] = {
    "lora": LORA,
    "rslora": replace(LORA, use_rslora=True),
    "dora": replace(LORA, use_dora=True),
    "qlora": QLORA,
    "qdora": replace(QLORA, use_rslora=True, use_dora=True),
    "prefix": Prefix(length=3, hidden=8),
    "adapter": Adapter(bottleneck=4),
}
MERGED = ("lora", "rslora", "dora", "qlora", "qdora")
IN_PEFT = tuple(kind for kind in KINDS if kind != "adapter")


def kinds(*default: str, of: Sequence[str] = tuple(KINDS)) -> pytest.MarkDecorator:
    """Parametrize a test by kinds, nightly but for some."""
    nightly = {kind: () if kind in default else pytest.mark.nightly for kind in of}
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=marks) for kind, marks in nightly.items()]
    )


IDS = torch.tensor([[1, 300, 301, 302, 7, 9]])


def run_of(kind: str, folder: Path) -> nn.Module:
    """Write a run with random adapters; return its backbone."""
    spec = KINDS[kind]
    trainable = (f"backbone.*{spec.parameter_marker}*",)
    config = random_run(folder, "digits", peft=spec, trainable=trainable)
    return load_run(config, folder).eval().backbone


@torch.no_grad()
def logits(backbone: nn.Module) -> Tensor:
    found: Tensor = backbone(IDS, use_cache=False).logits
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@kinds("dora", "qlora", "prefix", "adapter")
def test_exported_adapters_give_the_run_s_logits(kind: str, tmp_path: Path) -> None:
    expected = logits(run_of(kind, tmp_path / "run"))
    for adapters in ("auto", "separate"):
        export_run(tmp_path / "run", tmp_path / adapters, layout="mmloom", adapters=adapters)
        spec, module, _ = load(tmp_path / adapters)
        assert (spec.stage.peft is None) == (adapters == "auto" and kind in MERGED)
        assert (tmp_path / adapters / "adapter").is_dir() == (adapters == "separate")
        close(logits(module.backbone), expected)


@kinds("dora", "qlora", "prefix", of=IN_PEFT)
def test_plain_peft_loads_separate_adapters(kind: str, tmp_path: Path) -> None:
    backbone = run_of(kind, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", layout="mmloom", adapters="separate")
    base = plain_base(tmp_path / "out", four_bits=kind in ("qlora", "qdora"))
    alone = logits(base)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    with torch.no_grad():
        found = theirs(IDS).logits
    close(found, logits(backbone))
    assert not torch.allclose(found, alone, atol=1e-2)


def plain_base(exported: Path, *, four_bits: bool) -> LlamaForCausalLM:
    """Return the base that an adapter folder names, as a user of transformers opens it."""
    settings = json.loads((exported / "adapter" / "adapter_config.json").read_bytes())
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    options = {"quantization_config": quantization} if four_bits else {}
    base = AutoModelForCausalLM.from_pretrained(
        settings["base_model_name_or_path"], dtype=torch.float32, **options
    )
    return base.eval()


@kinds("dora", "prefix")
def test_adapters_are_merged_and_unmerged_or_say_why_not(kind: str, tmp_path: Path) -> None:
    backbone = run_of(kind, tmp_path / "run")
    if kind in ("lora", "rslora", "dora"):
        expected, weight = logits(backbone), backbone.model.layers[0].self_attn.q_proj.weight
        before = weight.clone()
        merge_adapters(backbone)
        assert not torch.allclose(weight, before, atol=1e-2)
        close(logits(backbone), expected)
        unmerge_adapters(backbone)
        torch.testing.assert_close(weight, before, atol=1e-5, rtol=1e-5)
        close(logits(backbone), expected)
        return
    with pytest.raises(SpecError, match=r"cannot be merged in place|only low-rank adapters"):
        merge_adapters(backbone)
    if kind not in MERGED:
        with pytest.raises(SpecError, match=f"--adapters merged: '{kind}' has no weight that"):
            export_run(tmp_path / "run", tmp_path / "out", adapters="merged")
        assert not (tmp_path / "out").exists()


def test_a_prefix_before_learned_positions_stays_in_the_model(tmp_path: Path) -> None:
    """peft moves the text by the prefix's length, which OPT's positions feel."""
    random_run(tmp_path / "run", "blip_2", peft=Prefix(length=3), trainable=("backbone.*prefix*",))
    with pytest.raises(SpecError, match="OPTForCausalLM, which has no rotary positions"):
        export_run(tmp_path / "run", tmp_path / "out", adapters="separate")
    assert not (tmp_path / "out").exists()
    export_run(tmp_path / "run", tmp_path / "out")
