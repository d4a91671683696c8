"""Video-LLaMA's video and audio Q-Formers.

Zhang et al. 2023, *Video-LLaMA* (arXiv:2306.02858), §2.1.

Shapes: b media, f segments (frames, clips), n tokens of a segment, d the encoder's width, q queries
of a frame, w the frame Q-Former's width (d without one), k tokens of a medium, v the backbone's
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.input_projectors import qformer
from model.input_projectors.attention import initialise
from model.input_projectors.qformer import QueryingTransformer
from model.segments import project_segments
from model.spec import ProjectorShape
from model.spec.qformer import VideoQFormer
from model.text import TextIds
from model.weights import Weights


class VideoQFormerProjector(nn.Module):
    """Q-Former per segment, position embeddings, Q-Former over all segments, linear layer."""

    def __init__(self, spec: VideoQFormer, shape: ProjectorShape) -> None:
        super().__init__()
        self.frame = QueryingTransformer(spec.frame, shape.width_in) if spec.frame else None
        width = spec.frame.width if spec.frame else shape.width_in
        self.positions = nn.Embedding(spec.max_segments, width)
        self.whole = QueryingTransformer(spec.whole, width)
        self.head = nn.Linear(spec.whole.width, shape.width_out)
        self.positions.apply(initialise)
        self.head.apply(initialise)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        segments = features_bfnd.shape[1]
        if self.frame is not None:
            features_bfnd = project_segments(self.frame, features_bfnd).unflatten(1, (segments, -1))
        positions_fw = self.positions(torch.arange(segments, device=features_bfnd.device))
        features_bnw = (features_bfnd + positions_fw[:, None]).flatten(1, 2)
        tokens_bkv: Tensor = self.head(self.whole(features_bnw))
        return tokens_bkv


def build(
    spec: VideoQFormer, shape: ProjectorShape, *, weights: Weights = "random"
) -> VideoQFormerProjector:
    """Return a new projector; the two Q-Formers load the weights that their specs name, if any."""
    projector = VideoQFormerProjector(spec, shape)
    if weights == "pretrained":
        for own, module in ((spec.frame, projector.frame), (spec.whole, projector.whole)):
            if own is not None and module is not None:
                qformer.load(module, own)
    return projector


def convert_state_dict(
    state: Mapping[str, Any], spec: VideoQFormer, *, branch: Literal["video", "audio"]
) -> dict[str, Tensor]:
    """Rename the tensors of one branch of a Video-LLaMA checkpoint to ours.

    Args:
        state: of the checkpoint; tensors of other components are dropped.
        spec: of the branch.
        branch: which of the checkpoint's two branches.
    """
    named: Mapping[str, Tensor] = state.get("model", state)
    found = {
        own + name.removeprefix(theirs): tensor
        for theirs, own in _NAMES[branch]
        for name, tensor in named.items()
        if name.startswith(theirs)
    }
    whole = {
        name.removeprefix(f"{branch}_"): tensor
        for name, tensor in named.items()
        if name.startswith((f"{branch}_Qformer.", f"{branch}_query_tokens"))
    }
    for name, own_spec, tensors in (("frame", spec.frame, named), ("whole", spec.whole, whole)):
        if own_spec is not None:
            renamed = qformer.convert_state_dict(tensors, own_spec)
            found |= {f"{name}.{key}": tensor for key, tensor in renamed.items()}
    return found


_NAMES = {
    "video": (("llama_proj.", "head."), ("video_frame_position_embedding.", "positions.")),
    "audio": (("audio_llama_proj.", "head."), ("audio_position_embedding.", "positions.")),
}
