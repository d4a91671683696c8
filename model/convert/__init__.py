"""Published transformers models as our systems: configurations to specs, tensor names to ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import PretrainedConfig

from model.convert.blip import wire_blip_2, wire_instructblip
from model.convert.llava import wire_llava, wire_video_llava
from model.convert.wiring import Wiring

FAMILIES: Mapping[str, Callable[[PretrainedConfig, Path], Wiring]] = {
    "LlavaForConditionalGeneration": wire_llava,
    "VideoLlavaForConditionalGeneration": wire_video_llava,
    "Blip2ForConditionalGeneration": wire_blip_2,
    "InstructBlipForConditionalGeneration": wire_instructblip,
    "InstructBlipVideoForConditionalGeneration": wire_instructblip,
}
"""Transformers' class → a function that returns its wiring, given its configuration and the folder
to which its frozen components will be written."""
