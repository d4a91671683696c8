"""Forecast the memory of one GPU while a stage trains, part by part, in bytes; nothing is run.

Sources: Rajbhandari et al. 2020, *ZeRO* (§3 and §5, what each ZeRO stage partitions); Korthikanti
et al. 2022, *Reducing Activation Recomputation in Large Transformer Models* (§4, counting what
autograd saves); DeepSpeed's configuration reference (buckets and live parameters).

Each part is at its own peak, and the peaks do not coincide, so the sum is an upper estimate. Before
the first step a rank holds all weights, unpartitioned; that is a lower bound. The estimate
does not include the accelerator's context, NCCL's buffers (1 to 2 GB) and the allocator's
fragmentation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.spec import ClipVision, Llama, Lora, ModelSpec, Stage
from model.spec.backbones import T5, Backbone, Glm, Palm
from model.spec.hf_backbones import HfCausal, HfSeq2Seq
from model.spec.input_branches import Encoder
from model.spec.peft import Adapter, Peft, Prefix, QLora

FLOAT = 4
"""Bytes of a float32."""
PRECISION = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A parameter's number of elements, and whether it is trainable."""

    elements: int
    trainable: bool


@dataclass(frozen=True, kw_only=True)
class Zero:
    """The ZeRO settings of a DeepSpeed configuration that determine memory; sizes in elements."""

    stage: int
    weights_on_host: bool
    optimizer_on_host: bool
    bucket: int
    buffers: int
    persistent: int
    live: int
    prefetch: int
    accumulation_bytes: int

    @classmethod
    def read(cls, config: Mapping[str, Any], precision: int) -> Zero:
        """Read DeepSpeed's JSON; missing settings have DeepSpeed's defaults.

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
            # ZeRO-1/2 fills a second bucket while the first is being reduced.
            buffers=2 if stage < 3 and zero.get("overlap_comm", False) else 1,
            persistent=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            live=int(zero.get("stage3_max_live_parameters", 1e9)),
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            accumulation_bytes=FLOAT if kind == "fp32" else precision,
        )


def weights(parameters: Sequence[Weight], zero: Zero, ranks: int, precision: int) -> int:
    """Return the bytes of the weights between uses.

    Below ZeRO-3 every rank holds all Ψ weights; with ZeRO-3 it holds Ψ / ranks (Rajbhandari et al.
    2020, §5.3), and DeepSpeed also keeps small weights whole.
    """
    if zero.stage < 3:
        return precision * sum(weight.elements for weight in parameters)
    partitions = sum(_partition(weight.elements, ranks) for weight in parameters)
    return precision * partitions + persistent(parameters, zero, precision)


def persistent(parameters: Sequence[Weight], zero: Zero, precision: int) -> int:
    """Return the bytes of the small weights (norms, biases) that ZeRO-3 never partitions."""
    small = (weight.elements for weight in parameters if _is_persistent(weight, zero))
    return precision * sum(small)


def gathered(parameters: Sequence[Weight], zero: Zero, ranks: int, precision: int) -> int:
    """Return the bytes of the weights that ZeRO-3 has gathered for use: 0 below ZeRO-3.

    DeepSpeed releases weights beyond `stage3_max_live_parameters`, prefetched ones included, but
    the weight in use must be whole whatever that limit is. It gathers up to
    `stage3_prefetch_bucket_size` of them into one buffer, from which each is copied, so these are
    there twice. A single rank uses its partitions as they are.
    """
    if zero.stage < 3 or (ranks == 1 and not zero.weights_on_host):
        return 0
    sizes = [weight.elements for weight in parameters if not _is_persistent(weight, zero)]
    largest = max(sizes, default=0)
    live = max(min(zero.live, sum(sizes)), largest)
    return precision * (live + min(zero.prefetch, sum(sizes)))


def gloo_copy(parameters: Sequence[Weight], zero: Zero, ranks: int, precision: int) -> int:
    """Return the bytes of gloo's own buffer, on CPUs, from which it copies what it has gathered."""
    if zero.stage < 3 or ranks == 1:
        return 0
    sizes = (weight.elements for weight in parameters if not _is_persistent(weight, zero))
    return precision * min(zero.prefetch, sum(sizes))


