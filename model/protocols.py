"""What each component file defines, as protocols that `model.build` checks its tables against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.output_branch import Generator
from model.spec import ProjectorShape
from model.weights import Weights

# Each file's functions take the spec of its own class, which a protocol cannot express.
AnySpec = Any


class EncoderFile(Protocol):
    """A file of `model/encoders/`."""

    def build(self, spec: AnySpec, *, weights: Weights, dtype: torch.dtype) -> nn.Module:
        """Return the encoder."""

    def preprocess(self, spec: AnySpec, raw: Any) -> Tensor:  # noqa: ANN401 -- a decoded medium
        """Return the encoder's input (segments, *shape) for a decoded medium."""


class ProjectorFile(Protocol):
    """A file of `model/input_projectors/`."""

    def build(self, spec: AnySpec, shape: ProjectorShape, *, weights: Weights) -> nn.Module:
        """Return the projector."""


class BackboneFile(Protocol):
    """A file of `model/backbones/`."""

    def build(self, spec: AnySpec, *, weights: Weights, dtype: torch.dtype) -> PreTrainedModel:
        """Return the backbone."""


class OutputProjectorFile(Protocol):
    """A file of `model/output_projectors/`."""

    def build(self, spec: AnySpec, width_in: int, streams: Sequence[tuple[int, int]]) -> nn.Module:
        """Return a new projector to a condition with these tokens and widths."""


class GeneratorFile(Protocol):
    """A file of `model/generators/`."""

    def build(
        self,
        spec: AnySpec,
        *,
        denoising: bool,
        weights: Weights,
        dtype: torch.dtype,
        decoding: bool = False,
        encoding: bool | None = None,
    ) -> Generator:
        """Return the generator, for eq. 5 and to sample; or only what makes τ(t) and latents."""

    def preprocess(self, spec: AnySpec, raw: Any) -> Tensor:  # noqa: ANN401 -- a decoded medium
        """Return the generator's training target (*shape) for a decoded medium."""

    def tokenizers(self, spec: AnySpec, *, weights: Weights) -> Sequence[PreTrainedTokenizerBase]:
        """Return the tokenizers of its text encoders."""

    def caption_ids(
        self, spec: AnySpec, tokenizers: Sequence[PreTrainedTokenizerBase], text: str
    ) -> tuple[int, ...]:
        """Return a caption's ids, as `Generator.embed` reads them."""
