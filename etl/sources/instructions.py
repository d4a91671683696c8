"""Instruction data in formats other than LLaVA's; each parser names its data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field, string_fields
from etl.sources.dialogues import dialogue, media_names, parse_conversations, question_answer
from etl.sources.files import json_rows, read_json, rows_in
from etl.storage.schema import Turn


def svit(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """SVIT: `{image_id, conversations: [{content: [{from, value}]}]}`, images of Visual Genome."""
    media = (MediaRef(kind="image", url=f"{require_field(record, 'image_id')}.jpg"),)
    for conversation in require_field(record, "conversations", list):
        turns = parse_conversations(require_field(conversation, "content", list))
        yield dialogue(turns, media)


def minigpt4(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """MiniGPT-4's cc_sbu_align: `annotations: [{image_id, caption}]`."""
    media = (MediaRef(kind="image", url=f"{require_field(record, 'image_id')}.jpg"),)
    question = "Describe this image in detail."
    yield dialogue(question_answer(question, require_field(record, "caption", str)), media)


def pandagpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """PandaGPT: `{image_name, conversation: [{from, value}]}`."""
    media = tuple(
        MediaRef(kind="image", url=name)
        for name in media_names(record.get("image_name"), "image_name")
    )
    yield dialogue(parse_conversations(require_field(record, "conversation", list)), media)


