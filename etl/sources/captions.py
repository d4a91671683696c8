"""Captions of pictures that come in archives: COCO, Karpathy's splits, AI Challenger and kin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair, take
from etl.sources.files import json_rows, read_json, rows_in


def coco_rows(file: Path) -> list[tuple[Any, str | None]]:
    """COCO's annotations, each with the name of its picture.

    Raises:
        UserError: the file has no images and annotations.
    """
    found = read_json(file)
    if not isinstance(found, dict) or not {"images", "annotations"} <= set(found):
        raise UserError(f"{file}: want an object with images and annotations")
    names = {image["id"]: image["file_name"] for image in found["images"]}
    return [(one, names.get(one.get("image_id"))) for one in found["annotations"]]


def coco(row: tuple[Any, str | None]) -> Iterator[Record]:
    """COCO Captions: `{image_id, id, caption}`, and `file_name` of its picture."""
    annotation, name = row
    if name is None:
        raise BadRecordError(f"no picture has the id {annotation.get('image_id')!r}")
    number = str(annotation.get("id", ""))
    yield pair("image", name, take(annotation, "caption", str).strip(), original_id=number)


def karpathy(image: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """Karpathy's splits (COCO, Flickr30k): `{filepath, filename, split, sentences: [{raw}]}`."""
    folder = image.get("filepath")
    name = take(image, "filename", str)
    for sentence in take(image, "sentences", list):
        path = f"{folder}/{name}" if folder else name
        yield pair("image", path, take(sentence, "raw", str).strip(), split=take(image, "split"))


def ai_challenger(image: Any) -> Iterator[Record]:  # noqa: ANN401
    """AI Challenger: `{url, image_id, caption: […]}`; `image_id` is the file's name."""
    for caption in take(image, "caption", list):
        yield pair("image", take(image, "image_id", str), str(caption).strip())


def text_caps(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """TextCaps: `data: [{image_id, image_path, caption_str}]`."""
    name = row.get("image_path") or f"{take(row, 'image_id')}.jpg"
    yield pair("image", name, take(row, "caption_str", str).strip())


def visual_genome(image: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual Genome's regions: `{id, regions: [{phrase, x, y, width, height}]}`."""
    for region in take(image, "regions", list):
        name = f"{image.get('id', region.get('image_id'))}.jpg"
        box = ",".join(str(take(region, side, int)) for side in ("x", "y", "width", "height"))
        yield pair("image", name, take(region, "phrase", str).strip(), box_xywh=box)


COCO = Format(suffixes=(".json",), rows=coco_rows, parse=coco, together=True)
KARPATHY = Format(suffixes=(".json",), rows=rows_in("images"), parse=karpathy)
AI_CHALLENGER = Format(suffixes=(".json",), rows=json_rows, parse=ai_challenger)
TEXT_CAPS = Format(suffixes=(".json",), rows=rows_in("data"), parse=text_caps, together=True)
VISUAL_GENOME = Format(suffixes=(".json",), rows=json_rows, parse=visual_genome)


def guess(seen: Any) -> str:  # noqa: ANN401
    """The format of which a document is."""
    first = seen[0] if isinstance(seen, list) and seen else None
    if isinstance(first, dict):
        return "visual-genome" if "regions" in first else "ai-challenger"
    if isinstance(seen, dict) and "data" in seen:
        return "text-caps"
    return "coco" if isinstance(seen, dict) and "annotations" in seen else "karpathy"
