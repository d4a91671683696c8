"""The distinct media of data, by key: what a cache must hold to be complete for them.

Made from the shards' columns; no medium is read, except one whose shard declares no sha256.

Shapes: k media.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
    target_medium_key,
    text_key,
)


@dataclass(frozen=True, kw_only=True)
class DistinctMedia:
    """The distinct media of one kind, or captions of media to be generated, in reading order.

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
        kinds: of media: input modalities, and of generated ones `to_…` and `to_….latents` for the
            targets of eqs. 4 and 5.
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
    """Yield row, number, kind and key of each medium, or of its caption."""
    generated = {branch.kind: branch for branch in outputs}
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
                declared = declared_digest(entry["media.sha256"][number])
                read = partial(_digest, shards, row, number, declared)
                if kind in generated:
                    text = texts[number]
                    for own, key in _target_keys(generated[kind], text, read, kinds):
                        yield row, number, own, key
                elif kind in kinds:
                    yield row, number, kind, medium_key(read(), inputs[kind])
            row += 1


def _digest(shards: ShardSet, row: int, number: int, declared: bytes | None) -> bytes:
    """Return a medium's declared digest, or else that of its bytes."""
    return declared or medium_digest(shards[row].media[number])


def _target_keys(
    branch: OutputBranchSpec, text: str, digest: Callable[[], bytes], kinds: Collection[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield kind and key of the targets of eqs. 4 and 5 of a generated medium."""
    if branch.kind in kinds and branch.generator.embeds_media:
        yield branch.kind, target_medium_key(digest(), branch)
    elif branch.kind in kinds:
        yield branch.kind, text_key(text)
    if branch.latents_kind in kinds:
        yield branch.latents_kind, target_medium_key(digest(), branch)
