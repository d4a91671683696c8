"""The distinct media of data, by key: what a cache must hold to be complete for them.

Made from the shards' columns; no medium is read, except one whose shard declares no sha256.

Shapes: k media.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etl.storage.schema import Turn
from etl.storage.shards import ShardSet
from model.spec import InputBranchSpec, ModelSpec
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.generation_targets import branch_kinds, captions
from pipeline.feature_cache.cache_key import (
    declared_digest,
    medium_digest,
    medium_key,
    text_key,
)


@dataclass(frozen=True, kw_only=True)
class DistinctMedia:
    """The distinct media of one kind (or captions, of media to be generated), in reading order.

    Args:
        prefixes_k: the first 8 bytes of each key.
        media_k2: the row of each in the data, and its number among the sample's media.
    """

    prefixes_k: NDArray[np.uint64]
    media_k2: NDArray[np.int64]


def distinct_media(
    shards: ShardSet,
    model: ModelSpec,
    outputs: Sequence[OutputBranchSpec],
    kinds: Collection[str],
) -> dict[str, DistinctMedia]:
    """Return the distinct media of each kind; 24 bytes of memory per medium while it runs.

    Args:
        shards: the data.
        model: its input branches say how media are read.
        outputs: the output branches of the stage.
        kinds: of media: input modalities, and `to_…` for the captions of generated ones.
    """
    inputs: dict[str, InputBranchSpec] = {branch.modality: branch for branch in model.inputs}
    columns = {kind: (array("Q"), array("q")) for kind in kinds}
    for row, number, kind, key in _keys(shards, inputs, outputs, kinds):
        prefixes, places = columns[kind]
        prefixes.append(int.from_bytes(key[:8], "little"))
        places.extend((row, number))
    found = {}
    for kind, (prefixes, places) in columns.items():
        prefixes_k = np.array(prefixes, dtype=np.uint64)
        first_k = np.sort(np.unique(prefixes_k, return_index=True)[1])
        media_k2 = np.array(places, dtype=np.int64).reshape(-1, 2)
        found[kind] = DistinctMedia(prefixes_k=prefixes_k[first_k], media_k2=media_k2[first_k])
    return found


def _keys(
    shards: ShardSet,
    inputs: Mapping[str, InputBranchSpec],
    outputs: Sequence[OutputBranchSpec],
    kinds: Collection[str],
) -> Iterator[tuple[int, int, str, bytes]]:
    """Yield row, number, kind and key of each medium (of the caption of one to generate)."""
    text_columns = ["turns", "lineage"] if outputs else []
    row = 0
    for table in shards.batches(["media.kind", "media.sha256", *text_columns]):
        for entry in table.to_pylist():
            media_kinds, texts = entry["media.kind"], []
            if outputs:
                turns = [Turn(**turn) for turn in entry["turns"]]
                media_kinds = branch_kinds(turns, media_kinds, outputs)
                texts = captions(turns, dict(entry["lineage"] or ()))
            for number, kind in enumerate(media_kinds):
                if kind not in kinds:
                    continue
                if kind in inputs:
                    digest = declared_digest(entry["media.sha256"][number])
                    digest = digest or medium_digest(shards[row].media[number])
                    yield row, number, kind, medium_key(digest, inputs[kind])
                else:
                    yield row, number, kind, text_key(texts[number])
            row += 1
