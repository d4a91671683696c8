"""Frozen encoders whose features score generated media, each from a folder or a file.

Shapes: n media, d width of features, chw channels and pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from etl.cli import UserError
from pipeline.data.readers import read_audio, read_image, read_video
from pipeline.evaluate.device import inference_device
from pipeline.generate.media_scores import Features

_BATCH = 16


class Encoder(Protocol):
    """Computes features of media.

    Attributes:
        name: of the model, for the result.
    """

    name: str

    def media(self, files: Iterable[bytes]) -> Features:
        """Return the features (n, d) of media files.

        Raises:
            OSError, ValueError: a file cannot be decoded.
        """


class TransformersEncoder:
    """An encoder of transformers, and for CLIP and CLAP of texts, too.

    Features are CLIP's and CLAP's projected embeddings; of other models the pooled output or, where
    there is none, the mean of the last hidden states.

    Args:
        folder: a checkpoint of safetensors, with its processor.
        kind: of media.

    Raises:
        UserError: no such folder, or not such a checkpoint.
    """

    def __init__(self, folder: Path, kind: Literal["image", "video", "audio"]) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: no config.json; want a folder with a transformers checkpoint"
            )
        self._folder, self._kind = folder, kind
        local = {"local_files_only": True}
        cls = AutoFeatureExtractor if kind == "audio" else AutoImageProcessor
        try:
            model = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
            self._processor = cls.from_pretrained(folder, **local)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"{folder}: cannot be loaded ({reason})") from None
        self._model = model.eval().to(inference_device())
        self.name = f"{type(model).__name__} of {folder}"

    def media(self, files: Iterable[bytes]) -> Features:
        """Return the features (n, d) of media files."""
        return _in_batches(files, self._media)

    def texts(self, texts: Sequence[str]) -> Features:
        """Return the embeddings (n, d) of texts.

        Raises:
            UserError: the model has none.
        """
        if not hasattr(self._model, "get_text_features"):
            raise UserError(f"{self.name}: has no text encoder; want a CLIP or a CLAP checkpoint")
        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        longest = self._model.config.text_config.max_position_embeddings
        if self._model.config.model_type == "clap":
            longest -= 2  # RoBERTa's positions begin after the padding token

        def encode(batch: list[str]) -> Tensor:
            inputs = tokenizer(
                batch, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            return _pooled(self._model.get_text_features(**inputs.to(self._model.device)))

        return _in_batches(texts, encode)

    def _media(self, files: list[bytes]) -> Tensor:
        model, processor = self._model, self._processor
        if self._kind == "audio":
            rate = processor.sampling_rate
            waves = [read_audio(data, rate) for data in files]
            inputs = processor(waves, sampling_rate=rate, return_tensors="pt")
        elif self._kind == "video":
            frames = [read_video(data, model.config.num_frames) for data in files]
            inputs = processor(frames, return_tensors="pt")
        else:
            inputs = processor([read_image(data) for data in files], return_tensors="pt")
        inputs = inputs.to(model.device)
        name = "get_audio_features" if self._kind == "audio" else "get_image_features"
        return _pooled(getattr(model, name, model)(**inputs))


class Inception:
    """Inception-v3 as FID has it, converted from TensorFlow: torch-fidelity's, 2048 features.

    Args:
        weights: torch-fidelity's file `weights-inception-2015-12-05-6726825d.pth`.

    Raises:
        UserError: torch-fidelity is not installed, or the file is not its weights.
    """

    def __init__(self, weights: Path) -> None:
        try:
            library = import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise UserError(
                f"--inception: {error}; install torch-fidelity and a torchvision for this PyTorch"
            ) from None
        try:
            # torch-fidelity unpickles the file; one with anything but tensors ends here.
            torch.load(weights, weights_only=True, map_location="cpu")
            self._model = library.FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(weights)
            )
        except Exception as error:  # of several libraries
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{weights}: not Inception's weights ({reason})") from None
        self._model = self._model.eval().to(inference_device())
        self.name = f"Inception-v3 of {weights}"

    def media(self, files: Iterable[bytes]) -> Features:
        """Return the features (n, 2048) of images, each resized by the extractor itself."""

        def encode(batch: list[bytes]) -> Tensor:
            rows: list[Tensor] = []
            for data in batch:  # of any size
                pixels_chw = torch.from_numpy(np.array(read_image(data))).permute(2, 0, 1)
                rows += self._model(pixels_chw[None].to(inference_device()))
            return torch.cat(rows)

        return _in_batches(files, encode)


def _pooled(output: Any) -> Tensor:  # noqa: ANN401 -- a tensor or a model's output
    """Return the features (n, d) of a model's output."""
    if isinstance(output, Tensor):
        return output
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(1) if pooled is None else pooled


def _in_batches(items: Iterable[Any], encode: Any) -> Features:  # noqa: ANN401
    """Return the features of items that are encoded a batch at a time; none give (0, 0)."""
    source = iter(items)
    found: list[Features] = []
    with torch.no_grad():
        while batch := list(itertools.islice(source, _BATCH)):
            found.append(encode(batch).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, 0))
