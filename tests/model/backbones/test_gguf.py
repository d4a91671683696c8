"""A language model in a GGUF file: transformers' logits, its tokenizer, and it can be saved."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.backbones import hf
from model.build import build_tokenizer
from model.compose.backbones import backbone_from
from model.spec import ModelSpec, SpecError

LAYERS, WIDTH, MLP, HEADS = 2, 32, 64, 4
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Write a random LLaMA with a SentencePiece vocabulary, in two of GGUF's types."""
    path = tmp_path_factory.mktemp("published") / "tiny.gguf"
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(number) for number in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *([6] * 256), 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd": (len(WORDS), WIDTH),
        "output": (len(WORDS), WIDTH),
        "output_norm": (WIDTH,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (WIDTH,),
            f"blk.{layer}.ffn_norm": (WIDTH,),
            f"blk.{layer}.attn_q": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k": (WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_v": (WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_output": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_gate": (MLP, WIDTH),
            f"blk.{layer}.ffn_up": (MLP, WIDTH),
            f"blk.{layer}.ffn_down": (WIDTH, MLP),
        }
    for name, shape in shapes.items():
        values = draw.normal(scale=0.3, size=shape).astype(np.float32)
        if "ffn_up" in name:  # quantized
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_backbone(file, tmp_path, digits):
    own = backbone_from(str(file))
    assert (own.width, own.layers, own.kv_heads, own.vocabulary) == (WIDTH, LAYERS, 2, len(WORDS))
    backbone = hf.build(own, weights="pretrained", dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    ids_bt = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert backbone(input_ids=ids_bt).logits.equal(theirs(input_ids=ids_bt).logits)
    backbone.save_pretrained(tmp_path)  # which transformers refuses for its own
    saved = backbone_from(str(tmp_path))
    assert (saved.width, saved.kv_heads, saved.supports_packing) == (WIDTH, 2, own.supports_packing)
    tokenizer = build_tokenizer(
        ModelSpec(inputs=digits.model.inputs, backbone=own), weights="pretrained"
    )
    published = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert tokenizer.encode("a b", add_special_tokens=False) == published.encode(
        "a b", add_special_tokens=False
    )


def test_without_the_package_one_line_says_which(file, monkeypatch):
    monkeypatch.setattr("model.weights.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"reading GGUF needs pip install mmloom\[gguf\]"):
        backbone_from(str(file))
