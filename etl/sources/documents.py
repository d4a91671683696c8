"""Interleaved documents of text and images: MMC4, OBELICS.

A document becomes one assistant turn with a placeholder at the position of each image, since all of
its tokens are targets (survey, §3.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field
from etl.sources.fields import lineage_fields, media_names
from etl.sources.files import json_lines, parquet_or_json_rows
from etl.sources.looks import DOCUMENTS, detect
from etl.storage.schema import Turn

MIN_SIMILARITY = 0.24
"""OpenFlamingo's minimum `matched_sim` (arXiv:2308.01390, §3.2)."""


def mmc4(min_similarity: float) -> Format:
    """MMC4: `{url, text_list, image_info: [{raw_url, matched_text_index, matched_sim}]}`.

    An image is placed before the sentence that it is matched to.

    Args:
        min_similarity: less similar images are left out; lineage counts them.
    """

    def parse(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
        sentences = require_field(record, "text_list", list)
        before: dict[int, list[MediaRef]] = {}
        below = 0
        for info in require_field(record, "image_info", list):
            index = require_field(info, "matched_text_index", int)
            if not 0 <= index < len(sentences):
                raise BadRecordError(f"an image is matched to sentence {index} of {len(sentences)}")
            if require_field(info, "matched_sim", (int, float)) < min_similarity:
                below += 1
                continue
            ref = MediaRef(kind="image", url=require_field(info, "raw_url", str))
            before.setdefault(index, []).append(ref)
        parts: list[str | MediaRef] = []
        for index, sentence in enumerate(sentences):
            parts += [*before.get(index, ()), str(sentence)]
        lineage = {"page": str(record.get("url") or "")}
        lineage |= lineage_fields(record, *_MMC4, media=parts)
        yield _document(parts, **lineage, **({"below_similarity": str(below)} if below else {}))

    return Format(suffixes=(".jsonl",), rows=json_lines, parse=parse)


_MMC4 = ("url", "text_list", "image_info", "similarity_matrix", "could_have_url_duplicate")


def obelics(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """OBELICS: `{images: [URL or null], texts: [text or null]}`, exactly one at each index.

    An image may be a struct, too: `{bytes, path}` as in Hugging Face's parquet files, or `{url}`.
    """
    images, sentences = require_field(record, "images", list), require_field(record, "texts", list)
    if len(images) != len(sentences):
        raise BadRecordError(f"{len(images)} images, but {len(sentences)} texts")
    parts: list[str | MediaRef] = []
    for image, text in zip(images, sentences, strict=True):
        names = media_names(image, "images")
        if len(names) > 1 or bool(names) == bool(text):
            raise BadRecordError("want either an image or a text at each index")
        parts.append(MediaRef(kind="image", url=names[0]) if names else str(text))
    metadata = record.get("general_metadata")
    try:
        page = json.loads(metadata).get("url", "") if isinstance(metadata, str) else ""
    except (ValueError, AttributeError):
        page = ""
    read = ("images", "texts", "metadata", "general_metadata")
    yield _document(parts, page=str(page), **lineage_fields(record, *read, media=parts))


def _document(parts: list[str | MediaRef], **lineage: str) -> Record:
    """Texts and images in order: sentences joined by blanks, images on lines of their own."""
    text = ""
    for part in parts:
        piece = part.strip() if isinstance(part, str) else "<image>\n"
        separator = " " if text and not text[-1].isspace() and isinstance(part, str) else ""
        if not isinstance(part, str) and text and not text.endswith("\n"):
            separator = "\n"
        text += separator + piece
    media = tuple(part for part in parts if isinstance(part, MediaRef))
    turns = (Turn(role="assistant", text=text.strip()),)
    nonempty = {name: value for name, value in lineage.items() if value}
    return Record(turns=turns, media=media, lineage=nonempty)


OBELICS = Format(suffixes=(".parquet", ".jsonl"), rows=parquet_or_json_rows, parse=obelics)


def formats(min_similarity: float = MIN_SIMILARITY) -> dict[str, Format]:
    """All formats by name; see `mmc4` for the argument."""
    return {"mmc4": mmc4(min_similarity), "obelics": OBELICS}


FORMATS: Mapping[str, Format] = formats()


def detect_format(content: Any) -> str:  # noqa: ANN401
    """The name of the format of a file with this first content (see `peek`).

    Raises:
        UserError: it is none of these; see `looks.detect`.
    """
    return detect(content, DOCUMENTS)
