"""Who makes features, and of what: the two keys under which they are kept.

Both are of content. A producer's key is of its weights as they are in memory, wherever they come
from; a medium's is of its bytes. So no renamed folder, no other revision of a hub's weights and no
wrong column of a shard can make one stand for another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec

VERSION = 1
"""Raise it when readers or an encoder's `preprocess` give other inputs for the same media, so that
no old features are used."""


@dataclass(frozen=True, kw_only=True)
class Producer:
    """A frozen part that makes features.

    Args:
        role: which part of a model it is: `encoder`, or `text` for a generator's own text encoder.
        spec: its specification; says where its weights come from, for people.
        weights: fingerprint of the weights as they are.
        dtype: in which it computes, and its features are kept.
        version: of all that stands between the content and the producer.
    """

    role: str
    spec: Mapping[str, Any]
    weights: str
    dtype: str
    version: int = VERSION

    @property
    def key(self) -> str:
        """The name of its folder."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return what `producer.json` says."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value


def encoder_producer(slot: InputBranchSpec, encoder: nn.Module) -> Producer:
    """Return a slot's encoder as a producer; reads all its weights, which must be whole."""
    dtype = str(next(encoder.parameters()).dtype).removeprefix("torch.")
    return Producer(
        role="encoder", spec=asdict(slot.encoder), weights=fingerprint(encoder), dtype=dtype
    )


def text_producer(slot: OutputBranchSpec, generator: nn.Module) -> Producer:
    """Return the text encoder of a way out as a producer; see `encoder_producer`."""
    text = generator.get_submodule("text")
    dtype = str(next(text.parameters()).dtype).removeprefix("torch.")
    return Producer(
        role="text", spec=asdict(slot.generator), weights=fingerprint(text), dtype=dtype
    )


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names, types, shapes and bytes of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def content_key(digest: bytes, how: str) -> bytes:
    """Return the key (32 bytes) of content.

    Args:
        digest: sha256 of a medium's bytes, or of a text in UTF-8.
        how: what else decides what the producer gets of it.
    """
    return hashlib.sha256(how.encode() + b"\0" + digest).digest()


def medium_key(digest: bytes, slot: InputBranchSpec) -> bytes:
    """Return the key of a medium, by the sha256 of its bytes, as a slot reads it.

    How many frames of a video are read is the slot's; all else that decides is the encoder's spec.
    """
    return content_key(digest, f"{slot.modality} {slot.frames}")


def text_key(text: str) -> bytes:
    """Return the key of a text: of its UTF-8; how it is cut and padded is the producer's spec."""
    return content_key(hashlib.sha256(text.encode()).digest(), "text")
