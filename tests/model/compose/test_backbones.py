"""Language models from folders: what their configuration says, and which cannot serve."""

import json

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from model.compose.backbones import backbone_from, lora_targets
from model.spec import SpecError
from tests.published_backbones import CAUSAL, VOCABULARY, save_backbone


@pytest.fixture
def saved(tmp_path):
    return lambda name: save_backbone(name, tmp_path / name)


def test_all_sizes_are_read_from_the_folder(saved):
    spec = backbone_from(str(saved("qwen3")))
    config = CAUSAL["qwen3"]
    assert spec.model_type == "qwen3"
    assert spec.weights.endswith("qwen3")
    assert (spec.width, spec.mlp_width, spec.layers) == (32, 48, 2)
    assert (spec.heads, spec.kv_heads, spec.head_width) == (4, 2, 16)
    assert (spec.vocabulary, spec.max_positions) == (VOCABULARY, 256)
    assert spec.config["rms_norm_eps"] == config.rms_norm_eps


def test_a_size_that_the_file_leaves_out_has_the_default_of_its_class(saved):
    file = saved("phi-2") / "config.json"
    fields = json.loads(file.read_text())
    del fields["vocab_size"]
    file.write_text(json.dumps(fields))
    assert backbone_from(str(file.parent)).vocabulary == 51_200


def test_dropout_is_zero(saved):
    assert backbone_from(str(saved("t5"))).config["dropout_rate"] == 0.0


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("qwen3", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("phi-2", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
        ("phi-3", ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")),
        ("t5", ("q", "k", "v", "o", "wi", "wo")),
        ("t5-v1.1", ("q", "k", "v", "o", "wi_0", "wi_1", "wo")),
    ],
)
def test_lora_adapts_the_linear_layers_of_each_class(name, targets, saved):
    assert set(lora_targets(backbone_from(str(saved(name))))) == set(targets)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            BartForConditionalGeneration(
                BartConfig(
                    vocab_size=VOCABULARY,
                    d_model=32,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    encoder_ffn_dim=32,
                    decoder_ffn_dim=32,
                    max_position_embeddings=64,
                )
            ),
            r"'bart' starts answers with token 2, not with padding \(1\) as T5 does",
        ),
        (
            MambaForCausalLM(
                MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1)
            ),
            "num_attention_heads",
        ),
    ],
    ids=["bart", "mamba"],
)
def test_a_model_that_cannot_serve_says_why(model, reason, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=reason) as error:
        backbone_from(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_quantized_checkpoint_is_refused(saved):
    file = saved("qwen3") / "config.json"
    fields = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(fields))
    with pytest.raises(SpecError, match=r"quantized \(gptq\); want the unquantized weights"):
        backbone_from(str(file.parent))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "own"}, "model type `own`"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "contains custom code"),
    ],
)
def test_an_unknown_class_is_refused_and_its_code_not_run(fields, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "own.py").write_text("raise SystemExit")
    with pytest.raises(SpecError, match=reason) as error:
        backbone_from(str(tmp_path))
    assert "\n" not in str(error.value)


def test_gpt2_has_no_linear_layers_for_lora_but_is_a_backbone(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    spec = backbone_from(str(tmp_path))
    assert (spec.width, spec.layers, spec.heads, spec.max_positions) == (32, 2, 2, 64)
    with pytest.raises(SpecError, match="GPT2LMHeadModel has no linear layers to adapt"):
        lora_targets(spec)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(SpecError, match="'vit' is not a language model"):
        backbone_from(str(tmp_path))
