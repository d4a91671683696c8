"""What a model takes in at once.

Shapes: b sequences, t positions, s positions of a seq2seq decoder, m media of a kind that go in,
g of a kind that come out, f parts of a medium, n tokens of a part, d width of features, l positions
and w width of a generator's text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.text import TextIds

IGNORED = -100
"""Label of a position that is no target, as PyTorch's cross-entropy has it."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """All media of one kind in a micro-batch, in reading order.

    Args:
        values: the encoder's input (m, f, *shape) of all media, or of those whose features are not
            known.
        media_mask_bt: true where a medium's tokens go.
        rows_m: the sequence that each medium is in.
        starts_m: the first position of its sequence that knows of it.
        text: the instruction for each medium, for projectors that read it.
        features: what the encoder has made of the other media before, (those, f, n, d); None where
            nothing is known.
        known_m: whether a medium is one of those; None likewise.
        keys: what the values' features are to be kept under, for who keeps them; or empty.
    """

    input_values: Tensor
    media_mask_bt: Tensor
    rows_m: Tensor
    starts_m: Tensor
    text: TextIds | None = None
    features: Tensor | None = None
    known_m: Tensor | None = None
    keys: tuple[bytes, ...] = ()

    def to(self, device: torch.device | str) -> Media:
        """Return the media on `device`."""
        return Media(
            input_values=self.input_values.to(device),
            media_mask_bt=self.media_mask_bt.to(device),
            rows_m=self.rows_m.to(device),
            starts_m=self.starts_m.to(device),
            text=None if self.text is None else self.text.to(device),
            features=None if self.features is None else self.features.to(device),
            known_m=None if self.known_m is None else self.known_m.to(device),
            keys=self.keys,
        )


@dataclass(frozen=True, kw_only=True)
class GenerationTargets:
    """All media of one kind that the backbone is to say, in reading order; g media.

    Args:
        media_mask_bt: true where a medium's signals stand.
        seeds_g: what the time and the noise of eq. 5 are drawn from.
        ids_xl: padded ids of what is told of the media, in the vocabulary of the generator's text
            encoder, of all or of those x whose embedding is not known.
        values: the media themselves (g, *shape) for eq. 5; empty where that is not wanted.
        embedded: what the text encoder has made of the other texts before, (those, l, w); None
            where nothing is known.
        known_g: whether a text is one of those; None likewise.
        keys: what the other embeddings are to be kept under, for who keeps them; or empty.
    """

    media_mask_bt: Tensor
    seeds_g: Tensor
    ids_xl: Tensor
    input_values: Tensor
    embedded: Tensor | None = None
    known_g: Tensor | None = None
    keys: tuple[bytes, ...] = ()

    def to(self, device: torch.device | str) -> GenerationTargets:
        """Return the media on `device`; seeds stay, their draws are made on the host."""
        return GenerationTargets(
            media_mask_bt=self.media_mask_bt.to(device),
            seeds_g=self.seeds_g,
            ids_xl=self.ids_xl.to(device),
            input_values=self.input_values.to(device),
            embedded=None if self.embedded is None else self.embedded.to(device),
            known_g=None if self.known_g is None else self.known_g.to(device),
            keys=self.keys,
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch.

    Args:
        ids_bt: token ids; any valid id at the places of media.
        attention_bt: 1 where there is a token, 0 where there is padding.
        labels_bt: the ids again where they are targets, else `IGNORED`. With `decoder_bs`, (b, s):
            what each position of the decoder is to say.
        context_bt: true before the last answer, for backbones that see it in both directions.
        media: those that go in, by kind.
        generation_targets: those that come out, by kind (`to_image`).
        decoder_bs: the decoder's input of a seq2seq backbone; None for a causal one.
        sentences: what the assistant says in each row, (b, l) in the vocabulary of a Q-Former's
            text half or a P-Former; None where no part of the model reads it.
        positions_bt: of each token in its sample, where a row holds several: they begin anew with
            each, and no sample sees another. None where a row is one sample.
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

    def count(self, kind: str) -> tuple[int, int]:
        """Return how many media of a kind there are, and of how many no features are known."""
        if kind in self.generation_targets:
            return len(self.generation_targets[kind].seeds_g), len(
                self.generation_targets[kind].ids_xl
            )
        if kind in self.media:
            return len(self.media[kind].rows_m), len(self.media[kind].input_values)
        return 0, 0

    @property
    def targeted(self) -> Tensor:
        """Return where the logits have a target: (b, t - 1), or (b, s) with a decoder."""
        labels = self.labels_bt if self.decoder_bs is not None else self.labels_bt[:, 1:]
        return labels != IGNORED

    @property
    def targets_m(self) -> Tensor:
        """Return the targets (m,), in the order of `targeted`."""
        labels = self.labels_bt if self.decoder_bs is not None else self.labels_bt[:, 1:]
        return labels[self.targeted]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        return Batch(
            ids_bt=self.ids_bt.to(device),
            attention_bt=self.attention_bt.to(device),
            labels_bt=self.labels_bt.to(device),
            context_bt=self.context_bt.to(device),
            media={kind: media.to(device) for kind, media in self.media.items()},
            generation_targets={
                kind: drawn.to(device) for kind, drawn in self.generation_targets.items()
            },
            decoder_bs=None if self.decoder_bs is None else self.decoder_bs.to(device),
            sentences=None if self.sentences is None else self.sentences.to(device),
            positions_bt=None if self.positions_bt is None else self.positions_bt.to(device),
        )


def sentences_of(batch: Batch, length: int) -> TextIds:
    """Return the sentences of a batch, each padded to the same length on every rank.

    A row without one holds one token, so that no row's attention is empty.
    """
    rows, device = len(batch.ids_bt), batch.ids_bt.device
    ids_bl = torch.zeros(rows, length, dtype=torch.long, device=device)
    mask_bl = torch.zeros_like(ids_bl)
    if batch.sentences is not None:
        given = batch.sentences.ids_bl.shape[1]
        ids_bl[:, :given] = batch.sentences.ids_bl
        mask_bl[:, :given] = batch.sentences.mask_bl
    mask_bl[:, 0] = 1
    return TextIds(ids_bl=ids_bl, mask_bl=mask_bl)
