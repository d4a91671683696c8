"""Plans at full size: published parameter counts, and memory against what autograd saves."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from etl.cli import UserError
from model.backbones.llama import llama_config
from model.build import build_on_meta
from model.peft.lora import add_lora
from model.presets import PRESETS, system
from model.spec import Lora
from pipeline.forecast import memory
from pipeline.forecast.plan import plan, plan_table

NAMES = [
    # Three generators with their UNets, of which one is of videos: as long as ten others together.
    pytest.param(name, marks=pytest.mark.nightly) if name in ("codi_2", "next_gpt") else name
    for name in PRESETS
]
STAGES = [pytest.param("pt", marks=pytest.mark.nightly), "sft"]
"""SFT is the harder one: what MM-PT trains, and adapters."""

CLIP_LARGE_336 = 303_507_456
VICUNA_7B = 6_738_415_616


def llama_parameters(*, width, mlp, layers, vocabulary=32_000):
    """Count a LLaMA's parameters from its published sizes: untied, no biases, RMSNorm gains."""
    layer = 4 * width * width + 3 * width * mlp + 2 * width
    return 2 * vocabulary * width + layers * layer + width


def clip_parameters(*, width, mlp, layers, patches, patch):
    """Count a CLIP vision tower's: biases everywhere but in the patch embedding, two more norms."""
    layer = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
    return width + 3 * patch * patch * width + (patches + 1) * width + layers * layer + 4 * width


def lora_parameters(*, width, mlp, layers, rank):
    return layers * rank * (4 * 2 * width + 3 * (width + mlp))


def test_the_7b_matches_the_published_model():
    planned = plan(system("llava_1_5_7b"), "pt", 8)
    assert planned.components == {
        "encoder": CLIP_LARGE_336,
        "projector": 20_979_712,
        "backbone": VICUNA_7B,
        "adapters": 0,
    }
    assert planned.total == 7_062_902_784
    assert planned.trainable == 20_979_712
    tuned = plan(system("llava_1_5_7b"), "sft", 8)
    assert tuned.components["adapters"] == 319_815_680
    assert tuned.trainable == 20_979_712 + 319_815_680


def test_the_formulas_give_the_published_7b():
    assert llama_parameters(width=4096, mlp=11_008, layers=32) == VICUNA_7B
    tower = clip_parameters(width=1024, mlp=4096, layers=24, patches=24 * 24, patch=14)
    assert tower == CLIP_LARGE_336


def test_the_13b_matches_the_published_sizes():
    planned = plan(system("llava_1_5_13b"), "sft", 8)
    projector = 1024 * 5120 + 5120 + 5120 * 5120 + 5120
    adapters = lora_parameters(width=5120, mlp=13_824, layers=40, rank=128)
    assert planned.components == {
        "encoder": CLIP_LARGE_336,
        "projector": projector,
        "backbone": llama_parameters(width=5120, mlp=13_824, layers=40),
        "adapters": adapters,
    }
    assert planned.trainable == projector + adapters


def test_tokens_of_a_sample():
    assert plan(system("llava_1_5_7b"), "pt", 8).tokens == {
        "image": 576,
        "text": 2048 - 576,
        "total": 2048,
    }
    shorter = plan(system("llava_1_5_7b"), "pt", 8, tokens=600)
    assert shorter.tokens["text"] == 24
    assert shorter.total_gpu_bytes < plan(system("llava_1_5_7b"), "pt", 8).total_gpu_bytes


@pytest.mark.parametrize(
    ("gpus", "tokens", "message"),
    [
        (0, None, "--gpus: 0"),
        (8, 576, "more than the media's 576"),
        (8, 2049, "at most the stage's max_tokens 2048"),
    ],
)
def test_mistakes_are_reported(gpus, tokens, message):
    with pytest.raises(UserError, match=message):
        plan(system("llava_1_5_7b"), "pt", gpus, tokens=tokens)


def test_planning_allocates_no_weights():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan(system("llava_1_5_13b"), "sft", 8)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 1e9  # the weights would be 26 GB


def with_config(name, stage="pt", **changes):
    preset = system("llava_1_5_7b")
    return replace(preset, **{stage: replace(preset.stage(stage), ds_config=name, **changes)})


def test_zero_partitions_as_configured():
    second = plan(with_config("zero2"), "pt", 8).gpu_bytes
    third = plan(with_config("zero3"), "pt", 8).gpu_bytes
    total, trainable = 7_062_902_784, 20_979_712
    assert second["weights"] == 2 * total
    assert third["weights"] == pytest.approx(2 * total / 8, rel=0.01)
    assert second["gathered weights"] == 0
    # Those in use, and once more the last 50 million in the buffer that they are copied from.
    assert third["gathered weights"] == 2 * (1_000_000_000 + 50_000_000)
    assert plan(with_config("zero3"), "pt", 1).gpu_bytes["gathered weights"] == 0
    for gpu in (second, third):
        assert gpu["gradients"] == pytest.approx(4 * trainable / 8)
        assert gpu["optimizer states"] == pytest.approx(12 * trainable / 8)
    assert second["activations"] < third["activations"]  # ZeRO-3's linear layers save inputs


def test_offload_moves_states_to_the_host():
    planned = plan(with_config("zero3_offload"), "pt", 8)
    assert planned.gpu_bytes["optimizer states"] == planned.gpu_bytes["gradients"] == 0
    assert planned.gpu_bytes["weights"] < 10e6  # norms and biases stay
    assert planned.host_bytes["weights"] == pytest.approx(2 * planned.total / 8, rel=0.01)
    assert planned.host_bytes["optimizer states"] == pytest.approx(12 * planned.trainable / 8)


