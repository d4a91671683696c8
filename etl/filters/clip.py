"""How well a caption fits its image, told by a CLIP model (Radford et al., arXiv:2103.00020).

LAION kept pairs whose cosine of both embeddings was at least 0.3 (LAION-400M, arXiv:2111.02114) or
0.28 (LAION-5B's English part, arXiv:2210.08402), with OpenAI's ViT-B/32; other models need other
thresholds. torch and transformers are imported where the model is loaded, in an actor of its own.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from etl.cli import UserError
from etl.storage.atomic import file_sha256

Device = Literal["auto", "cpu", "cuda"]

_READ = (".json", ".txt", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A model, and the least cosine with which rows are kept (None keeps all).

    `model` is a folder as transformers saves it, or a name on the hub; `batch` are pairs at a time.
    """

    model: str
    least: float | None
    device: Device = "auto"
    batch: int = 64


class Clip:
    """A CLIP model that compares images with captions. Has the weights.

    Args:
        spec: which one; weights must be safetensors.
        cuda: whether to put it on a GPU.
        threads: CPU threads that it may use.
    """

    def __init__(self, spec: ClipSpec, *, cuda: bool, threads: int) -> None:
        import torch  # noqa: PLC0415 - see the module's docstring
        from transformers import AutoTokenizer, CLIPModel  # noqa: PLC0415
        from transformers.models.clip.image_processing_pil_clip import (  # noqa: PLC0415
            CLIPImageProcessorPil,
        )

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = "cuda" if cuda else "cpu"
        model = CLIPModel.from_pretrained(spec.model, use_safetensors=True, dtype=torch.float32)
        self._model = model.eval().to(self._device)
        self._pixels = CLIPImageProcessorPil.from_pretrained(spec.model)
        self._tokens = AutoTokenizer.from_pretrained(spec.model)
        self._batch = spec.batch

    def cosines(self, pairs: Iterable[tuple[bytes, str]]) -> Iterator[float]:
        """The cosine of every image (encoded) and its caption; -1 to 1, in order.

        A caption longer than the model reads is cut.
        """
        left = iter(pairs)
        while batch := list(itertools.islice(left, self._batch)):
            yield from self._compare(batch)

    def _compare(self, batch: list[tuple[bytes, str]]) -> list[float]:
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data, _ in batch]
        pixels = self._pixels(images=pictures, return_tensors="pt")
        tokens = self._tokens(
            [caption for _, caption in batch],
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        inputs: dict[str, Any] = {
            "pixel_values": pixels["pixel_values"],
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
        }
        with self._torch.inference_mode():
            found = self._model(**{k: v.to(self._device) for k, v in inputs.items()})
        cosine = self._torch.nn.functional.cosine_similarity
        return cosine(found.image_embeds, found.text_embeds).cpu().tolist()


def check_model(model: str) -> None:
    """Raise UserError unless it is a folder with a CLIP model, or may be a name on the hub."""
    folder = Path(model)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise UserError(f"--clip-model {model}: no such folder, and no OWNER/NAME of the hub")
        return
    try:
        kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--clip-model {model}: no config.json with a model_type; want a folder of transformers"
        ) from None
    if kind != "clip":
        raise UserError(f"--clip-model {model}: a model of type {kind!r}, want 'clip'")


def model_identity(model: str) -> str:
    """What tells a model from others: a folder's content, or its name on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(file for file in folder.iterdir() if file.suffix in _READ)
    digest = hashlib.sha256(
        "\n".join(f"{file.name} {file_sha256(file)}" for file in files).encode()
    )
    return digest.hexdigest()
