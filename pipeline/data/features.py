"""Cached features as the data pipeline asks for them; `pipeline.feature_cache` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from etl.storage.schema import Medium


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is cached of a medium, or of a text.

    Args:
        key: what its features are cached under.
        features: (f, n, d), of a text (l, w); None where they are not cached.
    """

    key: bytes
    features: Tensor | None


class FeatureReader(Protocol):
    """Looks features up by medium or text; None where that kind is not cached."""

    def find(self, medium: Medium) -> Found | None:
        """Return what is cached of a medium."""

    def find_text(self, kind: str, text: str) -> Found | None:
        """Return what is cached of a text that describes a medium to be generated."""


class NoFeatures:
    """Reads no cache."""

    def find(self, medium: Medium) -> Found | None:
        """Return None."""

    def find_text(self, kind: str, text: str) -> Found | None:
        """Return None."""
