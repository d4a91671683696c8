"""Image captions with images in archives: COCO, Karpathy's splits, AI Challenger and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, pair, require_field
from etl.sources.files import json_rows, read_json, rows_in
from etl.sources.looks import COCO_RESULTS, is_coco_result


def coco_rows(file: Path) -> list[tuple[Any, Any]]:
    """COCO's annotations, each with its image's entry (None if there is none).

    Raises:
        UserError: the file has no images and annotations.
    """
    document = read_json(file)
    fields = document if isinstance(document, dict) else {}
    images, annotations = fields.get("images"), fields.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"{file}: want an object with images and annotations")
    by_id = {
        str(image["id"]): image for image in images if isinstance(image, dict) and "id" in image
    }
    return [
        (one, by_id.get(str(one.get("image_id"))) if isinstance(one, dict) else None)
        for one in annotations
    ]


def coco(row: tuple[Any, Any]) -> Iterator[Record]:
    """COCO Captions: `{image_id, id, caption}`, and `file_name` of its image."""
    annotation, image = row
    caption = require_field(annotation, "caption", str).strip()
    if image is None:
        raise BadRecordError(f"no image has the id {annotation.get('image_id')!r}")
    number = str(annotation.get("id", ""))
    yield pair("image", require_field(image, "file_name", str), caption, original_id=number)


def karpathy(image: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """Karpathy's splits (COCO, Flickr30k): `{filepath, filename, split, sentences: [{raw}]}`."""
    folder = image.get("filepath")
    name = require_field(image, "filename", str)
    for sentence in require_field(image, "sentences", list):
        path = f"{folder}/{name}" if folder else name
        yield pair(
            "image",
            path,
            require_field(sentence, "raw", str).strip(),
            split=require_field(image, "split", str),
        )


def ai_challenger(image: Any) -> Iterator[Record]:  # noqa: ANN401
    """AI Challenger: `{url, image_id, caption: […]}`; `image_id` is the file's name."""
    for caption in require_field(image, "caption", list):
        yield pair("image", require_field(image, "image_id", str), str(caption).strip())


def text_caps(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """TextCaps: `data: [{image_id, image_path, caption_str}]`."""
    name = row.get("image_path") or f"{require_field(row, 'image_id')}.jpg"
    yield pair("image", name, require_field(row, "caption_str", str).strip())


def visual_genome(image: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual Genome's regions: `{id, regions: [{phrase, x, y, width, height}]}`."""
    for region in require_field(image, "regions", list):
        name = f"{image.get('id', region.get('image_id'))}.jpg"
        box = ",".join(
            str(require_field(region, side, int)) for side in ("x", "y", "width", "height")
        )
        yield pair("image", name, require_field(region, "phrase", str).strip(), box_xywh=box)


COCO = Format(suffixes=(".json",), rows=coco_rows, parse=coco, group_by_medium=True)
KARPATHY = Format(suffixes=(".json",), rows=rows_in("images"), parse=karpathy)
AI_CHALLENGER = Format(suffixes=(".json",), rows=json_rows, parse=ai_challenger)
TEXT_CAPS = Format(suffixes=(".json",), rows=rows_in("data"), parse=text_caps, group_by_medium=True)
VISUAL_GENOME = Format(suffixes=(".json",), rows=json_rows, parse=visual_genome)


FORMATS: Mapping[str, Format] = {
    "coco": COCO,
    "karpathy": KARPATHY,
    "ai-challenger": AI_CHALLENGER,
    "text-caps": TEXT_CAPS,
    "visual-genome": VISUAL_GENOME,
}


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a document.

    Raises:
        UserError: it has a model's results, which look like annotations, or nothing that is known;
            the message names the nearest format.
    """
    first = content[0] if isinstance(content, list) and content else None
    if is_coco_result(first):
        raise UserError(f"unknown format{COCO_RESULTS}")
    if isinstance(first, dict):
        return "visual-genome" if "regions" in first else "ai-challenger"
    if isinstance(content, dict) and "data" in content:
        return "text-caps"
    if isinstance(content, dict) and "annotations" in content:
        return "coco"
    if isinstance(content, dict) and "images" in content:
        return "karpathy"
    found = f"fields {sorted(content)[:6]}" if isinstance(content, dict) else f"entry {first!r:.60}"
    raise UserError(f"unknown format ({found}); the nearest is coco, of 'images' and 'annotations'")
