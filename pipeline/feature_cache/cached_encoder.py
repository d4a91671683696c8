"""Frozen encoders whose outputs are cached: of media, and of captions.

Shapes: x media or texts, f frames (tiles, clips) of a medium, n tokens of each, d width; l
positions and w width of a generator's text encoder.
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
from pipeline.data.generation_targets import captions, tokenize_caption
from pipeline.data.readers import read_medium
from pipeline.feature_cache.cache_key import (
    EncoderId,
    media_encoder_id,
    medium_key,
    text_encoder_id,
    text_key,
)


class CachedEncoder(Protocol):
    """A frozen encoder and its inputs; `number` is that of a medium in its sample."""

    @property
    def kind(self) -> str:
        """Return the kind of media: an input modality, or `to_…`."""

    @property
    def module(self) -> nn.Module:
        """Return the encoder."""

    @property
    def parent(self) -> nn.Module:
        """Return the module to be moved to a device for the encoder to run there."""

    def encoder_id(self) -> EncoderId:
        """Return the encoder's identity; reads all weights, which must not be partitioned."""

    def key(self, sample: Sample, number: int) -> bytes:
        """Return the cache key of a medium or its caption."""

    def input_values(self, sample: Sample, number: int) -> Tensor:
        """Return the encoder's input for one medium; raises OSError or ValueError if unreadable."""

    def encode(self, values: Tensor) -> Tensor:
        """Return the features of a batch of inputs."""


@dataclass(frozen=True, kw_only=True)
class CachedMediaEncoder:
    """The encoder of an input branch; features are (x, f, n, d)."""

    branch: InputBranchSpec
    module: nn.Module

    @property
    def kind(self) -> str:
        """Return the modality."""
        return self.branch.modality

    @property
    def parent(self) -> nn.Module:
        """Return the encoder itself."""
        return self.module

    def encoder_id(self) -> EncoderId:
        """Return the encoder's identity."""
        return media_encoder_id(self.branch, self.module)

    def key(self, sample: Sample, number: int) -> bytes:
        """Return the key of a medium; hashes its bytes."""
        return medium_key(hashlib.sha256(sample.media[number].data).digest(), self.branch)

    def input_values(self, sample: Sample, number: int) -> Tensor:
        """Return a decoded and preprocessed medium."""
        return preprocess(self.branch.encoder, read_medium(sample.media[number], self.branch))

    def encode(self, values: Tensor) -> Tensor:
        """Return the encoder's outputs."""
        return encode_segments(self.module, values, jointly=self.branch.encoder.encodes_jointly)


@dataclass(frozen=True, kw_only=True)
class CachedTextEncoder:
    """A generator's own text encoder, for the captions of media; embeddings are (x, l, w).

    Args:
        branch: the output branch.
        parent: its generator, whose module `text` is the encoder.
        tokenizer: the encoder's.
    """

    branch: OutputBranchSpec
    parent: Generator
    tokenizer: PreTrainedTokenizerBase

    @property
    def kind(self) -> str:
        """Return `to_…`."""
        return self.branch.kind

    @property
    def module(self) -> nn.Module:
        """Return the text encoder."""
        return self.parent.get_submodule("text")

    def encoder_id(self) -> EncoderId:
        """Return the text encoder's identity."""
        return text_encoder_id(self.branch, self.parent)

    def key(self, sample: Sample, number: int) -> bytes:
        """Return the key of a medium's caption."""
        return text_key(captions(sample.turns, sample.lineage)[number])

    def input_values(self, sample: Sample, number: int) -> Tensor:
        """Return the padded ids (l,) of a medium's caption."""
        text = captions(sample.turns, sample.lineage)[number]
        return torch.tensor(tokenize_caption(self.tokenizer, self.branch, text))

    def encode(self, values: Tensor) -> Tensor:
        """Return the embeddings of captions."""
        return self.parent.embed(values)
