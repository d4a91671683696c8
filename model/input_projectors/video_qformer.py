"""Video-LLaMA's video and audio Q-Formers.

Zhang et al. 2023, *Video-LLaMA* (arXiv:2306.02858), §2.1.

Shapes: b media, f parts (frames, segments), n tokens of a part, d the encoder's width, q queries of
a frame, w the frame Q-Former's width (d without one), k tokens of a medium, v the backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.input_projectors import qformer
from model.input_projectors.attention import initialise
from model.input_projectors.qformer import QueryingTransformer
from model.parts import each_part
from model.spec import ProjectorShape
from model.spec.qformer import VideoQFormer
from model.text import TextIds
from model.weights import Weights


class VideoQFormerProjector(nn.Module):
    """Each part by itself, then its position added, then all parts at once, then a linear layer."""

    def __init__(self, spec: VideoQFormer, ends: ProjectorShape) -> None:
        super().__init__()
        self.frame = QueryingTransformer(spec.frame, ends.width_in) if spec.frame else None
        width = spec.frame.width if spec.frame else ends.width_in
        self.positions = nn.Embedding(spec.positions, width)
        self.whole = QueryingTransformer(spec.whole, width)
        self.head = nn.Linear(spec.whole.width, ends.width_out)
        self.positions.apply(initialise)
        self.head.apply(initialise)

    def forward(self, features_bfnd: Tensor, text: TextIds | None = None) -> Tensor:
        """Return tokens (b, k, v) of features (b, f, n, d)."""
        parts = features_bfnd.shape[1]
        if self.frame is not None:
            features_bfnd = each_part(self.frame, features_bfnd).unflatten(1, (parts, -1))
        positions_fw = self.positions(torch.arange(parts, device=features_bfnd.device))
        placed_bnw = (features_bfnd + positions_fw[:, None]).flatten(1, 2)
        tokens_bkv: Tensor = self.head(self.whole(placed_bnw))
        return tokens_bkv


def build(
    spec: VideoQFormer, ends: ProjectorShape, *, weights: Weights = "random"
) -> VideoQFormerProjector:
    """Return a new projector; the two Q-Formers' own `weights` are loaded where they name any."""
    projector = VideoQFormerProjector(spec, ends)
    if weights == "pretrained":
        for part, module in ((spec.frame, projector.frame), (spec.whole, projector.whole)):
            if part is not None and module is not None:
                qformer.load(module, part)
    return projector


def convert_state_dict(
    state: Mapping[str, Any], spec: VideoQFormer, *, branch: Literal["video", "audio"]
) -> dict[str, Tensor]:
    """Rename the tensors of one branch of a Video-LLaMA checkpoint to ours.

    Args:
        state: everything else in it is left out.
        spec: the branch's.
        branch: whose names they have.
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
    for part, part_spec, tensors in (("frame", spec.frame, named), ("whole", spec.whole, whole)):
        if part_spec is not None:
            renamed = qformer.convert_state_dict(tensors, part_spec)
            found |= {f"{part}.{name}": tensor for name, tensor in renamed.items()}
    return found


_NAMES = {
    "video": (("llama_proj.", "head."), ("video_frame_position_embedding.", "positions.")),
    "audio": (("audio_llama_proj.", "head."), ("audio_position_embedding.", "positions.")),
}
