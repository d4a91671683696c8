"""Documents of text and images interleaved: MMC4, OBELICS.

A document becomes one turn of the assistant's, with a placeholder where each image stands, since
every token of it is to be learnt (survey, §3.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from etl.sources.base import BadRecordError, Format, Record, Ref, take
from etl.sources.files import json_lines, parquet_or_json_rows
from etl.storage.schema import Turn


def mmc4(min_similarity: float) -> Format:
    """MMC4: `{url, text_list, image_info: [{raw_url, matched_text_index, matched_sim}]}`.

    An image stands before the sentence that it is matched to.

    Args:
        min_similarity: images matched less closely are left out; lineage says how many.
    """

    def parse(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
        sentences = take(record, "text_list", list)
        before: dict[int, list[Ref]] = {}
        below = 0
        for info in take(record, "image_info", list):
            index = take(info, "matched_text_index", int)
            if not 0 <= index < len(sentences):
                raise BadRecordError(f"an image is matched to sentence {index} of {len(sentences)}")
            if take(info, "matched_sim", (int, float)) < min_similarity:
                below += 1
                continue
            ref = Ref(kind="image", url=take(info, "raw_url", str))
            before.setdefault(index, []).append(ref)
        parts: list[str | Ref] = []
        for index, sentence in enumerate(sentences):
            parts += [*before.get(index, ()), str(sentence)]
        lineage = {"page": str(record.get("url") or "")}
        yield _document(parts, **lineage, **({"below_similarity": str(below)} if below else {}))

    return Format(suffixes=(".jsonl",), rows=json_lines, parse=parse)


def obelics(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """OBELICS: `{images: [URL or null], texts: [text or null]}`, one of both at each place."""
    images, said = take(record, "images", list), take(record, "texts", list)
    if len(images) != len(said):
        raise BadRecordError(f"{len(images)} images, but {len(said)} texts")
    parts: list[str | Ref] = []
    for image, text in zip(images, said, strict=True):
        if bool(image) == bool(text):
            raise BadRecordError("want an image or a text at each place, and not both")
        parts.append(Ref(kind="image", url=image) if image else str(text))
    general = record.get("general_metadata")
    try:
        page = json.loads(general).get("url", "") if isinstance(general, str) else ""
    except (ValueError, AttributeError):
        page = ""
    yield _document(parts, page=str(page))


def _document(parts: list[str | Ref], **lineage: str) -> Record:
    """Texts and images in order; a blank between sentences, a line's end about an image."""
    text = ""
    for part in parts:
        piece = part.strip() if isinstance(part, str) else "<image>\n"
        joint = " " if text and not text[-1].isspace() and isinstance(part, str) else ""
        if not isinstance(part, str) and text and not text.endswith("\n"):
            joint = "\n"
        text += joint + piece
    media = tuple(part for part in parts if isinstance(part, Ref))
    turns = (Turn(role="assistant", text=text.strip()),)
    kept = {name: value for name, value in lineage.items() if value}
    return Record(turns=turns, media=media, lineage=kept)


OBELICS = Format(suffixes=(".parquet", ".jsonl"), rows=parquet_or_json_rows, parse=obelics)


def formats(min_similarity: float) -> dict[str, Format]:
    """All of them by name; see `mmc4` for the argument."""
    return {"mmc4": mmc4(min_similarity), "obelics": OBELICS}


def guess(seen: Any) -> str:  # noqa: ANN401
    """The format of which a file is that begins so; one that is no text is parquet."""
    if isinstance(seen, str):
        return "obelics"
    return "mmc4" if isinstance(seen, list) and "text_list" in (seen[0] or ()) else "obelics"
