"""What the cache keeps: what a frozen part makes of one thing of a sample, a medium or a text.

Shapes: x media or texts, f parts of a medium, n tokens of a part, d width; l positions and w width
of a generator's text encoder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import Sample
from model.build import preprocess
from model.output_branch import Generator
from model.segments import encode_segments
from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.generation_targets import caption_ids, captions
from pipeline.data.readers import read
from pipeline.feature_cache.cache_key import (
    Producer,
    encoder_producer,
    medium_key,
    text_key,
    text_producer,
)


class Kept(Protocol):
    """A frozen part and what it is given; `number` is that of a medium in its sample."""

    @property
    def kind(self) -> str:
        """Return the kind of media: a modality that goes in, or `to_…`."""

    @property
    def module(self) -> nn.Module:
        """Return the frozen part."""

    @property
    def whole(self) -> nn.Module:
        """Return what must be on a device for it to run."""

    def producer(self) -> Producer:
        """Return who makes the features; reads all weights, which must be whole."""

    def key(self, sample: Sample, number: int) -> bytes:
        """Return what they are kept under."""

    def values(self, sample: Sample, number: int) -> Tensor:
        """Return the part's input of one; raises OSError or ValueError where it is unreadable."""

    def make(self, values: Tensor) -> Tensor:
        """Return the features of several."""


@dataclass(frozen=True, kw_only=True)
class KeptMedia:
    """An encoder, and the media of a slot; features are (x, f, n, d)."""

    slot: InputBranchSpec
    module: nn.Module

    @property
    def kind(self) -> str:
        """Return the modality."""
        return self.slot.modality

    @property
    def whole(self) -> nn.Module:
        """Return the encoder."""
        return self.module

    def producer(self) -> Producer:
        """Return the encoder as a producer."""
        return encoder_producer(self.slot, self.module)

    def key(self, sample: Sample, number: int) -> bytes:
        """Return the key of a medium; hashes its bytes."""
        return medium_key(hashlib.sha256(sample.media[number].data).digest(), self.slot)

    def values(self, sample: Sample, number: int) -> Tensor:
        """Return a decoded medium."""
        return preprocess(self.slot.encoder, read(sample.media[number], self.slot))

    def make(self, values: Tensor) -> Tensor:
        """Return what the encoder makes of media."""
        return encode_segments(self.module, values, jointly=self.slot.encoder.encodes_jointly)


@dataclass(frozen=True, kw_only=True)
class KeptTexts:
    """A generator's own text encoder, and what is told of media; embeddings are (x, l, w).

    Args:
        slot: the way out.
        whole: its generator, whose module `text` is the encoder.
        tokenizer: the encoder's.
    """

    slot: OutputBranchSpec
    whole: Generator
    tokenizer: PreTrainedTokenizerBase

    @property
    def kind(self) -> str:
        """Return `to_…`."""
        return self.slot.kind

    @property
    def module(self) -> nn.Module:
        """Return the text encoder."""
        return self.whole.get_submodule("text")

    def producer(self) -> Producer:
        """Return the text encoder as a producer."""
        return text_producer(self.slot, self.whole)

    def key(self, sample: Sample, number: int) -> bytes:
        """Return the key of what is told of a medium."""
        return text_key(captions(sample.turns, sample.lineage)[number])

    def values(self, sample: Sample, number: int) -> Tensor:
        """Return the padded ids (l,) of a text."""
        text = captions(sample.turns, sample.lineage)[number]
        return torch.tensor(caption_ids(self.tokenizer, self.slot, text))

    def make(self, values: Tensor) -> Tensor:
        """Return the embeddings of texts."""
        return self.whole.embed(values)
