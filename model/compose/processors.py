"""Published configurations of processors: how pictures, videos and sounds become model inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers.utils import cached_file

from model.spec import SpecError
from model.spec.image_processor import ImageProcessor

Part = Literal["image_processor", "video_processor", "feature_extractor"]

_NESTED = "processor_config.json"
_FILES: Mapping[Part, tuple[str, ...]] = {
    "image_processor": ("preprocessor_config.json",),
    "video_processor": ("video_preprocessor_config.json", "preprocessor_config.json"),
    "feature_extractor": ("preprocessor_config.json",),
}


def read_processor(source: str, part: Part) -> dict[str, Any] | None:
    """Return a processor's configuration as transformers finds it; None if there is none.

    Args:
        source: a hub name or a folder.
        part: the processor; `processor_config.json` may hold several.

    Raises:
        SpecError: a file that is no JSON object.
    """
    nested = _read(source, _NESTED) or {}
    if part in nested:
        found: dict[str, Any] = nested[part]
        return found
    return next((config for name in _FILES[part] if (config := _read(source, name))), None)


def image_processor(
    source: str, *, default: str = "CLIPImageProcessor", video: bool = False
) -> ImageProcessor | None:
    """Return how a published checkpoint makes pixels of pictures; None if it does not say.

    Args:
        source: a hub name or a folder.
        default: transformers' class where the file names none.
        video: whether of a video's frames; otherwise of pictures.

    Raises:
        SpecError: rules that cannot be expressed.
    """
    config = read_processor(source, "video_processor" if video else "image_processor")
    try:
        return None if config is None else ImageProcessor.from_config(config, default)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None


def required_image_processor(source: str) -> ImageProcessor:
    """Return the image processor of a checkpoint; raises SpecError if it has none."""
    processor = image_processor(source)
    if processor is None:
        raise SpecError(
            f"{source}: has no preprocessor_config.json and no processor_config.json, one of which "
            "says how pictures become pixels"
        )
    return processor


def _read(source: str, name: str) -> dict[str, Any] | None:
    try:
        file = str(Path(source) / name) if Path(source).is_dir() else cached_file(source, name)
        config = json.loads(Path(str(file)).read_bytes())
    except OSError:
        return None
    except ValueError as error:
        raise SpecError(f"{source}/{name}: {error}") from None
    if not isinstance(config, dict):
        raise SpecError(f"{source}/{name}: want a JSON object")
    return config
