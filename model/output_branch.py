"""A modality's way out: signals of the backbone, output projector, frozen generator.

H_X = Θ_out(S_X) (survey §2.4), compared with what the generator's own text encoder says (eq. 4) and
put to the test by the generator itself (eq. 5).

Shapes: d the backbone's width, g media, x those whose text is embedded, n signals of a medium,
l and w positions and width of a generator's conditions, c channels and y, x sides of latents,
o positions with a target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.batch import GenerationTargets
from model.features import Keep, together
from model.input_projectors.attention import INIT_STD
from model.spec.output_branches import OutputBranchSpec


class NoisePrediction(NamedTuple):
    """What a generator tells of noised latents and what would be right, each (g, c, y, x)."""

    noise_pred_gcyx: Tensor
    noise_target_gcyx: Tensor


class GenerationOutput(NamedTuple):
    """What is learnt of one kind of media that come out.

    Attributes:
        condition_embeds_glw: H_X, what the generator is told.
        target_embeds_glw: τ_X(t), what its own text encoder would tell it.
        denoised: ε_X's answer under H_X and the right one; None where eq. 5 is not wanted.
    """

    condition_embeds_glw: Tensor
    target_embeds_glw: Tensor
    denoised: NoisePrediction | None


class Generator(nn.Module, ABC):
    """What a file of `model/generators/` makes; its text encoder is its module `text`."""

    @abstractmethod
    def embed(self, ids_gl: Tensor) -> Tensor:
        """Return τ(t) (g, l, w) of padded texts, without a gradient."""

    @abstractmethod
    def denoise(
        self, values: Tensor, condition_embeds_glw: Tensor, seeds_g: Tensor
    ) -> NoisePrediction:
        """Return what is told of noised media under conditions, and what would be right."""


class OutputBranch(nn.Module):
    """What stands behind the backbone for one modality.

    The vocabulary stays as it is: signals have embeddings and rows of the output matrix of their
    own beside it, and those train.

    Args:
        slot: the sizes.
        width: the backbone's.
        projector, generator: the parts.
        denoises: whether eq. 5 is wanted.
    """

    generator: Generator

    def __init__(
        self,
        slot: OutputBranchSpec,
        width: int,
        *,
        projector: nn.Module,
        generator: Generator,
        denoises: bool,
    ) -> None:
        super().__init__()
        self.slot = slot
        self.signals = nn.Embedding(slot.signals, width)
        self.head = nn.Linear(width, slot.signals, bias=False)
        for module in (self.signals, self.head):
            nn.init.normal_(module.weight, std=INIT_STD)
        self.projector = projector
        self.generator = generator
        self._denoises = denoises

    def train(self, mode: bool = True) -> OutputBranch:
        """Set the mode of all but the frozen generator, which never draws at random."""
        super().train(mode)
        self.generator.eval()
        return self

    def signal_embeddings(self) -> Tensor:
        """Return the embeddings (n, d) of the signals."""
        device = next(self.signals.parameters()).device
        signals_nd: Tensor = self.signals(torch.arange(self.slot.signals, device=device))
        return signals_nd

    def generation_output(
        self,
        targets: GenerationTargets | None,
        signal_hidden_gnd: Tensor,
        *,
        embeds: bool,
        keep: Keep | None = None,
    ) -> GenerationOutput:
        """Return what is made of the backbone's signals.

        Under ZeRO-3 each module is a collective: a rank without any media sends one that stands
        for none through the same modules, and hands nothing on (g = 0).

        Args:
            targets: the media; None on a rank without any.
            signal_hidden_gnd: the backbone's last hidden states at the signals, plus their
                embeddings.
            embeds: whether any rank has a text to embed.
            keep: receives the embeddings of texts that have keys.
        """
        dtype = next(self.projector.parameters()).dtype
        if targets is None:
            blank = self.blank(signal_hidden_gnd.device)
            signal_hidden_gnd = signal_hidden_gnd.new_zeros(1, *signal_hidden_gnd.shape[1:])
            made = self._drawings(blank, signal_hidden_gnd.to(dtype), embeds=embeds, keep=None)
            denoised = made.denoised and NoisePrediction(*(part[:0] for part in made.denoised))
            return GenerationOutput(
                made.condition_embeds_glw[:0], made.target_embeds_glw[:0], denoised
            )
        return self._drawings(targets, signal_hidden_gnd.to(dtype), embeds=embeds, keep=keep)

    def _drawings(
        self,
        targets: GenerationTargets,
        signal_hidden_gnd: Tensor,
        *,
        embeds: bool,
        keep: Keep | None,
    ) -> GenerationOutput:
        condition_embeds_glw = self.projector(signal_hidden_gnd)
        target_embeds_glw = self._wanted(targets, embeds=embeds, keep=keep)
        denoised = None
        if self._denoises:
            denoised = self.generator.denoise(
                targets.input_values, condition_embeds_glw, targets.seeds_g
            )
        return GenerationOutput(condition_embeds_glw, target_embeds_glw, denoised)

    def _wanted(self, targets: GenerationTargets, *, embeds: bool, keep: Keep | None) -> Tensor:
        """Return τ(t) (g, l, w), known or made; calls τ if any rank does."""
        made_xlw = None
        if not embeds:
            if targets.embedded is None:  # a medium that stands for none
                return torch.zeros(1, *self.slot.generator.conditions, device=targets.ids_xl.device)
        elif len(targets.ids_xl):
            made_xlw = self.generator.embed(targets.ids_xl)
            if keep is not None and targets.keys:
                keep(self.slot.kind, targets.keys, made_xlw)
        else:
            self.generator.embed(self.blank(targets.ids_xl.device).ids_xl)
        return together(targets.embedded, targets.known_g, made_xlw)

    def blank(self, device: torch.device) -> GenerationTargets:
        """Return a medium that stands for none."""
        spec = self.slot.generator
        return GenerationTargets(
            media_mask_bt=torch.zeros(1, 1, dtype=torch.bool, device=device),
            seeds_g=torch.zeros(1, dtype=torch.long, device="cpu"),
            ids_xl=torch.zeros(1, spec.text_tokens, dtype=torch.long, device=device),
            input_values=torch.zeros(1, *spec.shape, dtype=torch.uint8, device=device),
        )


def signal_ids(outputs: Sequence[OutputBranchSpec], vocabulary: int) -> dict[str, list[int]]:
    """Return, by modality, the ids of its signals as targets: they follow on the vocabulary's."""
    ids: dict[str, list[int]] = {}
    first = vocabulary
    for slot in outputs:
        ids[slot.modality] = list(range(first, first + slot.signals))
        first += slot.signals
    return ids
