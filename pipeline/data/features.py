"""The protocol by which the data pipeline reads features; see `pipeline.feature_cache`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from etl.storage.schema import Medium


class FeatureReader(Protocol):
    """Reads the features of media and captions instead of the media and captions.

    Kinds are input modalities, and of generated media `to_…` for the targets of eq. 4 and
    `to_….latents` for the latents of eq. 5.
    """

    @property
    def kinds(self) -> Collection[str]:
        """Return the kinds that are read as features; all others are not."""

    def medium(self, medium: Medium) -> Tensor:
        """Return the features (f, n, d) of a medium.

        Raises:
            ValueError: the medium is unreadable.
            UserError: the features cannot be read.
        """

    def caption(self, kind: str, text: str) -> Tensor:
        """Return the embedding (l, w) of the caption of a medium of `kind` that is generated.

        Raises:
            UserError: it cannot be read.
        """

    def target(self, kind: str, medium: Medium) -> Tensor:
        """Return the latents, or the embedding, of a medium that is generated.

        Raises:
            ValueError: the medium is unreadable.
            UserError: the features cannot be read.
        """
