"""The input of one forward pass: token ids, media, and targets of generated media.

Shapes: b sequences, t positions, s positions of a seq2seq decoder, m input media of a kind,
g generated media of a kind, f segments of a medium, n tokens of a segment, d width of features, l
positions and w width of a generator's text encoder, o positions with a target, q sequences that
samples consist of, e occurrences of media.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.text import TextIds

IGNORED = -100
"""Label of a position without a target, as in PyTorch's cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """All media of one kind in a micro-batch, in reading order.

    Args:
        input_values: the encoder's input (m, f, *shape); None where features are given.
        media_mask_bt: true at the positions of media tokens.
        rows_m: index of the sequence that each medium is in.
        starts_m: the first position of its sequence at which each medium is visible.
        text: the instruction for each medium, for projectors that read it.
        features: the encoder's features (m, f, n, d) instead of its input.
        order_e: where media occur more than once, as in the sequences of a preference, the index of
            the medium of each occurrence, in reading order; None where each occurs once.
    """

    input_values: Tensor | None
    media_mask_bt: Tensor
    rows_m: Tensor
    starts_m: Tensor
    text: TextIds | None = None
    features: Tensor | None = None
    order_e: Tensor | None = None

    def to(self, device: torch.device | str) -> Media:
        """Return the media on `device`."""
        return Media(
            input_values=_to(self.input_values, device),
            media_mask_bt=self.media_mask_bt.to(device),
            rows_m=self.rows_m.to(device),
            starts_m=self.starts_m.to(device),
            text=None if self.text is None else self.text.to(device),
            features=_to(self.features, device),
            order_e=_to(self.order_e, device),
        )


@dataclass(frozen=True, kw_only=True)
class GenerationTargets:
    """Targets of all generated media of one kind in a micro-batch, in reading order.

    Args:
        media_mask_bt: true at the positions of signal tokens.
        seeds_g: random seeds of the time step and the noise of eq. 5.
        ids_gl: padded ids of the captions, in the vocabulary of the generator's text encoder; None
            where embeddings are given.
        input_values: the media themselves (g, *shape), as far as they are needed; else empty.
        cached_embeds: the targets (g, l, w) of eq. 4 instead of ids or media that they are made of;
            in GRPO the conditions under which media were generated.
        cached_latents: the latents (g, c, y, x) for eq. 5 instead of the media.
        noise_g: in GRPO the standard deviation of the noise in these conditions; 0 of media that
            are no part of a sampled answer.
    """

    media_mask_bt: Tensor
    seeds_g: Tensor
    ids_gl: Tensor | None
    input_values: Tensor
    cached_embeds: Tensor | None = None
    cached_latents: Tensor | None = None
    noise_g: Tensor | None = None

    def to(self, device: torch.device | str) -> GenerationTargets:
        """Return the targets on `device`; seeds stay on the CPU, where noise is sampled."""
        return GenerationTargets(
            media_mask_bt=self.media_mask_bt.to(device),
            seeds_g=self.seeds_g,
            ids_gl=_to(self.ids_gl, device),
            input_values=self.input_values.to(device),
            cached_embeds=_to(self.cached_embeds, device),
            cached_latents=_to(self.cached_latents, device),
            noise_g=_to(self.noise_g, device),
        )


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """The sequences of a packed batch, where samples consist of several (preferences).

    Args:
        samples_q: the sample that each belongs to, ascending; a dummy's is beyond the last.
        roles_q: what each is to its sample, see `pipeline.data.preferences.Role`.
        rewards_q: of answers that the model has sampled.
        advantages_q: of the same, over the others of their group.
        old_logps_o: log-probabilities of their tokens (the batch's targets), then of their media,
            under the policy that has sampled them; None while the policy is still the same.
    """

    samples_q: Tensor
    roles_q: Tensor
    rewards_q: Tensor | None = None
    advantages_q: Tensor | None = None
    old_logps_o: Tensor | None = None

    def to(self, device: torch.device | str) -> Sequences:
        """Return them on `device`."""
        return Sequences(
            samples_q=self.samples_q.to(device),
            roles_q=self.roles_q.to(device),
            rewards_q=_to(self.rewards_q, device),
            advantages_q=_to(self.advantages_q, device),
            old_logps_o=_to(self.old_logps_o, device),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch.

    Args:
        ids_bt: token ids; any valid id at the positions of media.
        attention_bt: 1 for tokens, 0 for padding.
        labels_bt: the ids of targets, else `IGNORED`. With `decoder_bs` (b, s): the target of each
            decoder position.
        context_bt: true before the last answer of each sample.
        media: input media, by kind.
        generation_targets: of generated media, by kind (`to_image`).
        decoder_bs: decoder input of a seq2seq backbone; None for a causal one.
        sentences: the assistant's text of each row, (b, l) in the vocabulary of a Q-Former's text
            branch or a P-Former; None where the model reads no sentences.
        positions_bt: position of each token in its sample, where a row packs several samples:
            positions restart at 0 and attention stays within samples. None where rows are samples.
        sequences: where a sample consists of several sequences, each with positions from 0 on.
    """

    ids_bt: Tensor
    attention_bt: Tensor
    labels_bt: Tensor
    context_bt: Tensor
    media: Mapping[str, Media] = field(default_factory=dict)
    generation_targets: Mapping[str, GenerationTargets] = field(default_factory=dict)
    decoder_bs: Tensor | None = None
    sentences: TextIds | None = None
    positions_bt: Tensor | None = None
    sequences: Sequences | None = None

    @property
    def sampled_media(self) -> int:
        """The number of generated media whose conditions were sampled (GRPO)."""
        noises = [targets.noise_g for targets in self.generation_targets.values()]
        return sum(int((noise_g > 0).sum()) for noise_g in noises if noise_g is not None)

    def count(self, kind: str) -> int:
        """Return the number of media of a kind, input or generated."""
        if kind in self.generation_targets:
            return len(self.generation_targets[kind].seeds_g)
        return len(self.media[kind].rows_m) if kind in self.media else 0

    @property
    def target_mask(self) -> Tensor:
        """Mask of the logits that have a target: (b, t - 1), or (b, s) with a decoder."""
        labels = self.labels_bt if self.decoder_bs is not None else self.labels_bt[:, 1:]
        return labels != IGNORED

    @property
    def targets_o(self) -> Tensor:
        """The targets (o,), in the order of `target_mask`."""
        labels = self.labels_bt if self.decoder_bs is not None else self.labels_bt[:, 1:]
        return labels[self.target_mask]

    @property
    def sequences_bt(self) -> Tensor:
        """The index (b, t) of the sequence that each position of a packed batch belongs to."""
        assert self.positions_bt is not None
        starts_bt = self.positions_bt == 0
        return starts_bt.flatten().cumsum(0).view_as(self.positions_bt) - 1

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        return Batch(
            ids_bt=self.ids_bt.to(device),
            attention_bt=self.attention_bt.to(device),
            labels_bt=self.labels_bt.to(device),
            context_bt=self.context_bt.to(device),
            media={kind: media.to(device) for kind, media in self.media.items()},
            generation_targets={
                kind: targets.to(device) for kind, targets in self.generation_targets.items()
            },
            decoder_bs=_to(self.decoder_bs, device),
            sentences=None if self.sentences is None else self.sentences.to(device),
            positions_bt=_to(self.positions_bt, device),
            sequences=None if self.sequences is None else self.sequences.to(device),
        )


def _to(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def sentences_of(batch: Batch, length: int) -> TextIds:
    """Return the sentences of a batch, padded to the same length on every rank.

    A row without a sentence has one unmasked token, so that its attention is defined.
    """
    rows, device = len(batch.ids_bt), batch.ids_bt.device
    ids_bl = torch.zeros(rows, length, dtype=torch.long, device=device)
    mask_bl = torch.zeros_like(ids_bl)
    if batch.sentences is not None:
        own_length = batch.sentences.ids_bl.shape[1]
        ids_bl[:, :own_length] = batch.sentences.ids_bl
        mask_bl[:, :own_length] = batch.sentences.mask_bl
    mask_bl[:, 0] = 1
    return TextIds(ids_bl=ids_bl, mask_bl=mask_bl)
