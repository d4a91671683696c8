"""Predict what one GPU holds while a stage trainable, part by part, in bytes; nothing is run.

Sources: Rajbhandari et al. 2020, *ZeRO* (§3 and §5, what each ZeRO stage divides); Korthikanti et
al. 2022, *Reducing Activation Recomputation in Large Transformer Models* (§4, counting what
autograd keeps); DeepSpeed's configuration reference (buckets and live parameters).

The parts are each at their own peak, which do not all fall together, so their sum is an
upper estimate. Not in it: the accelerator's context and NCCL's buffers (1 to 2 GB) and what the
allocator loses to fragmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.spec import ClipVision, Llama, Lora, ModelSpec, Stage
from model.spec.backbones import T5, Backbone, Glm, Palm
from model.spec.input_branches import Encoder
from model.spec.peft import Adapter, Peft, Prefix, QLora

FLOAT = 4
"""Bytes of a float32."""
PRECISION = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter's number of elements, and whether it trains."""

    elements: int
    trainable: bool


@dataclass(frozen=True, kw_only=True)
class Zero:
    """What a DeepSpeed configuration divides, keeps and reserves; counts are of elements."""

    stage: int
    weights_on_host: bool
    optimizer_on_host: bool
    bucket: int
    buffers: int
    persistent: int
    live: int
    sum_bytes: int

    @classmethod
    def read(cls, config: Mapping[str, Any], precision: int) -> Zero:
        """Read DeepSpeed's JSON; what it leaves out has DeepSpeed's own defaults.

        Args:
            config: the whole configuration.
            precision: bytes of a weight.
        """
        zero = config.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        kind = config.get("data_types", {}).get("grad_accum_dtype")
        return cls(
            stage=stage,
            weights_on_host=zero.get("offload_param", {}).get("device", "none") != "none",
            optimizer_on_host=zero.get("offload_optimizer", {}).get("device", "none") != "none",
            bucket=int(zero.get("reduce_bucket_size", 5e8)),
            # ZeRO-1/2 fills a second bucket while the first is on its way.
            buffers=2 if stage < 3 and zero.get("overlap_comm", False) else 1,
            persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            live=int(zero.get("stage3_max_live_parameters", 1e9)),
            sum_bytes=FLOAT if kind == "fp32" else precision,
        )


def weights(parameters: Sequence[Weight], zero: Zero, ranks: int, precision: int) -> int:
    """Bytes of the weights at rest.

    Below ZeRO-3 every rank holds all Ψ of them; ZeRO-3 leaves Ψ / ranks (Rajbhandari et al.
    2020, §5.3), except that DeepSpeed keeps small ones whole, beside their share.
    """
    if zero.stage < 3:
        return precision * sum(weight.elements for weight in parameters)
    shares = sum(_share(weight.elements, ranks) for weight in parameters)
    return precision * shares + kept_whole(parameters, zero, precision)


def kept_whole(parameters: Sequence[Weight], zero: Zero, precision: int) -> int:
    """Bytes of the small weights (norms, biases) that ZeRO-3 keeps gathered on every rank."""
    small = (weight.elements for weight in parameters if _stays_whole(weight, zero))
    return precision * sum(small)


def gathered(parameters: Sequence[Weight], zero: Zero, precision: int) -> int:
    """Bytes of the weights that ZeRO-3 has gathered for use: 0 below it.

    DeepSpeed releases weights beyond `stage3_max_live_parameters`, prefetched ones
    included, but whatever it is told, the matrix at hand must be there.
    """
    if zero.stage < 3:
        return 0
    divided = [weight.elements for weight in parameters if not _stays_whole(weight, zero)]
    return precision * max(min(zero.live, sum(divided)), max(divided, default=0))


def gradients(trainable: int, zero: Zero, ranks: int) -> int:
    """Bytes of the summed gradients: of all trainable weights, or from ZeRO-2 on a share of them.

    Frozen weights have none (Rajbhandari et al. 2020, §5.2). The precision is `grad_accum_dtype`.
    """
    return zero.sum_bytes * (_share(trainable, ranks) if zero.stage >= 2 else trainable)


def optimizer(trainable: int, zero: Zero, ranks: int) -> int:
    """Bytes of Adam's states: a float32 master and two moments, K = 12 bytes per trainable weight.

    Divided among the ranks from ZeRO-1 on (Rajbhandari et al. 2020, §3.1 and §5.1).
    """
    return 3 * FLOAT * (_share(trainable, ranks) if zero.stage >= 1 else trainable)


