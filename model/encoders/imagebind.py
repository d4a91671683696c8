"""ImageBind: one transformer per modality, one embedding space (Girdhar et al. 2023).

Girdhar et al. 2023, *ImageBind* (arXiv:2305.05665). Each trunk is a vision transformer on patches
of its modality's signal (§3.3): tubelets of two frames, patches of a log-mel spectrogram, of a
depth or a thermal image, or pieces of a motion sensor's six channels. The class token is projected
and scaled to unit length. There is no drop-path and dropout since the trunks stay frozen.

Shapes: b segments, n = 1 + patches tokens, d width, e width of the shared space, f frames, m mel
bins.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from model.encoders.blocks import INITIAL_STD, Attention, Block, linear
from model.encoders.fbank import fbank, fit_frames
from model.encoders.pictures import normalise, to_pixels
from model.spec.image_processor import center_crop
from model.spec.imagebind import ImageBind
from model.weights import Weights, load_published

NORM_EPSILON = 1e-6
PATCH_NORM_EPSILON = 1e-5
AUDIO_MEAN, AUDIO_DEVIATION = -4.268, 9.138


class ImageBindEncoder(nn.Module):
    """One trunk: segments of a medium to tokens."""

    def __init__(self, spec: ImageBind) -> None:
        super().__init__()
        self.spec = spec
        width, is_image = spec.hidden_width, spec.trunk == "image"
        convolution: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(spec.kernel)]
        self.patches = convolution(spec.shape[0], width, spec.kernel, spec.stride, bias=False)
        nn.init.normal_(self.patches.weight, std=INITIAL_STD)
        # The image trunk was initialised from OpenCLIP's, which normalises after adding positions.
        self.patch_norm = nn.Identity() if is_image else nn.LayerNorm(width, PATCH_NORM_EPSILON)
        self.norm_in = nn.LayerNorm(width, NORM_EPSILON) if is_image else nn.Identity()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * INITIAL_STD)
        self.positions = nn.Parameter(torch.randn(1, 1 + spec.patches, width) * INITIAL_STD)
        self.blocks = nn.ModuleList(
            Block(
                Attention(width, spec.heads, bias=True, extra_key=not is_image),
                width,
                4 * width,
                NORM_EPSILON,
            )
            for _ in range(spec.layers)
        )
        if spec.output == "embedding":
            self.norm = nn.LayerNorm(width, NORM_EPSILON)
            self.head = linear(width, spec.embedding_width, bias=False)

    def forward(self, segments: Tensor) -> Tensor:
        """Return `spec.output` for segments (b, *shape): (b, 1, e) or (b, n, d)."""
        patches_bnd = self.patches(segments.to(next(self.parameters()).dtype)).flatten(2)
        patches_bnd = self.patch_norm(patches_bnd.transpose(1, 2))
        cls_b1d = self.cls_token.expand(len(segments), 1, -1)
        tokens_bnd = self.norm_in(torch.cat([cls_b1d, patches_bnd], dim=1) + self.positions)
        for block in self.blocks:
            tokens_bnd = block(tokens_bnd)
        if self.spec.output == "embedding":
            tokens_bnd = self.head(self.norm(tokens_bnd[:, :1]))
        if self.spec.normalise:
            tokens_bnd = F.normalize(tokens_bnd, dim=-1)
        return self.spec.scale * tokens_bnd


def build(spec: ImageBind, *, weights: Weights, dtype: torch.dtype) -> ImageBindEncoder:
    """Return the trunk with published or random weights."""
    encoder = ImageBindEncoder(spec)
    if weights == "pretrained":
        load_published(encoder, spec.weights, functools.partial(convert_state_dict, spec))
    return encoder.to(dtype)


def convert_state_dict(spec: ImageBind, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of one trunk of the published checkpoint to ours.

    Dropped: tensors of other modalities, including text; the trunk's `modality_postprocessors`,
    whose only number is `spec.scale`; without `embedding`, its `modality_heads`.
    """
    modality = "vision" if spec.trunk == "image" else spec.trunk
    prefixes = [f"modality_preprocessors.{modality}.", f"modality_trunks.{modality}."]
    heads = f"modality_heads.{modality}."
    if spec.output == "embedding":
        prefixes.append(heads)
    names = {
        "rgbt_stem.": "",
        "depth_stem.": "",
        "imu_stem.": "",
        # In the image trunk, module 0 repeats a picture to two frames.
        "proj.1.": "proj.",
        "norm_layer.": "patch_norm.",
        "pos_embedding_helper.": "",
        "pos_embed": "positions",
        "pre_transformer_layer.0.": "norm_in.",
        ".attn.in_proj_": ".attention.qkv.",
        ".attn.out_proj.": ".attention.out.",
        ".attn.bias_k": ".attention.key",
        ".attn.bias_v": ".attention.value",
        ".norm_1.": ".norm1.",
        ".norm_2.": ".norm2.",
        ".mlp.fc1.": ".mlp.0.",
        ".mlp.fc2.": ".mlp.2.",
        "proj.weight": "patches.weight",
    }
    ours: dict[str, Tensor] = {}
    for their_name, tensor in checkpoint.items():
        prefix = next((prefix for prefix in prefixes if their_name.startswith(prefix)), None)
        if prefix is None:
            continue
        name = their_name.removeprefix(prefix)
        if prefix == heads:
            # Norm, selection of the class token, dropout (motion only), projection.
            name = f"norm.{name[2:]}" if name.startswith("0.") else "head.weight"
        for theirs, our in names.items():
            name = name.replace(theirs, our)
        ours[name] = tensor
    # For motion sensors, the patch embedding is stored as a linear layer, channel by channel.
    ours["patches.weight"] = ours["patches.weight"].reshape(
        spec.hidden_width, spec.shape[0], *spec.kernel
    )
    return ours


