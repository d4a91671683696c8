"""What training a stage computes, in FLOPs by component; nothing is run.

The costs are per unit of work, so that a planner may add them up for any sample:

    costs = unit_costs(model, stage)      # once
    costs.sample(positions=700, targets=60, media={"image": 1}).model

An encoder's, a projector's and their backward passes' operations are counted by PyTorch's own
counter while they run on the meta device: convolutions, windows and queries tell nothing of their
cost by their number of weights. The backbone's follow from its linear layers. As is usual
(Kaplan et al. 2020, §2.1; Chowdhery et al. 2022, appendix B; Korthikanti et al. 2022, appendix A):

- only multiplications of matrices count, and a multiplication with its addition is two;
- a linear layer costs 2 per weight and position forward, as much again for the gradient of its
  input, and as much again for that of its weights. What is frozen has no gradient of its weights:
  a frozen backbone in front of which something trainable costs 4 per weight, not 6;
- attention costs 4 per head width, head and *pair* of positions forward, twice that backward; of a
  causal one's pairs half are needed (PaLM's formula counts all, and so finds more);
- what is computed again to save memory is no work of the model's; it is told apart.

Not counted: a prefix' keys (prefix-tuning), scores of cross-attention, the optimizer, DLP's
reference, and that no gradient has to pass what lies before the first thing that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.fusion.gated_cross_attention import CrossAttention
from model.generative_lm import GenerativeMultimodalLM
from model.multimodal_lm import MultimodalLM
from model.output_branch import OutputBranch
from model.segments import encode_segments, pool
from model.spec import Stage
from model.spec.backbones import T5, Backbone, Palm
from model.text import TextIds

_EXPERTS = {"expert", "expert_mlp"}
"""CogVLM's second set of a layer's weights: each position passes one of the two."""
INSTRUCTION = 32
"""Tokens of the instruction that a projector which reads one is reckoned with."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one unit of something.

    Args:
        forward: of the forward pass.
        backward: of the gradients that are needed.
        again: of the forward pass once more, where activations are recomputed.
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    @property
    def model(self) -> float:
        """What the model needs: model FLOPs utilisation counts this."""
        return self.forward + self.backward

    @property
    def device(self) -> float:
        """What the device computes, recomputation included: time depends on this."""
        return self.model + self.again

    def __add__(self, other: Work) -> Work:
        return Work(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: float) -> Work:
        return Work(**{f.name: getattr(self, f.name) * times for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """What each unit of a sample costs.

    Args:
        position: one position's way through the backbone (a seq2seq one's encoder), attention's
            scores apart.
        pair: the scores of one pair of positions that see each other, in all layers.
        target: one target's way through the vocabulary's matrix, and through a seq2seq
            backbone's decoder.
        encoders: by kind of media, one medium's way through its encoder; of one that comes out
            (`to_image`), its text's way through the generator's text encoder.
        projectors: likewise through its projector, and what the backbone's fusion makes of it; of
            one that comes out, through the rest of the generator, too.
        seq2seq: whether positions see each other in both directions, and targets all of them.
    """

    position: Work
    pair: Work
    target: Work
    encoders: Mapping[str, Work]
    projectors: Mapping[str, Work]
    seq2seq: bool

    def medium(self, kind: str) -> Work:
        """Return the cost of one medium before the backbone, or behind it."""
        return self.encoders[kind] + self.projectors[kind]

    def sample(
        self, *, positions: float, targets: float, media: Mapping[str, float], pairs: float = 0
    ) -> Work:
        """Return the cost of one sample, or of many.

        Args:
            positions: in the backbone, the media's included.
            targets: positions whose next token is a target; a seq2seq decoder's positions.
            media: how many of each modality.
            pairs: of positions that see each other, where several samples are summed up; 0 for
                one sample's own, see `pairs`.
        """
        work = self.position * positions + self.target * targets
        work += self.pair * (pairs or self.pairs(positions, targets))
        for kind, count in media.items():
            work += self.medium(kind) * count
        return work

    def pairs(self, positions: float, targets: float) -> float:
        """Return how many pairs of one sample's positions see each other."""
        if self.seq2seq:
            return positions * (positions + targets) + targets * targets / 2
        return positions * (positions + 1) / 2


def unit_costs(model: MultimodalLM, stage: Stage) -> UnitCosts:
    """Return what each unit of a stage's work costs.

    Args:
        model: on the meta device, with what trainable set (`model.freeze.set_trainable`).
        stage: brings recomputation.
    """
    media = {kind: medium_flops(model, kind) for kind in model.spec.modalities}
    if isinstance(model, GenerativeMultimodalLM):
        width = model.spec.backbone.width
        media |= {kind: drawing_flops(way, width) for kind, way in model.output_branches().items()}
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
    """Return the cost of a position and of a target in the backbone, attention's scores apart."""
    backbone, spec = model.backbone, model.spec.backbone
    output = backbone.get_output_embeddings()
    trained = any(weight.requires_grad for weight in model.parameters())
    experts = [m for name, m in _linears(backbone) if _EXPERTS.intersection(name.split("."))]
    media_only = [m.key_value for m in backbone.modules() if isinstance(m, CrossAttention)]
    left_out = {id(output), *map(id, experts), *map(id, media_only)}
    linears = [module for _, module in _linears(backbone) if id(module) not in left_out]
    # Experts train in the stages that have them; a position of a medium passes them.
    experts_train = any(expert.weight.requires_grad for expert in experts)
    layers = _Sum()
    decoder = _Sum()
    answering = {id(m) for m in backbone.get_decoder().modules()} if spec.seq2seq else set()
    for module in linears:
        trainable = module.weight.requires_grad or experts_train
        (decoder if id(module) in answering else layers).add(module, trainable=trainable)
    if isinstance(spec, T5):
        # Cross-attention's keys and values are made of the encoder's positions.
        keys = spec.layers * 2 * spec.width * spec.heads * spec.head_width
        share = keys / decoder.all if decoder.all else 0.0
        layers.all, layers.training = layers.all + keys, layers.training + share * decoder.training
        decoder.all, decoder.training = decoder.all - keys, (1 - share) * decoder.training
    head = _Sum()
    head.add(output, trainable=output.weight.requires_grad)
    again = stage.recompute
    target = decoder.work(trained=trained, again=again) + head.work(trained=trained, again=False)
    return layers.work(trained=trained, again=again), target


def _pair(model: MultimodalLM, stage: Stage) -> Work:
    """Return the cost of a pair's scores in all layers: queries by keys, and shares by values."""
    backbone = model.spec.backbone
    forward = 4.0 * backbone.layers * attention_width(backbone)
    trained = any(weight.requires_grad for weight in model.parameters())
    return Work(
        forward=forward,
        backward=2 * forward if trained else 0.0,
        again=forward if stage.recompute and trained else 0.0,
    )


def medium_flops(model: MultimodalLM, kind: str) -> tuple[Work, Work]:
    """Return the cost of one medium in its encoder, and in its projector and the fusion.

    Counted on the meta device, where the model must be. A frozen encoder has no backward pass.
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


def drawing_flops(way: OutputBranch, width: int) -> tuple[Work, Work]:
    """Return the cost of one medium that comes out: of its text, and of all the rest.

    Counted on the meta device, where the model must be. The generator is frozen, but gradients
    pass it on their way to the projector.

    Args:
        way: the modality's way out.
        width: the backbone's.
    """
    with torch.device("meta"):
        dummy = way.dummy_targets(torch.device("meta"))
        signal_hidden_gnd = torch.zeros(1, way.spec.signals, width)
        _, embedded = _counted(lambda: way.generator.embed(dummy.ids_xl))

        def draw() -> Tensor:
            drawings = way.generation_output(dummy, signal_hidden_gnd, must_embed=False)
            told = (
                drawings.noise_prediction.noise_pred_gcyx
                if drawings.noise_prediction
                else drawings.condition_embeds_glw
            )
            return told.sum() + drawings.condition_embeds_glw.sum()

        _, drawn = _counted(draw)
    return embedded, drawn


def _counted(run: Callable[[], Tensor]) -> tuple[Tensor, Work]:
    """Run a forward pass, and its backward pass if it has one, under PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        out = run()
        forward = counter.get_total_flops()
        if out.requires_grad:
            out.sum().backward()
    return out, Work(forward=forward, backward=counter.get_total_flops() - forward)


@dataclass
class _Sum:
    """Weights of linear layers: all, and those that train."""

    all: float = 0.0
    training: float = 0.0

    def add(self, module: nn.Linear, *, trainable: bool) -> None:
        """Add a linear layer by its shape: quantised or partitioned weights have another size."""
        size = module.in_features * module.out_features
        self.all += size
        self.training += size * trainable

    def work(self, *, trained: bool, again: bool) -> Work:
        """Return the cost of one position: twice the weights, each way that is gone."""
        return Work(
            forward=2.0 * self.all,
            backward=2.0 * (self.all + self.training) if trained else 0.0,
            again=2.0 * self.all if again and trained else 0.0,
        )


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]


def attention_width(backbone: Backbone) -> int:
    """Return the width of all heads' queries together."""
    if isinstance(backbone, Palm | T5):
        return backbone.heads * backbone.head_width
    return backbone.width