def buckets(trainable: int, zero: Zero, precision: int) -> int:
    """Bytes reserved for gradients on their way: `reduce_bucket_size`, in one or two buffers.

    Where gradients are summed in another precision than the weights', a copy of what is in
    the bucket and one of its scattered shares are there while it is reduced.
    """
    filled = min(zero.bucket, trainable)
    copies = 2 * zero.sum_bytes * filled if zero.sum_bytes != precision else 0
    return zero.buffers * precision * zero.bucket + copies


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one sample brings, and how far the backward pass reaches.

    Args:
        tokens: positions in the backbone.
        targets: positions whose next token is a target.
        media: media of each modality.
        projectors: by modality, bytes that autograd keeps of the projector for one medium.
        backbone_trains: whether the backbone's own weights train, not only adapters beside them.
        drawn: by kind, bytes that autograd keeps of one medium that comes out, from the signals to
            the generator's answer.
    """

    tokens: int
    targets: int
    media: int
    projectors: Mapping[str, int]
    backbone_trains: bool
    drawn: Mapping[str, int] = field(default_factory=dict)


def activations(model: ModelSpec, stage: Stage, zero: Zero, load: Workload) -> int:
    """Bytes that autograd keeps of one micro-batch, without the vocabulary's matrix.

    With recomputation, a layer's input (2sbh bytes in Korthikanti et al. 2022, §5) stays per
    layer, and one layer is whole while its backward pass runs; otherwise all layers are whole.

    Args:
        model: the slots.
        stage: precision, adapters, recomputation and micro-batch.
        zero: what the ZeRO configuration brings.
        load: what a sample brings.
    """
    backbone, precision = model.backbone, PRECISION[stage.precision]
    whole = 1 if stage.recompute else depth(backbone)
    per_token = whole * layer_bytes(backbone, stage, load, linear_keeps=zero.stage == 3)
    if stage.recompute:
        per_token += depth(backbone) * precision * backbone.width
    per_token += FLOAT * backbone.width  # the last norm
    way = sum(load.drawn.values())
    for slot in model.inputs:
        way += load.projectors[slot.modality] + slot.segments * encoder_bytes(
            slot.encoder, precision
        )
    return stage.micro_batch * (load.tokens * per_token + load.media * way)


def layer_bytes(backbone: Backbone, stage: Stage, load: Workload, *, linear_keeps: bool) -> int:
    """Bytes per token that autograd keeps of one LLaMA layer, counted operation by operation.

    As Korthikanti et al. 2022 count a GPT layer (34 bytes per token and width), for a fused
    attention that keeps no s × s scores:

    - two RMSNorms in float32: their input and the reciprocal deviation;
    - attention: q, k, v, its output and the logarithm of the softmax' denominator per head, and
      the mask's row, as padding rules out the kernel's own causal one;
    - SwiGLU: gate, its activation, and up;
    - the inputs of the linear layers, if their weights or adapters train, or under ZeRO-3, whose
      own linear function keeps them in any case;
    - adapters: `_adapter_bytes`.

    Other backbones are reckoned as LLaMA layers of their own widths, which is near; a seq2seq one
    as if its decoder were as long as its encoder, which is more than it needs.

    Args:
        backbone: the sizes.
        stage: precision and adapters.
        load: a sample's length, for the mask's row, and whether the backbone trains.
        linear_keeps: whether linear layers keep their inputs though frozen.
    """
    width, mlp = backbone.width, backbone.mlp_width
    keys = _key_width(backbone)
    size = PRECISION[stage.precision]
    kept = 2 * FLOAT * (width + 1)
    kept += size * (2 * width + 2 * keys + load.tokens) + FLOAT * backbone.heads
    kept += size * 3 * mlp
    lora = stage.peft if isinstance(stage.peft, Lora | QLora) else None
    adapters_share = stage.peft is not None and (lora is None or not lora.dropout)
    if linear_keeps or load.backbone_trains or adapters_share:
        kept += size * (2 * width + mlp)  # the attention's output is there already
    if load.backbone_trains:  # the norms' own gains
        kept += size * 2 * width
    if stage.peft is not None:
        kept += _adapter_bytes(stage.peft, width, mlp, size)
    return kept


def _key_width(backbone: Backbone) -> int:
    """Width of the keys of all heads, and of the values."""
    match backbone:
        case Llama() | Glm():
            return backbone.width // backbone.heads * backbone.kv_heads
        case Palm():
            return backbone.head_width
        case T5():
            return backbone.heads * backbone.head_width
        case _:
            return backbone.width


def depth(backbone: Backbone) -> int:
    """Layers that a token passes; a seq2seq backbone has as many in encoder and decoder."""
    return backbone.layers * (2 if backbone.seq2seq else 1)


def _adapter_bytes(peft: Peft, width: int, mlp: int, size: int) -> int:
    """Bytes per token that adapters add.

    LoRA: r values per target; with dropout its input and mask too. Houlsby's: twice the bottleneck
    per target, and what the backbone's layer gives. A prefix adds nothing per token.
    """
    if isinstance(peft, Prefix):
        return 0
    if isinstance(peft, Adapter):
        return len(peft.targets) * size * (2 * peft.bottleneck + width)
    lora = peft
    kept = len(lora.targets) * size * lora.rank
    if lora.dropout:
        kept += sum((size + 1) * (mlp if name == "down_proj" else width) for name in lora.targets)
    return kept


def encoder_bytes(encoder: Encoder, precision: int) -> int:
    """Bytes of a frozen encoder for one part of a medium.

    CLIP's holds all its hidden states until one is picked. For the others, what one layer holds at
    once: its input, queries, keys, values, and a feed-forward layer of four times the width.
    """
    if not isinstance(encoder, ClipVision):
        return 8 * encoder.tokens * encoder.width * precision
    patches = (encoder.image_size // encoder.patch_size) ** 2 + 1
    return patches * precision * ((encoder.layers + 1) * encoder.width + 2 * encoder.mlp_width)


def logits(backbone: Backbone, stage: Stage, load: Workload) -> int:
    """Bytes at the target positions: logits, then in float32 themselves, log-softmax, gradient."""
    per_value = PRECISION[stage.precision] + 3 * FLOAT
    return stage.micro_batch * load.targets * backbone.vocabulary * per_value


def _share(elements: int, ranks: int) -> int:
    return math.ceil(elements / ranks)


def _stays_whole(weight: Weight, zero: Zero) -> bool:
    return weight.elements <= zero.persistent