def whole(parameters: Sequence[Weight], precision: int) -> int:
    """Return the bytes of all weights, as DeepSpeed moves them to the device before partitioning.

    `deepspeed.initialize` calls `module.to(device)` on the whole module, whatever ZeRO's stage.
    """
    return precision * sum(weight.elements for weight in parameters)


def gradients(trainable: int, zero: Zero, ranks: int) -> int:
    """Return the bytes of accumulated gradients of all trainable weights; ZeRO-2 partitions them.

    Frozen weights have none (Rajbhandari et al. 2020, §5.2). The precision is `grad_accum_dtype`.
    """
    return zero.accumulation_bytes * (
        _partition(trainable, ranks) if zero.stage >= 2 else trainable
    )


def optimizer(trainable: int, zero: Zero, ranks: int) -> int:
    """Return the bytes of Adam's states: float32 master weight and two moments, K = 12 bytes each.

    Partitioned from ZeRO-1 on (Rajbhandari et al. 2020, §3.1 and §5.1).
    """
    return 3 * FLOAT * (_partition(trainable, ranks) if zero.stage >= 1 else trainable)


def buckets(trainable: int, zero: Zero, precision: int) -> int:
    """Return the bytes of the gradient buckets: `reduce_bucket_size`, in one or two buffers.

    Where gradients accumulate in another precision than the weights', the reduction also needs a
    copy of the bucket's content and one of its scattered partitions.
    """
    filled = min(zero.bucket, trainable)
    converts = zero.accumulation_bytes != precision
    copies = 2 * zero.accumulation_bytes * filled if converts else 0
    return zero.buffers * precision * zero.bucket + copies


@dataclass(frozen=True, kw_only=True)
class SampleProfile:
    """The properties of one sample and of the trainable weights that determine activations.

    Args:
        tokens: positions in the backbone.
        targets: positions whose next token is a target.
        media: media of each modality.
        projectors: by modality, bytes that autograd saves in the projector for one medium.
        trains_backbone: whether the backbone's own weights are trainable, not only its adapters.
        generation: by kind, bytes that autograd saves for one generated medium, from its signal
            tokens to the generator's prediction; of layers that are recomputed only their inputs,
            and all of the largest of them.
        features: modalities whose features are given, so that their encoders do not run.
    """

    tokens: int
    targets: int
    media: int
    projectors: Mapping[str, int]
    trains_backbone: bool
    generation: Mapping[str, int] = field(default_factory=dict)
    features: Collection[str] = ()


def activations(model: ModelSpec, stage: Stage, zero: Zero, sample: SampleProfile) -> int:
    """Return the bytes that autograd saves for one micro-batch, without the logits.

    With recomputation, only each layer's input is saved (2sbh bytes in Korthikanti et al. 2022,
    §5), and all activations of the one layer whose backward pass runs; otherwise those of all
    layers.

    Args:
        model: the branches and the backbone.
        stage: precision, adapters, recomputation and micro-batch.
        zero: the ZeRO settings.
        sample: the sample's properties.
    """
    backbone, precision = model.backbone, PRECISION[stage.precision]
    layers = 1 if stage.recompute else depth(backbone)
    per_token = layers * layer_bytes(backbone, stage, sample, linear_saves=zero.stage == 3)
    if stage.recompute:
        per_token += depth(backbone) * precision * backbone.width
    per_token += FLOAT * backbone.width  # the last norm
    per_medium = sum(sample.generation.values())
    for slot in model.inputs:
        per_medium += sample.projectors[slot.modality]
        if slot.modality not in sample.features:
            per_medium += slot.segments * encoder_bytes(slot.encoder, precision)
    return stage.micro_batch * (sample.tokens * per_token + sample.media * per_medium)


