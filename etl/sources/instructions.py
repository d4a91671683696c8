"""Instruction data in other shapes than LLaVA's: each parser names what publishes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, Ref, take, texts
from etl.sources.dialogues import asked, names_in, placed, speech
from etl.sources.files import json_rows, read_json, rows_in
from etl.storage.schema import Turn


def svit(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """SVIT: `{image_id, conversations: [{content: [{from, value}]}]}`, Visual Genome's pictures."""
    media = (Ref(kind="image", url=f"{take(record, 'image_id')}.jpg"),)
    for talk in take(record, "conversations", list):
        yield placed(speech(take(talk, "content", list)), media)


def minigpt4(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """MiniGPT-4's cc_sbu_align: `annotations: [{image_id, caption}]`."""
    media = (Ref(kind="image", url=f"{take(record, 'image_id')}.jpg"),)
    question = "Describe this image in detail."
    yield placed(asked(question, take(record, "caption", str)), media)


def pandagpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """PandaGPT: `{image_name, conversation: [{from, value}]}`."""
    media = tuple(
        Ref(kind="image", url=name) for name in names_in(record.get("image_name"), "image_name")
    )
    yield placed(speech(take(record, "conversation", list)), media)


def videochat(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VideoChat: `{video, QA: [{i, q, a}]}`; `i` is an instruction that goes before the talk."""
    media = (Ref(kind="video", url=take(record, "video", str)),)
    turns: list[Turn] = []
    for part in take(record, "QA", list):
        question = take(part, "q", str)
        if not turns and part.get("i"):
            question = f"{part['i']}\n{question}".strip()
        turns += asked(question, take(part, "a", str))
    yield placed(turns, media)


def video_chatgpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Video-ChatGPT: `{q, a, video_id}`, videos of ActivityNet."""
    media = (Ref(kind="video", url=f"{take(record, 'video_id', str)}.mp4"),)
    yield placed(asked(take(record, "q", str), take(record, "a", str)), media)


def mimic_it_rows(file: Path) -> list[list[dict[str, Any]]]:
    """MIMIC-IT's instructions, each after those that it names as its context.

    Raises:
        UserError: the file has no `data` of instructions.
    """
    found = read_json(file)
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{file}: want an object with the instructions in 'data'")
    rows = []
    for name, own in data.items():
        context = own.get("rel_ins_ids") or [] if isinstance(own, dict) else []
        rows.append([*(data.get(key, {"missing": key}) for key in context), {"id": name, **own}])
    return rows


def mimic_it(row: Sequence[dict[str, Any]]) -> Iterator[Record]:
    """MIMIC-IT: `{instruction, answer, image_ids, rel_ins_ids}`; a video is a row of pictures."""
    turns: list[Turn] = []
    media: list[Ref] = []
    for part in row:
        names = names_in(part.get("image_ids"), "image_ids")
        media += [Ref(kind="image", url=name) for name in names]
        head = "".join("<image>\n" for _ in names)
        turns += asked(head + take(part, "instruction", str), take(part, "answer", str))
    yield Record(turns=tuple(turns), media=tuple(media), lineage={"original_id": row[-1]["id"]})


def m3it(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """M3IT: `{instruction, inputs, outputs, image_base64_str: […]}`, pictures within."""
    pictures = take(record, "image_base64_str")
    media = tuple(
        Ref(kind="image", url=f"data:image/jpeg;base64,{text}")
        for text in names_in(pictures, "image_base64_str")
    )
    parts = (take(record, "instruction", str), str(record.get("inputs") or ""))
    question = "\n".join(part.strip() for part in parts if part.strip())
    yield placed(asked(question, take(record, "outputs", str)), media)


_SPEAKERS = re.compile(r"^(Human|AI):[ ]?", re.MULTILINE)


def docowl(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """mPLUG-DocOwl: `{image: […], prompt, text}`, the text said by `Human:` and `AI:`."""
    media = [Ref(kind="image", url=name) for name in names_in(record.get("image"), "image")]
    parts = _SPEAKERS.split(take(record, "text", str))[1:]
    turns: list[Turn] = []
    for who, said in zip(parts[::2], parts[1::2], strict=True):
        role, text = ("user" if who == "Human" else "assistant"), said.strip()
        if turns and turns[-1].role == role:  # `Human: <image>`, then `Human: …`
            turns[-1] = Turn(role=role, text=f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(role=role, text=text))
    if not turns:
        raise BadRecordError("want a text of Human: … AI: …")
    yield placed(turns, media, **texts(record, "text", "prompt", "image"))


_GENERATED = ("image", "video", "audio")


def next_gpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """NExT-GPT's T2M and MosIT: dialogues in which media are asked for, and given.

    As published, `{image_list: [{image_name, caption}], video_list, audio_list, conversation}`, or
    T2M's `{image_name | mm_name, output_modality, conversation}`. A medium stands where it is said,
    by the user or by the assistant, and its caption in lineage (`captions`, a JSON list in the
    media's order), since alignment to a generator (survey, eq. 4) needs that alone.
    """
    turns = speech(record.get("conversation") or take(record, "conversations", list))
    media: list[Ref] = []
    captions: dict[Ref, str] = {}
    for kind in _GENERATED:
        for entry in record.get(f"{kind}_list") or ():
            ref = Ref(kind=kind, url=take(entry, f"{kind}_name", str))
            media.append(ref)
            captions[ref] = str(entry.get("caption") or "")
    single = record.get("mm_name") or record.get("image_name")
    if single:
        kind = str(record.get("output_modality") or "image").lower()
        if kind not in _GENERATED:
            raise BadRecordError(f"output_modality is {kind!r}, want one of {_GENERATED}")
        ref = Ref(kind=kind, url=single)
        media.append(ref)
        captions[ref] = str(record.get("caption") or "")
    if media and not any(f"<{kind}>" in turn.text.lower() for turn in turns for kind in _GENERATED):
        turns = _given(turns, media)
    made = placed(turns, media)
    told = json.dumps([captions[ref] for ref in made.media])
    yield Record(turns=made.turns, media=made.media, lineage={"captions": told})


def _given(turns: Sequence[Turn], media: Sequence[Ref]) -> tuple[Turn, ...]:
    """Turns at the end of which the assistant gives the media."""
    if turns[-1].role != "assistant":
        raise BadRecordError("want a dialogue that ends with what the assistant gives")
    tail = "".join(f"<{ref.kind}>" for ref in media)
    return (*turns[:-1], Turn(role="assistant", text=f"{turns[-1].text} {tail}"))


_QUESTION = re.compile(r"<ph_st>(.*?)<ph_ed>")


def shikra(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Shikra's jsonl: referring expressions, captions with boxes, and dialogues about boxes.

    RefCOCO, + and g as `{img_path, expression, bbox, height, width}`, Flickr30k Entities as
    `{image_id, sentence, boxes, boxes_seq}`, Shikra-RD as `{img_path, question, cot_with_ans,
    boxes, question_boxes_seq, answer_boxes_seq}`. A box is written as Shikra writes it
    (arXiv:2306.15195, §3.2): `[x_min,y_min,x_max,y_max]` with three decimals, normalised by the
    record's width and height; without these, boxes in pixels are a fault of the record.
    """
    name = record.get("img_path") or f"{take(record, 'image_id')}.jpg"
    media = (Ref(kind="image", url=name),)
    size = (record.get("width"), record.get("height"))
    if "expression" in record:
        expression = take(record, "expression", str)
        box = _box(take(record, "bbox", list), size)
        yield placed(asked(f"Where is {expression}? Answer with its box.", box), media)
        return
    boxes = [_box(box, size) for box in take(record, "boxes", list)]
    if "sentence" in record:
        told = _grounded(take(record, "sentence", str), record.get("boxes_seq"), boxes)
        yield placed(asked("Describe the image, with boxes of what you name.", told), media)
        return
    question = _grounded(take(record, "question", str), record.get("question_boxes_seq"), boxes)
    answer = take(record, "cot_with_ans" if "cot_with_ans" in record else "answer", str)
    told = _grounded(answer, record.get("answer_boxes_seq"), boxes)
    yield placed(asked(question, told), media)


def _box(box: Sequence[float], size: tuple[Any, Any]) -> str:
    width, height = size if all(size) else (1, 1)
    try:
        x0, y0, x1, y1 = (float(side) for side in box)
    except (TypeError, ValueError):
        raise BadRecordError(f"want a box of four numbers, got {box!r:.60}") from None
    if not all(size) and max(x1, y1) > 1:
        raise BadRecordError("its boxes are in pixels, but it has no width and height")
    shares = (x0 / width, y0 / height, x1 / width, y1 / height)
    return f"[{','.join(f'{share:.3f}' for share in shares)}]"


def _grounded(text: str, sequences: Any, boxes: Sequence[str]) -> str:  # noqa: ANN401
    """A text with its boxes after the phrases that `<ph_st>` and `<ph_ed>` enclose."""
    numbers = iter(sequences or ())

    def with_boxes(match: re.Match[str]) -> str:
        try:
            named = [boxes[number] for number in next(numbers)]
        except (StopIteration, IndexError, TypeError):
            raise BadRecordError("its phrases and its boxes do not go together") from None
        return f"{match[1]}{''.join(named)}"

    return _QUESTION.sub(with_boxes, text)


def alpaca(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Alpaca's text instructions: `{instruction, input, output}`."""
    parts = (take(record, "instruction", str), str(record.get("input") or ""))
    question = "\n".join(part for part in parts if part)
    yield Record(turns=asked(question, take(record, "output", str)))


_JSON = (".json", ".jsonl")
SVIT = Format(suffixes=_JSON, rows=json_rows, parse=svit, together=True)
MINIGPT4 = Format(suffixes=(".json",), rows=rows_in("annotations"), parse=minigpt4)
PANDAGPT = Format(suffixes=_JSON, rows=json_rows, parse=pandagpt, together=True)
VIDEOCHAT = Format(suffixes=_JSON, rows=json_rows, parse=videochat, together=True)
VIDEO_CHATGPT = Format(suffixes=_JSON, rows=json_rows, parse=video_chatgpt, together=True)
MIMIC_IT = Format(suffixes=(".json",), rows=mimic_it_rows, parse=mimic_it)
M3IT = Format(suffixes=_JSON, rows=json_rows, parse=m3it)
DOCOWL = Format(suffixes=_JSON, rows=json_rows, parse=docowl, together=True)
NEXT_GPT = Format(suffixes=_JSON, rows=json_rows, parse=next_gpt)
SHIKRA = Format(suffixes=_JSON, rows=json_rows, parse=shikra, together=True)
ALPACA = Format(suffixes=_JSON, rows=json_rows, parse=alpaca)
