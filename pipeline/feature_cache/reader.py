"""The reader of the feature cache: a medium's or a caption's features, if they are cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl.storage.schema import Medium
from model.spec import InputBranchSpec
from pipeline.data.features import CachedFeatures
from pipeline.feature_cache.cache_key import medium_key, text_key
from pipeline.feature_cache.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class CacheReader:
    """Looks features up by kind of media; is pickled for data workers.

    Args:
        branches: by modality, the input branches whose features are cached.
        stores: of the same modalities, and by kind (`to_image`) of the generators whose caption
            embeddings are cached; kinds that share an encoder share the store.
    """

    branches: Mapping[str, InputBranchSpec] = field(default_factory=dict)
    stores: Mapping[str, FeatureStore] = field(default_factory=dict)

    def find(self, medium: Medium) -> CachedFeatures | None:
        """Return the entry of a medium; None where its kind is not cached.

        The medium's bytes are hashed here: that costs a fraction of decoding them, and a wrong
        digest in a shard cannot return another medium's features.
        """
        branch = self.branches.get(medium.kind)
        if branch is None:
            return None
        key = medium_key(hashlib.sha256(medium.data).digest(), branch)
        return CachedFeatures(key=key, features=self.stores[medium.kind].get(key))

    def find_text(self, kind: str, text: str) -> CachedFeatures | None:
        """Return the entry of a caption; None where its kind is not cached."""
        store = self.stores.get(kind)
        if store is None:
            return None
        key = text_key(text)
        return CachedFeatures(key=key, features=store.get(key))
