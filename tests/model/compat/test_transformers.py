"""transformers still has the private names that we use; each test says what breaks without one."""

import torch
from transformers import LlamaConfig, LlamaModel, T5Config, T5EncoderModel

from model.compat.transformers import attention_implementation, modules_kept_in_fp32

_LLAMA = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
)


def test_the_attention_is_the_one_that_was_set() -> None:
    # Otherwise packed samples would attend to each other, or prefixes be masked.
    with torch.device("meta"):
        model = LlamaModel(_LLAMA)
    assert attention_implementation(model.config) == "sdpa"
    model.set_attn_implementation("eager")
    assert attention_implementation(model.config) == "eager"


def test_t5_keeps_a_layer_in_float32() -> None:
    # Otherwise QLoRA would quantise a layer whose dtype T5's code inspects.
    with torch.device("meta"):
        t5 = T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1))
        assert "wo" in modules_kept_in_fp32(t5)
        assert not modules_kept_in_fp32(LlamaModel(_LLAMA))
