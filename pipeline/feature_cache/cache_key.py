"""Cache keys: which encoder made a feature (or latents), from which medium or text.

Both keys are of content: an encoder's is of its weights in memory, wherever they come from; a
medium's is of its bytes. So no renamed folder, no other revision of a hub's weights and no wrong
digest in a shard can return the features of another encoder or medium.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from etl.storage.schema import Medium
from model.spec import InputBranchSpec
from model.spec.output_branches import OutputBranchSpec

_WITHOUT_EFFECT = ("min_snr", "steps", "guidance_scale")
"""Fields of generators that decide on eq. 5 or on sampling, not on targets."""
VERSION = 1
"""Increase it whenever readers or an encoder's `preprocess` give other inputs for the same media,
so that no stale features are used."""


@dataclass(frozen=True, kw_only=True)
class EncoderId:
    """The identity of a frozen encoder whose outputs are cached.

    Args:
        role: `encoder`, `text` for what makes a generator's conditions, or `latents` for its
            autoencoder's encoder.
        spec: its specification, for people: it names where the weights come from.
        weights: fingerprint of the weights in memory.
        dtype: of its computation and of its features.
        version: of the processing between the content and the encoder.
    """

    role: str
    spec: Mapping[str, Any]
    weights: str
    dtype: str
    version: int = VERSION

    @property
    def key(self) -> str:
        """The name of its folder in the cache."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `encoder.json`."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value


def media_encoder_id(branch: InputBranchSpec, encoder: nn.Module) -> EncoderId:
    """Return the identity of an input branch's encoder; reads all its weights, unpartitioned."""
    dtype = str(next(encoder.parameters()).dtype).removeprefix("torch.")
    return EncoderId(
        role="encoder", spec=asdict(branch.encoder), weights=fingerprint(encoder), dtype=dtype
    )


def text_encoder_id(branch: OutputBranchSpec, generator: nn.Module) -> EncoderId:
    """Return the identity of what makes a generator's conditions; see `media_encoder_id`."""
    return _generator_part_id("text", branch, generator.get_submodule("text"))


def latents_encoder_id(branch: OutputBranchSpec, generator: nn.Module) -> EncoderId:
    """Return the identity of the encoder of a generator's autoencoder; see `media_encoder_id`."""
    return _generator_part_id("latents", branch, generator.get_submodule("vae"))


def _generator_part_id(role: str, branch: OutputBranchSpec, module: nn.Module) -> EncoderId:
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    spec = {k: v for k, v in asdict(branch.generator).items() if k not in _WITHOUT_EFFECT}
    return EncoderId(role=role, spec=spec, weights=fingerprint(module), dtype=dtype)


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names, types, shapes and bytes of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def content_key(digest: bytes, reading: str) -> bytes:
    """Return the key (32 bytes) of a medium or a text.

    Args:
        digest: sha256 of a medium's bytes, or of a text in UTF-8.
        reading: how it is read, as far as that changes the encoder's input.
    """
    return hashlib.sha256(reading.encode() + b"\0" + digest).digest()


def declared_digest(sha256: str) -> bytes | None:
    """Return the sha256 that a shard declares for a medium's bytes; None if it declares none."""
    try:
        digest = bytes.fromhex(sha256 or "")
    except ValueError:
        return None
    return digest if len(digest) == hashlib.sha256().digest_size else None


def medium_digest(medium: Medium) -> bytes:
    """Return the sha256 that a shard declares for a medium's bytes; without one, compute it."""
    return declared_digest(medium.sha256) or hashlib.sha256(medium.data).digest()


def check_digest(medium: Medium) -> None:
    """Raise ValueError if a shard declares a wrong sha256: that of another medium, perhaps."""
    if hashlib.sha256(medium.data).digest() != medium_digest(medium):
        raise ValueError("its sha256 in the shard is not that of its bytes")


def medium_key(digest: bytes, branch: InputBranchSpec) -> bytes:
    """Return the key of a medium, from the sha256 of its bytes, as an input branch reads it.

    The number of frames of a video is the branch's; all else is in the encoder's spec.
    """
    return content_key(digest, f"{branch.modality} {branch.frames}")


def target_medium_key(medium_digest: bytes, branch: OutputBranchSpec) -> bytes:
    """Return the key of a medium that is generated; how it is read is in the generator's spec."""
    return content_key(medium_digest, f"to_{branch.modality}")


def text_key(text: str) -> bytes:
    """Return the key of a text; how it is truncated and padded is in the generator's spec."""
    return content_key(hashlib.sha256(text.encode()).digest(), "text")