Raw = Image.Image | Sequence[Image.Image] | NDArray[np.float32]


def preprocess(spec: ImageBind, raw: Raw) -> Tensor:
    """Return the trunk's input (segments, *shape) for a decoded medium.

    Args:
        spec: of the trunk.
        raw: a picture; a list of a video's frames, each of which forms a segment with the following
            frame; a mono waveform; or a motion sensor's channels by steps, truncated or
            zero-padded.

    Raises:
        ValueError: the trunk cannot encode this kind of medium.
    """
    match spec.trunk, raw:
        case "image", Image.Image():
            frame = _colours(spec, raw)
            return torch.stack([frame, frame], dim=1)[None]
        case "image", Sequence():
            frames = [_colours(spec, picture) for picture in raw]
            pairs = zip(frames, [*frames[1:], frames[-1]], strict=True)
            return torch.stack([torch.stack(pair, dim=1) for pair in pairs])
        case "depth" | "thermal", Image.Image():
            grey = np.asarray(_square(raw.convert("L"), spec.shape[-1]), np.float32) / 255
            return torch.from_numpy(grey)[None, None]
        case "audio", np.ndarray():
            return _mel_clips(spec, torch.from_numpy(np.asarray(raw, np.float32)))
        case "imu", np.ndarray() if raw.ndim == 2 and len(raw) == spec.shape[0]:
            steps = torch.from_numpy(np.asarray(raw, np.float32))
            return fit_frames(steps.T, spec.shape[1]).T[None]
    raise ValueError(f"ImageBind's {spec.trunk} trunk cannot encode a {type(raw).__name__}")


def _square(picture: Image.Image, side: int) -> Image.Image:
    """Return the middle square, resized such that the shorter side is `side`."""
    shorter = min(picture.size)
    width, height = (side * length // shorter for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def _colours(spec: ImageBind, picture: Image.Image) -> Tensor:
    """Return normalised pixels (3, side, side)."""
    side = spec.shape[-1]
    return normalise(to_pixels(_square(picture, side)), center_crop(side))


def _mel_clips(spec: ImageBind, waveform: Tensor) -> Tensor:
    """Return log-mel clips (clips, 1, m, f), spread evenly from the start to the end."""
    samples = round(spec.seconds * spec.sample_rate)
    spare = max(0, len(waveform) - samples)
    clips = []
    for number in range(spec.clips):
        start = spare * number // max(1, spec.clips - 1)
        clip = waveform[start : start + samples]
        clip = clip - clip.mean() if len(clip) else clip
        features_fm = fbank(clip, spec.sample_rate, spec.shape[1], "hann")
        clips.append(fit_frames(features_fm, spec.shape[2]).T)
    return ((torch.stack(clips) - AUDIO_MEAN) / AUDIO_DEVIATION)[:, None]
