"""Presets: published systems, one small function each, from shared blocks; imports no torch."""

from collections.abc import Callable, Mapping

from model.presets.blip import (
    blip_2,
    blip_2_flan_t5_xxl,
    dlp,
    dress,
    instructblip,
    instructblip_flan_t5_xl,
    x_instructblip,
)
from model.presets.cogvlm import cogvlm
from model.presets.digits import (
    digits,
    digits_any,
    digits_audio,
    digits_image_audio,
    digits_omni,
    digits_points,
    digits_video,
)
from model.presets.flamingo import flamingo_3b, flamingo_9b, flamingo_80b
from model.presets.imagebind import codi_2, next_gpt, pandagpt
from model.presets.llava import (
    chatspot,
    llava,
    llava_1_5_7b,
    llava_1_5_13b,
    shikra,
    vila_7b,
    vila_13b,
)
from model.presets.minigpt import bubogpt, minigpt_4, minigpt_5, minigpt_v2
from model.presets.pali import pali_x
from model.presets.qwen import qwen_vl
from model.presets.video import mplug_owl, video_chatgpt, video_llama, videochat
from model.presets.xllm import x_llm
from model.spec import System, choose

PRESETS: Mapping[str, Callable[[], System]] = {
    "digits": digits,
    "digits_video": digits_video,
    "digits_audio": digits_audio,
    "digits_points": digits_points,
    "digits_image_audio": digits_image_audio,
    "digits_omni": digits_omni,
    "digits_any": digits_any,
    "flamingo_3b": flamingo_3b,
    "flamingo_9b": flamingo_9b,
    "flamingo_80b": flamingo_80b,
    "blip_2": blip_2,
    "blip_2_flan_t5_xxl": blip_2_flan_t5_xxl,
    "llava": llava,
    "minigpt_4": minigpt_4,
    "mplug_owl": mplug_owl,
    "x_llm": x_llm,
    "videochat": videochat,
    "instructblip": instructblip,
    "instructblip_flan_t5_xl": instructblip_flan_t5_xl,
    "pandagpt": pandagpt,
    "pali_x": pali_x,
    "video_llama": video_llama,
    "video_chatgpt": video_chatgpt,
    "shikra": shikra,
    "dlp": dlp,
    "bubogpt": bubogpt,
    "chatspot": chatspot,
    "qwen_vl": qwen_vl,
    "next_gpt": next_gpt,
    "minigpt_5": minigpt_5,
    "llava_1_5_7b": llava_1_5_7b,
    "llava_1_5_13b": llava_1_5_13b,
    "minigpt_v2": minigpt_v2,
    "cogvlm": cogvlm,
    "dress": dress,
    "x_instructblip": x_instructblip,
    "codi_2": codi_2,
    "vila_7b": vila_7b,
    "vila_13b": vila_13b,
}
"""Name → function that returns the system, in the survey's order."""


def system(name: str) -> System:
    """Return a preset by name; raises SpecError with the nearest name otherwise."""
    return PRESETS[choose(name, list(PRESETS), "preset")]()