def test_all_weights_are_there_before_they_are_partitioned():
    planned = plan(with_config("zero3", micro_batch=1, recompute=True), "pt", 64)
    assert planned.start_bytes == 2 * planned.total
    assert planned.total_gpu_bytes == planned.start_bytes > sum(planned.gpu_bytes.values())


def test_ranks_on_cpus_have_everything_in_the_hosts_memory():
    offloaded = plan(with_config("zero3_offload"), "pt", 8)
    planned = plan(with_config("zero3_offload"), "pt", 8, on_cpu=True)
    assert planned.host_bytes == {}
    parts = sum(offloaded.gpu_bytes.values()) + sum(offloaded.host_bytes.values())
    gloo = 2 * 50_000_000  # of the weights that are gathered ahead, in bfloat16
    assert sum(planned.gpu_bytes.values()) == parts + gloo


def test_recomputation_saves_activations():
    saved = plan(with_config("zero3", recompute=False), "pt", 8).gpu_bytes["activations"]
    recomputed = plan(with_config("zero3", recompute=True), "pt", 8).gpu_bytes["activations"]
    assert recomputed < saved / 10


SMALL = replace(
    system("llava_1_5_7b").model.backbone, width=256, mlp_width=688, heads=8, kv_heads=8, layers=1
)


def saved_bytes_per_token(spec, *, dtype, tokens, trainable, lora=None):
    """Run one layer, and add up the distinct storages that autograd saves."""
    config = llama_config(spec)
    config._attn_implementation = "sdpa"
    holder = nn.Module()
    holder.layer = LlamaDecoderLayer(config, 0)
    holder.requires_grad_(trainable)
    if lora is not None:
        add_lora(holder, lora)
    holder.to(dtype).train()
    batch = 2
    inputs = torch.randn(batch, tokens, spec.width, dtype=dtype, requires_grad=True) * 1.0
    rotary = LlamaRotaryEmbedding(config)(inputs, torch.arange(tokens)[None])
    mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool).tril()
    inputs_of_layer = {
        t.untyped_storage().data_ptr() for t in (*holder.parameters(), *rotary, mask)
    }
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs_of_layer:
            saved[storage.data_ptr()] = tensor  # keeps it alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        holder.layer(inputs, attention_mask=mask, position_embeddings=rotary)
    return sum(t.untyped_storage().nbytes() for t in saved.values()) / (batch * tokens)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("trainable", "adapters"),
    [(False, False), (True, False), (False, True)],
    ids=["frozen", "trainable", "adapters of frozen"],
)
def test_a_layer_saves_the_forecast_bytes(precision, trainable, adapters):
    tokens = 64
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    lora = Lora(rank=16, alpha=32, dropout=0.0) if adapters else None
    stage = replace(system("llava_1_5_7b").pt, precision=precision, peft=lora)
    sample = memory.SampleProfile(
        tokens=tokens, targets=0, media=1, projectors={}, trains_backbone=trainable
    )
    predicted = memory.layer_bytes(SMALL, stage, sample, linear_saves=False)
    measured = saved_bytes_per_token(
        SMALL, dtype=dtype, tokens=tokens, trainable=trainable, lora=lora
    )
    assert predicted == pytest.approx(measured, rel=0.02)


def test_dropout_in_adapters_saves_the_forecast_bytes():
    """On a GPU the mask is one byte per element; on a CPU it has the precision of its input."""
    lora = Lora(rank=16, alpha=32, dropout=0.05)
    stage = replace(system("llava_1_5_7b").pt, precision="bf16", peft=lora)
    sample = memory.SampleProfile(
        tokens=64, targets=0, media=1, projectors={}, trains_backbone=False
    )
    predicted = memory.layer_bytes(SMALL, stage, sample, linear_saves=False)
    masks = 6 * SMALL.width + SMALL.mlp_width
    measured = saved_bytes_per_token(
        SMALL, dtype=torch.bfloat16, tokens=64, trainable=False, lora=lora
    )
    assert predicted + masks == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("name", ["llava_1_5_7b", "llava_1_5_13b"])
def test_no_published_weight_is_between_our_persistence_threshold_and_deepspeeds(name):
    """So the lower threshold of ds_configs/zero3.json costs nothing."""
    preset = system(name)
    sizes = [w.numel() for w in build_on_meta(preset.model, preset.sft).parameters()]
    assert not [size for size in sizes if 1e4 < size <= 1e5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_can_be_planned_and_printed(name, stage):
    planned = plan(system(name), stage, 2)
    printed = planned.to_json()
    parameters = printed["parameters"]
    assert parameters["total"] == sum(parameters["components"].values())
    learning = printed["optimizer"].values()
    assert parameters["trainable"] == sum(part["parameters"] for part in learning)
    assert printed["bytes_per_gpu"]["total"] > parameters["total"] / 2
    console = Console(width=100)
    with console.capture() as captured:
        console.print(plan_table(planned))
    assert f"{parameters['total']:,}" in captured.get()


def test_it_prints_nothing_but_json():
    """Without a GPU DeepSpeed would print a remark on that to stdout."""
    bare = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "pipeline", "plan", "digits"]
    command += ["--stage", "pt", "--gpus", "2", "--json"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["preset"] == "digits"
