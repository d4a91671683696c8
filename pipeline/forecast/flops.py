"""FLOPs of training a stage, by component, counted without weights or data.

Costs are per unit of work, so that the packing can add them up for any sample:

    costs = unit_costs(model, stage)      # once
    costs.sample(positions=700, targets=60, media={"image": 1}).model

Encoders, projectors and their backward passes run on the meta device under PyTorch's FLOP counter:
for convolutions, windowed attention and queries the number of weights does not give the cost. The
backbone's FLOPs follow from its linear layers. By the usual conventions (Kaplan et al. 2020, §2.1;
Chowdhery et al. 2022, appendix B; Korthikanti et al. 2022, appendix A):

- only matrix multiplications count, and a multiply-add is two FLOPs;
- a linear layer costs 2 per weight and position forward, 2 for the gradient of its input, and 2 for
  the gradient of its weights. A frozen layer has no gradient of its weights: a frozen backbone
  behind a trainable projector costs 4 per weight, not 6;
- attention costs 4 per head width, head and *pair* of positions forward, twice that backward;
  causal attention needs half of the pairs (PaLM's formula counts all, and so is higher);
- recomputed activations are not part of the model's FLOPs; they are counted separately.

Not counted: prefix-tuning's keys, cross-attention scores, the optimizer, DLP's reference, and the
saving where no gradient has to pass the layers before the first trainable one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.fusion.gated_cross_attention import CrossAttention
from model.multimodal_lm import MultimodalLM
from model.output_branch import OutputBranch
from model.segments import encode_segments, pool
from model.spec import Stage
from model.spec.backbones import T5, Backbone, Palm
from model.spec.hf_backbones import HfCausal, HfSeq2Seq
from model.text import TextIds

_EXPERTS = {"expert", "expert_mlp"}
"""CogVLM's second set of a layer's weights: each position goes through one of the two."""
INSTRUCTION = 32
"""Assumed length of the instruction, in tokens, for projectors that read one."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of a unit of work.

    Args:
        forward: of the forward pass.
        backward: of the gradients that are needed.
        recomputed: of the second forward pass, where activations are recomputed.
    """

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """The model's FLOPs, as model FLOPs utilization (MFU) counts them."""
        return self.forward + self.backward

    @property
    def device(self) -> float:
        """FLOPs that the device executes, recomputation included; these determine the time."""
        return self.model + self.recomputed

    def __add__(self, other: Work) -> Work:
        return Work(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: float) -> Work:
        return Work(**{f.name: getattr(self, f.name) * times for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """FLOPs of each unit of a sample.

    Args:
        position: a position in the backbone (in the encoder of a seq2seq one), without attention
            scores.
        pair: the attention scores of a pair of positions, in all layers.
        target: a target in the output embedding, and in the decoder of a seq2seq backbone.
        encoders: by kind of media, a medium in its encoder; for output media (`to_image`), its
            caption in the generator's text encoder, and the medium in the autoencoder's.
        projectors: by kind of media, a medium in its projector and in the backbone's fusion
            layers; for output media, in the rest of the generator, too.
        seq2seq: whether attention is bidirectional, and targets attend to all positions.
    """

    position: Work
    pair: Work
    target: Work
    encoders: Mapping[str, Work]
    projectors: Mapping[str, Work]
    seq2seq: bool

    def medium(self, kind: str) -> Work:
        """Return the FLOPs of a medium outside the backbone."""
        return self.encoders[kind] + self.projectors[kind]

    def with_features(self) -> UnitCosts:
        """Return the costs where features are given: frozen encoders have none."""
        encoders = {kind: work if work.backward else Work() for kind, work in self.encoders.items()}
        return replace(self, encoders=encoders)

    def sample(
        self, *, positions: float, targets: float, media: Mapping[str, float], pairs: float = 0
    ) -> Work:
        """Return the FLOPs of one sample, or of several.

        Args:
            positions: in the backbone, media tokens included.
            targets: positions whose next token is a target; a seq2seq decoder's positions.
            media: number of media of each kind.
            pairs: the sum of `pairs` over several samples; 0 computes it for one sample.
        """
        work = self.position * positions + self.target * targets
        work += self.pair * (pairs or self.pairs(positions, targets))
        for kind, count in media.items():
            work += self.medium(kind) * count
        return work

    def pairs(self, positions: float, targets: float) -> float:
        """Return the number of attention pairs of one sample."""
        if self.seq2seq:
            return positions * (positions + targets) + targets * targets / 2
        return positions * (positions + 1) / 2


def unit_costs(model: MultimodalLM, stage: Stage) -> UnitCosts:
    """Return the FLOPs of each unit of a stage's work.

    Args:
        model: on the meta device, after `model.freeze.set_trainable`.
        stage: says whether activations are recomputed.
    """
    media = {kind: medium_flops(model, kind) for kind in model.spec.modalities}
    media |= {
        kind: generation_flops(branch, model.spec.backbone.width, recompute=stage.recompute)
        for kind, branch in model.output_branches().items()
    }
    position, target = token_flops(model, stage)
    return UnitCosts(
        position=position,
        pair=_pair(model, stage),
        target=target,
        encoders={kind: encoder for kind, (encoder, _) in media.items()},
        projectors={kind: projector for kind, (_, projector) in media.items()},
        seq2seq=model.spec.backbone.seq2seq,
    )


def token_flops(model: MultimodalLM, stage: Stage) -> tuple[Work, Work]:
    """Return the FLOPs of a position and of a target in the backbone, without attention scores."""
    backbone, spec = model.backbone, model.spec.backbone
    output = backbone.get_output_embeddings()
    trained = any(weight.requires_grad for weight in model.parameters())
    experts = [m for name, m in _linears(backbone) if _EXPERTS.intersection(name.split("."))]
    media_only = [m.key_value for m in backbone.modules() if isinstance(m, CrossAttention)]
    excluded = {id(output), *map(id, experts), *map(id, media_only)}
    linears = [module for _, module in _linears(backbone) if id(module) not in excluded]
    # Where a stage trains the experts, the positions of media go through trainable weights.
    experts_train = any(expert.weight.requires_grad for expert in experts)
    layers = _Sum()
    decoder = _Sum()
    in_decoder = {id(m) for m in backbone.get_decoder().modules()} if spec.seq2seq else set()
    for module in linears:
        trainable = module.weight.requires_grad or experts_train
        (decoder if id(module) in in_decoder else layers).add(module, trainable=trainable)
    if isinstance(spec, T5 | HfSeq2Seq):
        # Cross-attention computes its keys and values from the encoder's positions.
        keys = spec.layers * 2 * spec.width * spec.heads * spec.head_width
        share = keys / decoder.all if decoder.all else 0.0
        layers.all, layers.training = layers.all + keys, layers.training + share * decoder.training
        decoder.all, decoder.training = decoder.all - keys, (1 - share) * decoder.training
    head = _Sum()
    head.add(output, trainable=output.weight.requires_grad)
    recompute = stage.recompute
    target = decoder.work(trained=trained, recompute=recompute)
    target += head.work(trained=trained, recompute=False)
    return layers.work(trained=trained, recompute=recompute), target


def _pair(model: MultimodalLM, stage: Stage) -> Work:
    """Return the FLOPs of a pair in all layers: queries by keys, and attention by values."""
    backbone = model.spec.backbone
    forward = 4.0 * backbone.layers * attention_width(backbone)
    trained = any(weight.requires_grad for weight in model.parameters())
    return Work(
        forward=forward,
        backward=2 * forward if trained else 0.0,
        recomputed=forward if stage.recompute and trained else 0.0,
    )


def medium_flops(model: MultimodalLM, kind: str) -> tuple[Work, Work]:
    """Return the FLOPs of one medium in its encoder, and in its projector and the fusion layers.

    The model must be on the meta device. A frozen encoder has no backward pass.
    """
    slot, encoder, projector = (
        model.spec.input_branch(kind),
        model.encoder(kind),
        model.projector(kind),
    )
    trainable = any(weight.requires_grad for weight in encoder.parameters())
    dtype = next(projector.parameters()).dtype
    with torch.device("meta"):
        values = torch.zeros(1, slot.segments, *slot.encoder.shape)
        ids_bl = torch.ones(1, INSTRUCTION, dtype=torch.long)
        text = TextIds(ids_bl=ids_bl, mask_bl=ids_bl)
        with torch.set_grad_enabled(trainable):
            features, encoded = _counted(
                lambda: encode_segments(encoder, values, jointly=slot.encoder.encodes_jointly)
            )
        pooled = pool(features.detach().to(dtype), slot.pool).requires_grad_(trainable)
        _, projected = _counted(lambda: projector(pooled, text))
    keys = sum(
        2.0 * module.key_value.weight.numel() * slot.tokens
        for module in model.backbone.modules()
        if isinstance(module, CrossAttention)
    )
    return encoded, projected + Work(forward=keys, backward=2 * keys)


def generation_flops(
    branch: OutputBranch, width: int, *, recompute: bool = False
) -> tuple[Work, Work]:
    """Return the FLOPs of one generated medium: of its targets, and of everything else.

    The model must be on the meta device. The generator is frozen, but gradients flow through it to
    the projector.

    Args:
        branch: the modality's output branch.
        width: of the backbone.
        recompute: whether the generator's activations are recomputed.
    """
    device, given = torch.device("meta"), {"embeds_given": True, "latents_given": True}
    generator = branch.generator
    with device:
        raw, dummy = (
            branch.dummy_targets(device, embeds_given=False),
            branch.dummy_targets(device, **given),
        )
        ids_gl = raw.ids_gl
        assert ids_gl is not None
        signal_hidden_gnd = torch.zeros(1, branch.spec.signals, width)
        _, embedded = _counted(lambda: generator.embed(ids_gl, raw.input_values))
        if branch.denoising:
            embedded += _counted(lambda: generator.encode(raw.input_values))[1]

        def generate() -> Tensor:
            output = branch.generation_output(dummy, signal_hidden_gnd, **given)
            prediction = (
                output.noise_prediction.noise_pred_gcyx
                if output.noise_prediction
                else output.condition_embeds_glw
            )
            return prediction.sum() + output.condition_embeds_glw.sum()

        generator.set_recompute(False)
        _, generated = _counted(generate, generator.recomputed_layers() if recompute else ())
        generator.set_recompute(recompute)
    return embedded, generated


def _counted(
    run: Callable[[], Tensor], recomputed: Sequence[nn.Module] = ()
) -> tuple[Tensor, Work]:
    """Run a forward pass, and a backward pass if it has one, under PyTorch's FLOP counter.

    Args:
        run: the forward pass.
        recomputed: layers whose forward pass runs again in the backward pass, where they have one.
    """
    again, starts = 0.0, [0]

    def enter(*_: object) -> None:
        starts.append(counter.get_total_flops())

    def leave(_: nn.Module, __: object, output: object) -> None:
        nonlocal again
        values = output if isinstance(output, tuple) else (output,)
        needed = any(isinstance(value, Tensor) and value.requires_grad for value in values)
        again += needed * (counter.get_total_flops() - starts.pop())

    hooks = [layer.register_forward_pre_hook(enter) for layer in recomputed]
    hooks += [layer.register_forward_hook(leave) for layer in recomputed]
    with FlopCounterMode(display=False) as counter:
        out = run()
        forward = counter.get_total_flops()
        if out.requires_grad:
            out.sum().backward()
    for hook in hooks:
        hook.remove()
    backward = counter.get_total_flops() - forward
    return out, Work(forward=forward, backward=backward, recomputed=again)


@dataclass
class _Sum:
    """Number of weights in linear layers: all, and the trainable ones."""

    all: float = 0.0
    training: float = 0.0

    def add(self, module: nn.Linear, *, trainable: bool) -> None:
        """Add a linear layer by its shape; quantized or partitioned weights differ in size."""
        size = module.in_features * module.out_features
        self.all += size
        self.training += size * trainable

    def work(self, *, trained: bool, recompute: bool) -> Work:
        """Return the FLOPs of one position: two per weight and pass."""
        return Work(
            forward=2.0 * self.all,
            backward=2.0 * (self.all + self.training) if trained else 0.0,
            recomputed=2.0 * self.all if recompute and trained else 0.0,
        )


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def attention_width(backbone: Backbone) -> int:
    """Return the total width of the queries of all heads."""
    if isinstance(backbone, Palm | T5 | HfCausal | HfSeq2Seq):
        return backbone.heads * backbone.head_width
    return backbone.width
