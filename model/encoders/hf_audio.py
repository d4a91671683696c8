"""Encoders of sound of transformers: Whisper, the wav2vec 2.0 family, the AST.

Shapes: b clips, n tokens, d width.
"""

from __future__ import annotations

import functools
import json
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.encoders.hf_tower import build_tower
from model.spec import SpecError
from model.spec.hf_encoders import AST, AST_PREFIX, WHISPER_LIKE, HfAudio
from model.weights import Weights


class HfAudioEncoder(nn.Module):
    """Waveforms or spectrograms to the features of one layer."""

    def __init__(self, spec: HfAudio, tower: PreTrainedModel) -> None:
        super().__init__()
        self.layer = spec.feature_layer
        self.tower = tower
        self.train(False)

    def train(self, mode: bool = True) -> HfAudioEncoder:
        """Stay in evaluation mode: layers and frames are not dropped at random."""
        super().train(False)
        return self

    def forward(self, values: Tensor) -> Tensor:
        """Return features (b, n, d) of inputs (b, *shape)."""
        values = values.to(next(self.tower.parameters()).dtype)
        output = self.tower(values, output_hidden_states=self.layer is not None)
        features_bnd: Tensor = (
            output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        )
        return features_bnd


def build(spec: HfAudio, *, weights: Weights, dtype: torch.dtype) -> HfAudioEncoder:
    """Return the encoder with published or random weights, for the spec's duration.

    Raises:
        SpecError: weights that cannot be loaded, or that do not fit the spec.
    """
    fields = dict(spec.config)
    if spec.model_type in WHISPER_LIKE:
        fields["max_source_positions"] = spec.shape[1] // 2
    elif spec.model_type == AST:
        fields["max_length"] = spec.frames
    tower = build_tower(
        spec.weights, fields, weights=weights, dtype=dtype, resize=partial(_crop, spec)
    )
    return HfAudioEncoder(spec, tower)


def _crop(spec: HfAudio, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the position embeddings of the first seconds.

    Raises:
        SpecError: the encoder hears less than that.
    """
    if positions.shape[-2] < shape[-2]:
        raise SpecError(
            f"encoder 'hf_audio': {spec.seconds} seconds are longer than the weights "
            f"{spec.weights!r} hear; want clips"
        )
    if spec.model_type in WHISPER_LIKE:
        return positions[: shape[0]]
    prefix_1nd, patches_1nd = positions[:, :AST_PREFIX], positions[:, AST_PREFIX:]
    bins, frames = spec.spectrogram_grid
    cropped_1nd = patches_1nd.unflatten(1, (bins, -1))[:, :, :frames].flatten(1, 2)
    return torch.cat([prefix_1nd, cropped_1nd], dim=1)


def preprocess(spec: HfAudio, waveform: NDArray[np.float32]) -> Tensor:
    """Return the features (clips, *shape) that the published extractor computes of a waveform.

    Clips are consecutive; the last is padded with silence, what is beyond it is cut off.
    """
    extractor = _extractor(json.dumps(_overridden(spec)))
    samples = np.asarray(waveform, np.float32)
    # AST's last frames reach beyond the clip; the other extractors cut what is too much.
    length = spec.samples + _frame(spec)
    clips = [samples[number * spec.samples :][:length] for number in range(spec.clips)]
    return torch.cat([_features(spec, extractor, clip) for clip in clips])


def _features(
    spec: HfAudio,
    extractor: Any,  # noqa: ANN401 -- of transformers' classes
    clip: NDArray[np.float32],
) -> Tensor:
    padding: dict[str, Any] = {}
    shortest = 1
    if spec.model_type == AST:
        shortest = _frame(spec)
    else:
        padding = {"padding": "max_length", "max_length": spec.samples, "truncation": True}
    clip = np.pad(clip, (0, max(0, shortest - len(clip))))
    found = extractor(clip, sampling_rate=spec.sample_rate, return_tensors="pt", **padding)
    features: Tensor = found[extractor.model_input_names[0]]
    return features


def _frame(spec: HfAudio) -> int:
    """Return the samples of a frame of 25 ms."""
    return spec.sample_rate // 40


def _overridden(spec: HfAudio) -> dict[str, Any]:
    """Return the extractor's configuration with the spec's duration."""
    return spec.extractor | ({"max_length": spec.frames} if spec.model_type == AST else {})


@functools.cache
def _extractor(config: str) -> Any:  # noqa: ANN401 -- transformers' classes
    """Return transformers' feature extractor from its configuration in JSON."""
    fields = json.loads(config)
    return getattr(transformers, fields["feature_extractor_type"]).from_dict(fields)
