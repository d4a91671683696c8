"""CLIP similarity of an image and its caption (Radford et al., arXiv:2103.00020).

LAION kept pairs with a cosine similarity of at least 0.3 (LAION-400M, arXiv:2111.02114) or 0.28
(LAION-5B's English part, arXiv:2210.08402) with OpenAI's ViT-B/32; other models need other
thresholds. torch and transformers are imported only when a model is loaded, in a Ray actor.
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

_MODEL_FILES = (".json", ".txt", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A CLIP model, and the minimum similarity of rows that are kept (None keeps all).

    `model` is a folder as transformers saves it, or a name on the hub; `batch_size` is in pairs.
    """

    model: str
    min_score: float | None
    device: Device = "auto"
    batch_size: int = 64


class ClipModel:
    """A loaded CLIP model that compares images with captions.

    Args:
        spec: which one; its weights must be safetensors.
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
        self._image_processor = CLIPImageProcessorPil.from_pretrained(spec.model)
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model)
        self._batch_size = spec.batch_size

    def similarities(self, pairs: Iterable[tuple[bytes, str]]) -> Iterator[float]:
        """The cosine similarity of every encoded image and its caption, from -1 to 1, in order.

        Captions are truncated to the model's context length.
        """
        remaining = iter(pairs)
        while batch := list(itertools.islice(remaining, self._batch_size)):
            yield from self._compare(batch)

    def _compare(self, batch: list[tuple[bytes, str]]) -> list[float]:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data, _ in batch]
        pixels = self._image_processor(images=images, return_tensors="pt")
        tokens = self._tokenizer(
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
            output = self._model(**{k: v.to(self._device) for k, v in inputs.items()})
        cosine = self._torch.nn.functional.cosine_similarity
        return cosine(output.image_embeds, output.text_embeds).cpu().tolist()


def check_model(model: str) -> None:
    """Raise UserError unless it is a folder with a CLIP model, or looks like a name on the hub."""
    folder = Path(model)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise UserError(f"--clip-model {model}: no such folder, and not OWNER/NAME on the hub")
        return
    try:
        kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--clip-model {model}: no config.json with a model_type; want a transformers folder"
        ) from None
    if kind != "clip":
        raise UserError(f"--clip-model {model}: a model of type {kind!r}, want 'clip'")


def model_identity(model: str) -> str:
    """An identifier of the model for the job's plan: the folder's content, or the hub name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(file for file in folder.iterdir() if file.suffix in _MODEL_FILES)
    digest = hashlib.sha256(
        "\n".join(f"{file.name} {file_sha256(file)}" for file in files).encode()
    )
    return digest.hexdigest()
