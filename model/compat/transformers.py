"""What transformers tells about a model under private names only."""

from __future__ import annotations

from collections.abc import Collection

from transformers import PretrainedConfig, PreTrainedModel


def attention_implementation(config: PretrainedConfig) -> str:
    """Return the name under which a model's attention is registered, such as `sdpa`."""
    name: str = config._attn_implementation
    return name


def modules_kept_in_fp32(model: PreTrainedModel) -> Collection[str]:
    """Return the names of layers that transformers keeps in float32 whatever the model's dtype."""
    return model._keep_in_fp32_modules or ()