def layer_bytes(
    backbone: Backbone, stage: Stage, sample: SampleProfile, *, linear_saves: bool
) -> int:
    """Return the bytes per token that autograd saves in a LLaMA layer, operation by operation.

    Counted as Korthikanti et al. 2022 count a GPT layer (34 bytes per token and width), for a fused
    attention that does not save the s × s scores:

    - two RMSNorms in float32: their input and the reciprocal deviation;
    - attention: q, k, v, the output, the log-sum-exp per head, and a row of the mask, since padding
      rules out the kernel's own causal mask;
    - SwiGLU: gate, its activation, and up;
    - the inputs of the linear layers, if their weights or adapters are trainable, or under ZeRO-3,
      whose own linear function always saves them;
    - adapters: `_adapter_bytes`.

    Other backbones are treated as LLaMA layers of their own widths, an approximation; a seq2seq one
    as if its decoder were as long as its encoder, an upper bound.

    Args:
        backbone: the sizes.
        stage: precision and adapters.
        sample: its length, for the mask, and whether the backbone is trainable.
        linear_saves: whether frozen linear layers save their inputs, too.
    """
    width, mlp = backbone.width, backbone.mlp_width
    keys = _key_width(backbone)
    size = PRECISION[stage.precision]
    saved = 2 * FLOAT * (width + 1)
    saved += size * (2 * width + 2 * keys + sample.tokens) + FLOAT * backbone.heads
    saved += size * 3 * mlp
    lora = stage.peft if isinstance(stage.peft, Lora | QLora) else None
    adapters_save_inputs = stage.peft is not None and (lora is None or not lora.dropout)
    if linear_saves or sample.trains_backbone or adapters_save_inputs:
        saved += size * (2 * width + mlp)  # the attention's output is already saved
    if sample.trains_backbone:  # the norms' own gains
        saved += size * 2 * width
    if stage.peft is not None:
        saved += _adapter_bytes(stage.peft, width, mlp, size)
    return saved


def _key_width(backbone: Backbone) -> int:
    """Return the total width of the keys of all heads, which is also that of the values."""
    match backbone:
        case Llama() | Glm():
            return backbone.width // backbone.heads * backbone.kv_heads
        case Palm():
            return backbone.head_width
        case HfCausal() | HfSeq2Seq():
            return backbone.head_width * backbone.kv_heads
        case T5():
            return backbone.heads * backbone.head_width
        case _:
            return backbone.width


def depth(backbone: Backbone) -> int:
    """Return the number of layers; a seq2seq backbone has as many in its decoder as well."""
    return backbone.layers * (2 if backbone.seq2seq else 1)


def _adapter_bytes(peft: Peft, width: int, mlp: int, size: int) -> int:
    """Return the bytes per token that adapters add.

    LoRA: r values per target; with dropout its input and mask, too. Houlsby's: twice the bottleneck
    per target, and the output of the backbone's layer. A prefix adds nothing per token. DoRA: twice
    the layer's output.
    """
    if isinstance(peft, Prefix):
        return 0
    if isinstance(peft, Adapter):
        return len(peft.targets) * size * (2 * peft.bottleneck + width)
    saved = len(peft.targets) * size * peft.rank
    if peft.dropout:
        saved += sum((size + 1) * (mlp if name == "down_proj" else width) for name in peft.targets)
    if peft.use_dora:  # the outputs of the layer and of the adapter, which the norms scale
        out = [mlp if name in ("gate_proj", "up_proj", "fc1") else width for name in peft.targets]
        saved += 2 * size * sum(out)
    return saved


def encoder_bytes(encoder: Encoder, precision: int) -> int:
    """Return the bytes of a frozen encoder's activations for one tile, frame or clip of a medium.

    CLIP keeps all hidden states until one is selected. For other encoders, the activations of one
    layer: its input, queries, keys, values, and a feed-forward layer of four times the width.
    """
    if not isinstance(encoder, ClipVision):
        return 8 * encoder.tokens * encoder.width * precision
    patches = (encoder.image_size // encoder.patch_size) ** 2 + 1
    return patches * precision * ((encoder.layers + 1) * encoder.width + 2 * encoder.mlp_width)


def logits(backbone: Backbone, stage: Stage, sample: SampleProfile) -> int:
    """Return the bytes at targets: logits, and in float32 logits, log-softmax and gradient."""
    per_value = PRECISION[stage.precision] + 3 * FLOAT
    return stage.micro_batch * sample.targets * backbone.vocabulary * per_value


def _partition(elements: int, ranks: int) -> int:
    return math.ceil(elements / ranks)


def _is_persistent(weight: Weight, zero: Zero) -> bool:
    return weight.elements <= zero.persistent