def videochat(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VideoChat: `{video, QA: [{i, q, a}]}`; `i` is an instruction that precedes the dialogue."""
    media = (MediaRef(kind="video", url=require_field(record, "video", str)),)
    turns: list[Turn] = []
    for part in require_field(record, "QA", list):
        question = require_field(part, "q", str)
        if not turns and part.get("i"):
            question = f"{part['i']}\n{question}".strip()
        turns += question_answer(question, require_field(part, "a", str))
    yield dialogue(turns, media)


def video_chatgpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Video-ChatGPT: `{q, a, video_id}`, videos of ActivityNet."""
    media = (MediaRef(kind="video", url=f"{require_field(record, 'video_id', str)}.mp4"),)
    yield dialogue(
        question_answer(require_field(record, "q", str), require_field(record, "a", str)), media
    )


def mimic_it_rows(file: Path) -> list[list[dict[str, Any]]]:
    """MIMIC-IT's instructions, each after those that it names as its context.

    Raises:
        UserError: the file has no instructions in `data`.
    """
    document = read_json(file)
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{file}: want an object with the instructions in 'data'")
    rows = []
    for name, own in data.items():
        context = own.get("rel_ins_ids") or [] if isinstance(own, dict) else []
        rows.append([*(data.get(key, {"missing": key}) for key in context), {"id": name, **own}])
    return rows


def mimic_it(row: Sequence[dict[str, Any]]) -> Iterator[Record]:
    """MIMIC-IT: `{instruction, answer, image_ids, rel_ins_ids}`; a video is a list of images."""
    turns: list[Turn] = []
    media: list[MediaRef] = []
    for part in row:
        names = media_names(part.get("image_ids"), "image_ids")
        media += [MediaRef(kind="image", url=name) for name in names]
        head = "".join("<image>\n" for _ in names)
        turns += question_answer(
            head + require_field(part, "instruction", str), require_field(part, "answer", str)
        )
    yield Record(turns=tuple(turns), media=tuple(media), lineage={"original_id": row[-1]["id"]})


def m3it(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """M3IT: `{instruction, inputs, outputs, image_base64_str: […]}`, with embedded images."""
    images = require_field(record, "image_base64_str")
    media = tuple(
        MediaRef(kind="image", url=f"data:image/jpeg;base64,{text}")
        for text in media_names(images, "image_base64_str")
    )
    parts = (require_field(record, "instruction", str), str(record.get("inputs") or ""))
    question = "\n".join(part.strip() for part in parts if part.strip())
    yield dialogue(question_answer(question, require_field(record, "outputs", str)), media)


_SPEAKERS = re.compile(r"^(Human|AI):[ ]?", re.MULTILINE)


def docowl(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """mPLUG-DocOwl: `{image: […], prompt, text}`, with `Human:` and `AI:` turns in the text."""
    media = [MediaRef(kind="image", url=name) for name in media_names(record.get("image"), "image")]
    parts = _SPEAKERS.split(require_field(record, "text", str))[1:]
    turns: list[Turn] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        role, text = ("user" if speaker == "Human" else "assistant"), words.strip()
        if turns and turns[-1].role == role:  # `Human: <image>`, then `Human: …`
            turns[-1] = Turn(role=role, text=f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(role=role, text=text))
    if not turns:
        raise BadRecordError("want a text of Human: … AI: …")
    yield dialogue(turns, media, **string_fields(record, "text", "prompt", "image"))


_GENERATED = ("image", "video", "audio")


def next_gpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """NExT-GPT's T2M and MosIT: dialogues in which the assistant generates media.

    As published, `{image_list: [{image_name, caption}], video_list, audio_list, conversation}`, or
    T2M's `{image_name | mm_name, output_modality, conversation}`. A medium has its placeholder in
    the user's or the assistant's turn, and its caption in lineage (`captions`, a JSON list in the
    media's order): alignment to a generator (survey, eq. 4) needs the captions only.
    """
    turns = parse_conversations(
        record.get("conversation") or require_field(record, "conversations", list)
    )
    media: list[MediaRef] = []
    captions: dict[MediaRef, str] = {}
    for kind in _GENERATED:
        for entry in record.get(f"{kind}_list") or ():
            ref = MediaRef(kind=kind, url=require_field(entry, f"{kind}_name", str))
            media.append(ref)
            captions[ref] = str(entry.get("caption") or "")
    single = record.get("mm_name") or record.get("image_name")
    if single:
        kind = str(record.get("output_modality") or "image").lower()
        if kind not in _GENERATED:
            raise BadRecordError(f"output_modality is {kind!r}, want one of {_GENERATED}")
        ref = MediaRef(kind=kind, url=single)
        media.append(ref)
        captions[ref] = str(record.get("caption") or "")
    if media and not any(f"<{kind}>" in turn.text.lower() for turn in turns for kind in _GENERATED):
        turns = _append_media(turns, media)
    record = dialogue(turns, media)
    texts = json.dumps([captions[ref] for ref in record.media])
    yield Record(turns=record.turns, media=record.media, lineage={"captions": texts})


def _append_media(turns: Sequence[Turn], media: Sequence[MediaRef]) -> tuple[Turn, ...]:
    """Turns with the media's placeholders at the end of the last, the assistant's."""
    if turns[-1].role != "assistant":
        raise BadRecordError("want a dialogue that ends with an assistant turn")
    tail = "".join(f"<{ref.kind}>" for ref in media)
    return (*turns[:-1], Turn(role="assistant", text=f"{turns[-1].text} {tail}"))


_PHRASE = re.compile(r"<ph_st>(.*?)<ph_ed>")


def shikra(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Shikra's jsonl: referring expressions, captions with boxes, and dialogues about boxes.

    RefCOCO, + and g as `{img_path, expression, bbox, height, width}`, Flickr30k Entities as
    `{image_id, sentence, boxes, boxes_seq}`, Shikra-RD as `{img_path, question, cot_with_ans,
    boxes, question_boxes_seq, answer_boxes_seq}`. A box is written as Shikra writes it
    (arXiv:2306.15195, §3.2): `[x_min,y_min,x_max,y_max]` with three decimals, normalised by the
    record's width and height; boxes in pixels without these make the record invalid.
    """
    name = record.get("img_path") or f"{require_field(record, 'image_id')}.jpg"
    media = (MediaRef(kind="image", url=name),)
    size = (record.get("width"), record.get("height"))
    if "expression" in record:
        expression = require_field(record, "expression", str)
        box = _box(require_field(record, "bbox", list), size)
        yield dialogue(question_answer(f"Where is {expression}? Answer with its box.", box), media)
        return
    boxes = [_box(box, size) for box in require_field(record, "boxes", list)]
    if "sentence" in record:
        text = _with_boxes(require_field(record, "sentence", str), record.get("boxes_seq"), boxes)
        yield dialogue(
            question_answer("Describe the image, with boxes of what you name.", text), media
        )
        return
    question = require_field(record, "question", str)
    question = _with_boxes(question, record.get("question_boxes_seq"), boxes)
    key = "cot_with_ans" if "cot_with_ans" in record else "answer"
    answer = require_field(record, key, str)
    answer = _with_boxes(answer, record.get("answer_boxes_seq"), boxes)
    yield dialogue(question_answer(question, answer), media)


def _box(box: Sequence[float], size: tuple[Any, Any]) -> str:
    width, height = size if all(size) else (1, 1)
    try:
        x0, y0, x1, y1 = (float(side) for side in box)
    except (TypeError, ValueError):
        raise BadRecordError(f"want a box of four numbers, got {box!r:.60}") from None
    if not all(size) and max(x1, y1) > 1:
        raise BadRecordError("its boxes are in pixels, but it has no width and height")
    normalised = (x0 / width, y0 / height, x1 / width, y1 / height)
    return f"[{','.join(f'{value:.3f}' for value in normalised)}]"


def _with_boxes(text: str, sequences: Any, boxes: Sequence[str]) -> str:  # noqa: ANN401
    """A text with boxes after the phrases between `<ph_st>` and `<ph_ed>`."""
    numbers = iter(sequences or ())

    def add_boxes(match: re.Match[str]) -> str:
        try:
            named = [boxes[number] for number in next(numbers)]
        except (StopIteration, IndexError, TypeError):
            raise BadRecordError("its phrases and its boxes do not match") from None
        return f"{match[1]}{''.join(named)}"

    return _PHRASE.sub(add_boxes, text)


def alpaca(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Alpaca's text instructions: `{instruction, input, output}`."""
    parts = (require_field(record, "instruction", str), str(record.get("input") or ""))
    question = "\n".join(part for part in parts if part)
    yield Record(turns=question_answer(question, require_field(record, "output", str)))


_JSON = (".json", ".jsonl")
SVIT = Format(suffixes=_JSON, rows=json_rows, parse=svit, group_by_medium=True)
MINIGPT4 = Format(suffixes=(".json",), rows=rows_in("annotations"), parse=minigpt4)
PANDAGPT = Format(suffixes=_JSON, rows=json_rows, parse=pandagpt, group_by_medium=True)
VIDEOCHAT = Format(suffixes=_JSON, rows=json_rows, parse=videochat, group_by_medium=True)
VIDEO_CHATGPT = Format(suffixes=_JSON, rows=json_rows, parse=video_chatgpt, group_by_medium=True)
MIMIC_IT = Format(suffixes=(".json",), rows=mimic_it_rows, parse=mimic_it)
M3IT = Format(suffixes=_JSON, rows=json_rows, parse=m3it)
DOCOWL = Format(suffixes=_JSON, rows=json_rows, parse=docowl, group_by_medium=True)
NEXT_GPT = Format(suffixes=_JSON, rows=json_rows, parse=next_gpt)
SHIKRA = Format(suffixes=_JSON, rows=json_rows, parse=shikra, group_by_medium=True)
ALPACA = Format(suffixes=_JSON, rows=json_rows, parse=alpaca)
FORMATS: Mapping[str, Format] = {
    "svit": SVIT,
    "minigpt4": MINIGPT4,
    "pandagpt": PANDAGPT,
    "videochat": VIDEOCHAT,
    "video-chatgpt": VIDEO_CHATGPT,
    "mimic-it": MIMIC_IT,
    "m3it": M3IT,
    "docowl": DOCOWL,
    "next-gpt": NEXT_GPT,
    "shikra": SHIKRA,
    "alpaca": ALPACA,
}
