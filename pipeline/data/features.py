"""The protocol by which the data pipeline reads cached features; see `pipeline.feature_cache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from etl.storage.schema import Medium


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """The cache's entry for a medium or a text.

    Args:
        key: the cache key.
        features: (f, n, d), of a text (l, w); None where they are not cached yet.
    """

    key: bytes
    features: Tensor | None


class FeatureReader(Protocol):
    """Looks features up by medium or text; returns None for kinds that are not cached."""

    def find(self, medium: Medium) -> CachedFeatures | None:
        """Return the entry of a medium."""

    def find_text(self, kind: str, text: str) -> CachedFeatures | None:
        """Return the entry of a caption, for the medium of `kind` that it describes."""


class NoFeatures:
    """A reader without a cache."""

    def find(self, medium: Medium) -> CachedFeatures | None:
        """Return None."""

    def find_text(self, kind: str, text: str) -> CachedFeatures | None:
        """Return None."""
