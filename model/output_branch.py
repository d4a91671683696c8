"""One modality's output branch: signal tokens of the backbone, output projector, frozen generator.

H_X = Θ_out(S_X) (survey §2.4) is trained to match the embeddings of the generator's own text
encoder (eq. 4) and to let the generator predict the noise of a noised medium (eq. 5).

Shapes: b sequences, t positions, d the backbone's width, g generated media, n signal tokens of a
medium, l and w positions and width of a generator's condition, c channels and y, x sides of
latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.batch import Batch, GenerationTargets
from model.batch_invariance import batch_invariant
from model.fusion.splice import splice
from model.input_projectors.attention import INIT_STD
from model.spec.output_branches import OutputBranchSpec

_DROPOUT = 2**40
"""Added to a medium's seed, which is below 2³², where it decides on the condition's dropout."""


class NoisePrediction(NamedTuple):
    """A generator's noise prediction and its target, each (g, c, y, x); videos have frames, too."""

    noise_pred_gcyx: Tensor
    noise_target_gcyx: Tensor


class GenerationOutput(NamedTuple):
    """Inputs of the losses for one kind of generated media.

    Attributes:
        condition_embeds_glw: H_X, the generator's condition.
        target_embeds_glw: τ_X(t), its own text encoder's embedding of the caption.
        noise_prediction: ε_X under H_X, and its target; None without eq. 5.
    """

    condition_embeds_glw: Tensor
    target_embeds_glw: Tensor
    noise_prediction: NoisePrediction | None


