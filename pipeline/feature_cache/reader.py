"""The reader of the feature cache: features, latents and embeddings, for the data pipeline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from etl.cli import UserError
from etl.storage.schema import Medium
from model.spec import ModelSpec
from pipeline.feature_cache.cache_key import (
    check_digest,
    medium_digest,
    medium_key,
    target_medium_key,
    text_key,
)
from pipeline.feature_cache.feature_file import DamagedFileError
from pipeline.feature_cache.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class CacheReader:
    """Reads features from a complete cache; is pickled for data workers.

    Args:
        model: says how media are read.
        stores: by kind, see `FeatureReader`.
        command: makes missing features.
    """

    model: ModelSpec
    stores: Mapping[str, FeatureStore]
    command: str

    @property
    def kinds(self) -> Collection[str]:
        """Return the kinds that are read as features."""
        return self.stores.keys()

    def medium(self, medium: Medium) -> Tensor:
        """Return the features of a medium.

        The medium's bytes are hashed: that costs a fraction of decoding them, and a wrong digest in
        a shard cannot return another medium's features.

        Raises:
            ValueError: the medium is unreadable, for the reason that was found when encoding it.
            UserError: a file of features is damaged.
        """
        check_digest(medium)
        key = medium_key(medium_digest(medium), self.model.input_branch(medium.kind))
        return self._get(medium.kind, key)

    def caption(self, kind: str, text: str) -> Tensor:
        """Return the embedding of a caption; raises UserError as `medium` does."""
        return self._get(kind, text_key(text))

    def target(self, kind: str, medium: Medium) -> Tensor:
        """Return the latents or the embedding of a medium that is generated.

        A shard's sha256 is taken as it is, so that the medium is not read: the job that made the
        features has compared it with the bytes.

        Raises:
            ValueError, UserError: as `medium` does.
        """
        branch = next(b for b in self.model.outputs if kind in (b.kind, b.latents_kind))
        return self._get(kind, target_medium_key(medium_digest(medium), branch))

    def _get(self, kind: str, key: bytes) -> Tensor:
        try:
            features = self.stores[kind].get(key)
        except DamagedFileError as error:
            raise UserError(f"{error}; `{self.command}` makes its features again") from None
        if isinstance(features, str):
            raise ValueError(features)
        return features
