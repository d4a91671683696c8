"""What the loader asks for: a medium's features, if they are known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from etl.storage.schema import Medium
from model.spec import InputBranchSpec
from pipeline.data.features import Found
from pipeline.feature_cache.cache_key import medium_key, text_key
from pipeline.feature_cache.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class CacheReader:
    """Known features by kind of media; travels to the processes that decode.

    Args:
        slots: by modality, those whose encoders' features are looked up.
        stores: of the same modalities, and by kind (`to_image`) of the generators whose text
            encoders' embeddings are; those that share an encoder share the object, too.
    """

    slots: Mapping[str, InputBranchSpec] = field(default_factory=dict)
    stores: Mapping[str, FeatureStore] = field(default_factory=dict)

    def find(self, medium: Medium) -> Found | None:
        """Return what is known of a medium; None where that kind is not looked up.

        Its bytes are hashed here: that costs a fraction of decoding them, and a wrong digest in a
        shard cannot give it another medium's features.
        """
        slot = self.slots.get(medium.kind)
        if slot is None:
            return None
        key = medium_key(hashlib.sha256(medium.data).digest(), slot)
        return Found(key=key, features=self.stores[medium.kind].get(key))

    def find_text(self, kind: str, text: str) -> Found | None:
        """Return what is known of a text that tells what to draw; None where that is not kept."""
        store = self.stores.get(kind)
        if store is None:
            return None
        key = text_key(text)
        return Found(key=key, features=store.get(key))