class Generator(nn.Module, ABC):
    """Base class of the modules in `model/generators/`; its text encoder is its module `text`."""

    @abstractmethod
    def embed(self, ids_gl: Tensor, input_values: Tensor | None = None) -> Tensor:
        """Return τ(t) (g, l, w) of padded captions, or of the media, without a gradient."""

    @abstractmethod
    def negative(self, count: int) -> Tensor:
        """Return the conditions (count, l, w) from which guidance leads away."""

    @abstractmethod
    def encode(self, input_values: Tensor) -> Tensor:
        """Return the latents z₀ (g, c, y, x), float32, of media, without a gradient."""

    @abstractmethod
    def denoise(
        self, latents: Tensor, condition_embeds_glw: Tensor, seeds_g: Tensor
    ) -> NoisePrediction:
        """Noise the latents and return the noise predicted under the conditions, and its target."""

    @abstractmethod
    def recomputed_layers(self) -> Sequence[nn.Module]:
        """Return the layers that are recomputed, one after the other, where any are."""

    @abstractmethod
    def set_recompute(self, enabled: bool) -> None:
        """Recompute the activations of `denoise` in the backward pass, or not."""

    @abstractmethod
    def sample(
        self,
        condition_glw: Tensor,
        *,
        seeds: Sequence[int],
        steps: int,
        guidance_scale: float,
        negative_glw: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw media under conditions."""


def target_embeds(generator: Generator, ids_gl: Tensor, input_values: Tensor | None) -> Tensor:
    """Return the targets (g, l, w) of eq. 4; on the CPU the same bits in any batch."""
    with batch_invariant(generator.get_submodule("text")):
        return generator.embed(ids_gl, input_values)


def target_latents(generator: Generator, input_values: Tensor) -> Tensor:
    """Return the latents (g, c, y, x) for eq. 5; on the CPU the same bits in any batch.

    Their layout is always the same, too: last bits of the UNet's gradients depend on it.
    """
    with batch_invariant(generator.get_submodule("vae")):
        return generator.encode(input_values).contiguous()


class OutputBranch(nn.Module):
    """The modules of one modality after the backbone.

    The vocabulary stays unchanged: signal tokens have input embeddings and output rows of their
    own, which are trainable.

    Args:
        spec: of the branch.
        width: the backbone's.
        projector, generator: the components.
        denoising: whether the generator predicts noise for eq. 5.
    """

    generator: Generator

    def __init__(
        self,
        spec: OutputBranchSpec,
        width: int,
        *,
        projector: nn.Module,
        generator: Generator,
        denoising: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.signals = nn.Embedding(spec.signals, width)
        self.head = nn.Linear(width, spec.signals, bias=False)
        for module in (self.signals, self.head):
            nn.init.normal_(module.weight, std=INIT_STD)
        self.projector = projector
        self.generator = generator
        self.denoising = denoising
        if spec.condition_dropout:
            # Once: its modules would otherwise be called in steps whose captions are cached.
            self.register_buffer("negative_1lw", generator.negative(1), persistent=False)

    def train(self, mode: bool = True) -> OutputBranch:
        """Set training mode, except for the frozen generator, which must be deterministic."""
        super().train(mode)
        self.generator.eval()
        return self

    def signal_embeddings(self) -> Tensor:
        """Return the input embeddings (n, d) of the signal tokens."""
        device = next(self.signals.parameters()).device
        signals_nd: Tensor = self.signals(torch.arange(self.spec.signals, device=device))
        return signals_nd

    def condition(self, signal_hidden_gnd: Tensor) -> Tensor:
        """Return H_X (g, l, w), given the hidden states that stand for the signal tokens."""
        dtype = next(self.projector.parameters()).dtype
        condition_glw: Tensor = self.projector(signal_hidden_gnd.to(dtype))
        return condition_glw

    def negative_condition(self) -> Tensor:
        """Return the condition (1, l, w) from which guidance leads away.

        It is what was trained in place of a condition: with condition dropout the projector's
        output for zeros (MiniGPT-5), else the generator's own, of the empty caption.
        """
        if not self.spec.condition_dropout:
            return self.generator.negative(1)
        embeddings_nd = self.signal_embeddings()
        return self.condition(torch.zeros_like(embeddings_nd)[None])

    def generation_output(
        self,
        targets: GenerationTargets | None,
        signal_hidden_gnd: Tensor,
        *,
        embeds_given: bool,
        latents_given: bool = False,
    ) -> GenerationOutput:
        """Return the inputs of the losses, given the hidden states at the signal tokens.

        Under ZeRO-3 calling a module is a collective: a rank without generated media runs a dummy
        through the same modules and returns none of its outputs (g = 0).

        Args:
            targets: of the media; None on a rank without any.
            signal_hidden_gnd: the backbone's last hidden states at the signal tokens, plus their
                input embeddings.
            embeds_given: whether batches give the embeddings of captions, so that no rank calls
                the text encoder.
            latents_given: whether batches give latents, so that no rank calls the autoencoder.
        """
        dtype = next(self.projector.parameters()).dtype
        if targets is not None:
            return self._run(targets, signal_hidden_gnd.to(dtype))
        dummy = self.dummy_targets(
            signal_hidden_gnd.device, embeds_given=embeds_given, latents_given=latents_given
        )
        signal_hidden_gnd = signal_hidden_gnd.new_zeros(1, *signal_hidden_gnd.shape[1:])
        # The backward pass, too, calls the same modules: also frozen ones before trainable ones.
        signal_hidden_gnd.requires_grad_(torch.is_grad_enabled())
        output = self._run(dummy, signal_hidden_gnd.to(dtype))
        noise = output.noise_prediction
        return GenerationOutput(
            output.condition_embeds_glw[:0],
            output.target_embeds_glw[:0],
            noise and NoisePrediction(*(tensor[:0] for tensor in noise)),
        )

    def _run(self, targets: GenerationTargets, signal_hidden_gnd: Tensor) -> GenerationOutput:
        target_embeds_glw = targets.cached_embeds
        if target_embeds_glw is None:
            assert targets.ids_gl is not None
            target_embeds_glw = target_embeds(self.generator, targets.ids_gl, targets.input_values)
        if self.training and self.spec.condition_dropout:
            dropped_g11 = self._dropped(targets.seeds_g)[:, None, None].to(signal_hidden_gnd.device)
            signal_hidden_gnd = signal_hidden_gnd.masked_fill(dropped_g11, 0.0)
            negative_1lw = self.get_buffer("negative_1lw").to(target_embeds_glw)
            target_embeds_glw = torch.where(dropped_g11, negative_1lw, target_embeds_glw)
        condition_embeds_glw = self.projector(signal_hidden_gnd)
        noise_prediction = None
        if self.denoising:
            latents = targets.cached_latents
            if latents is None:
                latents = target_latents(self.generator, targets.input_values)
            noise_prediction = self.generator.denoise(
                latents, condition_embeds_glw, targets.seeds_g
            )
        return GenerationOutput(condition_embeds_glw, target_embeds_glw, noise_prediction)

    def _dropped(self, seeds_g: Tensor) -> Tensor:
        """Return which media (g,) are trained without a condition; their seeds decide."""
        # Not the seeds themselves: they give the noise and the time step.
        rngs = [torch.Generator("cpu").manual_seed(_DROPOUT + seed) for seed in seeds_g.tolist()]
        draws = [torch.rand(1, generator=rng, device="cpu") for rng in rngs]
        return torch.cat(draws) < self.spec.condition_dropout

    def dummy_targets(
        self, device: torch.device, *, embeds_given: bool, latents_given: bool = False
    ) -> GenerationTargets:
        """Return the targets of a dummy medium; see `generation_output`."""
        spec = self.spec.generator
        ids_gl = torch.zeros(1, sum(spec.caption_lengths), dtype=torch.long, device=device)
        embeds_glw = torch.zeros(1, *spec.condition_shape, device=device)
        latents = torch.zeros(1, *spec.latent_shape, device=device)
        return GenerationTargets(
            media_mask_bt=torch.zeros(1, 1, dtype=torch.bool, device=device),
            seeds_g=torch.zeros(1, dtype=torch.long, device="cpu"),
            ids_gl=None if embeds_given else ids_gl,
            input_values=torch.zeros(1, *spec.shape, dtype=torch.uint8, device=device),
            cached_embeds=embeds_glw if embeds_given else None,
            cached_latents=latents if latents_given else None,
        )


def signal_ids(outputs: Sequence[OutputBranchSpec], vocabulary: int) -> dict[str, list[int]]:
    """Return, by modality, the ids of its signal tokens as targets, after the vocabulary's ids."""
    ids: dict[str, list[int]] = {}
    first = vocabulary
    for branch in outputs:
        ids[branch.modality] = list(range(first, first + branch.signals))
        first += branch.signals
    return ids


def with_signals(embeddings_btd: Tensor, batch: Batch, signals: Mapping[str, Tensor]) -> Tensor:
    """Return the backbone's input with signal embeddings at the positions of signal tokens."""
    nowhere_bt = torch.zeros_like(batch.ids_bt, dtype=torch.bool)
    masks = {
        kind: batch.generation_targets[kind].media_mask_bt
        if kind in batch.generation_targets
        else nowhere_bt
        for kind in signals
    }
    flat = {kind: signals_nd.repeat(batch.count(kind), 1) for kind, signals_nd in signals.items()}
    return splice(embeddings_btd, flat, masks)


def signal_hidden(
    batch: Batch, branch: OutputBranchSpec, hidden_btd: Tensor, signals_nd: Tensor
) -> Tensor:
    """Return the hidden states (g, n, d) that stand for the signal tokens.

    Args:
        batch: the micro-batch.
        branch: whose media are generated; its projector says which states it reads.
        hidden_btd: the backbone's last hidden states.
        signals_nd: input embeddings of the signal tokens, which are added to the states at them.
    """
    if branch.kind not in batch.generation_targets:
        return hidden_btd.new_zeros(0, *signals_nd.shape)
    mask_bt = batch.generation_targets[branch.kind].media_mask_bt
    if branch.projector.states == "at":
        return hidden_btd[mask_bt].unflatten(0, (-1, len(signals_nd))) + signals_nd
    rows, columns = mask_bt.nonzero(as_tuple=True)
    # Before the first token of a sample there is none: zeros stand for it.
    first = columns == 0
    if batch.positions_bt is not None:
        first = first | (batch.positions_bt[rows, columns] == 0)
    before = hidden_btd[rows, columns - 1].masked_fill(first[:, None], 0.0)
    return before.unflatten(0, (-1, len(signals_nd)))
