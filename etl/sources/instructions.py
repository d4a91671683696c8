"""Instruction data in formats other than LLaVA's; each parser names its data sets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.filters.records import is_url
from etl.sources.base import Asked, BadRecordError, Format, MediaRef, Record, require_field
from etl.sources.boxes import box_text
from etl.sources.fields import is_medium, kind_of, lineage_fields, media_fields, media_names
from etl.sources.files import json_rows, parquet_or_json_rows, read_json, rows_in
from etl.sources.phrasings import without_marks
from etl.sources.turns import Dialogue, make_record, parse_turns, question_answer, say
from etl.storage.schema import PLACEHOLDERS, Turn


def _images(names: Sequence[str]) -> tuple[MediaRef, ...]:
    return tuple(MediaRef(kind="image", url=name) for name in names)


def svit(record: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """SVIT: `{image_id, conversations: [{content: [{from, value}]}]}`, images of Visual Genome."""
    media = _images([f"{require_field(record, 'image_id')}.jpg"])
    lineage = lineage_fields(record, "conversations", media=media)
    for conversation in require_field(record, "conversations", list):
        dialogue = parse_turns(require_field(conversation, "content", list))
        yield make_record(dialogue, media, lineage=lineage)


def minigpt4(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """MiniGPT-4's cc_sbu_align: `annotations: [{image_id, caption}]`."""
    media = _images([f"{require_field(record, 'image_id')}.jpg"])
    said = question_answer("Describe this image in detail.", require_field(record, "caption", str))
    yield make_record(said, media, lineage=lineage_fields(record, "caption", media=media))


def bubogpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """BuboGPT: `annotations: [{audio_id, caption}]` of Clotho, with `image_id` of VGG-SS.

    The files are `AUDIO_ID.wav` and `IMAGE_ID.jpg`, and the questions come from a file of prompts
    (bubogpt/datasets/datasets/audio_image/audio_image_datasets.py and audio_caption).
    """
    media = [MediaRef(kind="audio", url=f"{require_field(record, 'audio_id', str)}.wav")]
    question = "Describe this sound in detail."
    if "image_id" in record:
        media.append(MediaRef(kind="image", url=f"{require_field(record, 'image_id', str)}.jpg"))
        question = "Which part of the image is the source of the sound?"
    said = question_answer(question, require_field(record, "caption", str))
    yield make_record(said, media, lineage=lineage_fields(record, "caption", media=media))


def pandagpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """PandaGPT: `{image_name, conversation: [{from, value}]}`.

    A name may lack its `.jpg` (yxuansu/PandaGPT, code/datasets/sft_dataset.py).
    """
    names = media_names(record.get("image_name"), "image_name")
    media = _images([name if kind_of(name) else f"{name}.jpg" for name in names])
    dialogue = parse_turns(require_field(record, "conversation", list))
    lineage = lineage_fields(record, "image_name", "conversation", media=media)
    yield make_record(dialogue, media, lineage=lineage)


def osprey(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Osprey-724K: `{file_name, height, width, annotation, conversations | description}`.

    The image is what follows the last `_` in `file_name`, a file of COCO 2017, and a description
    `<region1>: …` answers a question about its region (osprey/datasets/osprey_724k.py). The masks
    of the regions are not kept, their boxes (x, y, width, height) are in lineage where published.
    """
    media = _images([require_field(record, "file_name", str).rpartition("_")[2]])
    if "conversations" in record:
        dialogue = parse_turns(require_field(record, "conversations", list))
    else:
        dialogue = Dialogue(turns=())
        for text in require_field(record, "description", list):
            found = re.fullmatch(r"\s*(<[^<>]*>): (.*)", str(text), re.DOTALL)
            if not found:
                raise BadRecordError(f"a description is {text!r:.60}, want '<region1>: …'")
            question = f"Describe {found[1]} in the image in detail."
            dialogue += question_answer(question, found[2])
    read = ("file_name", "annotation", "conversations", "description")
    lineage = lineage_fields(record, *read, media=media)
    regions = [one.get("bbox") for one in record.get("annotation") or () if isinstance(one, dict)]
    if any(regions):
        lineage["boxes_xywh"] = json.dumps(regions)
    yield make_record(dialogue, media, lineage=lineage)


def videochat(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """VideoChat: `{video | image, QA: [{i, q, a}]}`; `i` is an instruction before the dialogue.

    A caption has an empty `q` (Ask-Anything, video_chat2/dataset/it_dataset.py). VideoChat2's
    questions about a part of a video (`start`, `end`) want clips that are cut.
    """
    own = media_fields(record)
    if not own:
        raise BadRecordError("want a 'video' or an 'image'")
    if record.get("start") is not None or record.get("end") is not None:
        raise BadRecordError("it is about a part of a video (start, end): cut the clip first")
    dialogue = Dialogue(turns=())
    for part in require_field(record, "QA", list):
        question = require_field(part, "q", str)
        if not dialogue.turns and part.get("i"):
            question = f"{part['i']}\n{question}".strip()
        answer = say("assistant", require_field(part, "a", str))
        dialogue += say("user", question) + answer if question else answer
    media = [ref for refs in own.values() for ref in refs]
    lineage = lineage_fields(record, "QA", *own, media=media)
    yield make_record(dialogue, media, lineage=lineage)


def video_chatgpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Video-ChatGPT: `{q, a, video_id}`, videos of ActivityNet."""
    media = [MediaRef(kind="video", url=f"{require_field(record, 'video_id', str)}.mp4")]
    said = question_answer(require_field(record, "q", str), require_field(record, "a", str))
    yield make_record(said, media, lineage=lineage_fields(record, "q", "a", media=media))


def mimic_it_rows(file: Path) -> list[list[dict[str, Any]]]:
    """MIMIC-IT's instructions, each after those that it names as its context.

    Raises:
        UserError: the file has no instructions in `data`.
    """
    document = read_json(file)
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{file}: want an object with the instructions in 'data'")
    return [[*_context(data, own), _instruction(name, own)] for name, own in data.items()]


def _context(data: Mapping[str, Any], own: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """The instructions that one names as its context."""
    keys = own.get("rel_ins_ids") if isinstance(own, dict) else None
    for key in keys if isinstance(keys, list) else ():
        yield _instruction(str(key), data.get(str(key), {"missing": key}))


def _instruction(name: str, own: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"id": name, **(own if isinstance(own, dict) else {})}


def mimic_it(row: Sequence[dict[str, Any]]) -> Iterator[Record]:
    """MIMIC-IT: `{instruction, answer, image_ids, rel_ins_ids}`; a video is a list of images."""
    dialogue = Dialogue(turns=())
    for part in row:
        require_field(part, "instruction", str)
        media = _images(media_names(part.get("image_ids"), "image_ids"))
        said = question_answer(
            require_field(part, "instruction", str), require_field(part, "answer", str)
        )
        if media:
            head = "".join(f"{PLACEHOLDERS['image']}\n" for _ in media)
            first = Turn(role="user", text=head + said.turns[0].text)
            said = Dialogue(turns=(first, *said.turns[1:]), named=(*media, *said.named))
        dialogue += said
    read = ("instruction", "answer", "image_ids", "rel_ins_ids")
    yield make_record(dialogue, lineage=lineage_fields(row[-1], *read))


def m3it(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """M3IT: `{instruction, inputs, outputs, image_base64_str: […]}`, with embedded images.

    In parquet (HuggingFaceM4/M3IT) the image is in a column `image`.
    """
    own = {} if record.get("image_base64_str") else media_fields(record)
    media = tuple(ref for refs in own.values() for ref in refs)
    if not media:
        images = require_field(record, "image_base64_str")
        texts = images if isinstance(images, list) else [images]
        if not all(isinstance(text, str) for text in texts):
            raise BadRecordError(f"image_base64_str is {images!r:.60}, want texts of base64")
        media = _images([f"data:image/jpeg;base64,{text}" for text in texts if text])
    parts = (require_field(record, "instruction", str), str(record.get("inputs") or ""))
    question = "\n".join(part.strip() for part in parts if part.strip())
    read = ("instruction", "inputs", "outputs", "image_base64_str", *own)
    said = question_answer(question, require_field(record, "outputs", str))
    yield make_record(said, media, lineage=lineage_fields(record, *read, media=media))


_SPEAKERS = re.compile(r"^(Human|AI):[ ]?", re.MULTILINE)


def docowl(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """mPLUG-DocOwl: `{image: […], prompt, text}`, with `Human:` and `AI:` turns in the text.

    DocOwl 1.5's `{image: […], messages: [{role, content: "<|image|>…"}]}` is read by `messages`.
    """
    media = _images(media_names(record.get("image"), "image"))
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
    dialogue = Dialogue(turns=())
    for turn in turns:
        dialogue += say(turn.role, turn.text)
    lineage = lineage_fields(record, "text", "prompt", "image", media=media)
    yield make_record(dialogue, media, lineage=lineage)


_GENERATED = ("image", "video", "audio")
_MARK = re.compile(r"<(image|video|audio)>([^<>]*)</\1>", re.IGNORECASE)
_WAYS = re.compile(rf"(input|output)_({'|'.join(_GENERATED)})")


def next_gpt(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """NExT-GPT's dialogues in which the assistant generates media: T2M, MosIT, and its own format.

    MosIT: `{image_list: [{image_name, caption}], video_list, audio_list, conversation}`, with
    `<Image>NAME</Image>` in the turns; what such a mark holds besides a name is not text
    (data/prepare_data.py), and a medium that no turn names is counted in lineage
    (`unused_media`). T2M: `{image_name | mm_name, output_modality, conversation}` with the caption
    in the assistant's turn, or `source_data` in place of a name. Prepared for training:
    `{input_image, output_audio, image_captions, conversations}` (nextgpt/dataset).

    A medium has its placeholder in the user's or the assistant's turn, and its caption in lineage
    (`captions`, a JSON list in the media's order): alignment to a generator (survey, eq. 4) needs
    the captions only.
    """
    key = "conversation" if record.get("conversation") else "conversations"
    turns = require_field(record, key, list)
    captions = _media_captions(record, turns)
    turns, unused = _unmarked(turns, captions)
    dialogue = parse_turns(turns)
    read = [key, "source_data", "mm_name", "image_name", "caption", "output_modality"]
    read += [f"{kind}_{end}" for kind in _GENERATED for end in _PREPARED]
    read += [f"{side}_{kind}" for side in ("input", "output") for kind in _GENERATED]
    lineage = lineage_fields(record, *read, media=tuple(captions))
    media = [ref for ref in captions if ref not in unused]
    if not dialogue.named:
        inputs = [ref for ref in media if captions[ref] is None]
        dialogue = _generated(dialogue, [ref for ref in media if captions[ref] is not None])
        made = make_record(dialogue, inputs)
    else:
        made = make_record(dialogue, media)
    lineage |= {"captions": json.dumps([captions.get(ref) or "" for ref in made.media])}
    lineage |= {"unused_media": str(len(unused))} if unused else {}
    yield Record(turns=made.turns, media=made.media, lineage=lineage)


_PREPARED = ("list", "captions", "caption_embeddings")


def _media_captions(record: Any, turns: Sequence[Any]) -> dict[MediaRef, str | None]:  # noqa: ANN401
    """NExT-GPT's media with their captions; None for those that are shown, not generated."""
    found: dict[MediaRef, str | None] = {}
    for kind in _GENERATED:
        for entry in record.get(f"{kind}_list") or ():
            name = require_field(entry, f"{kind}_name", str)
            found[MediaRef(kind=kind, url=name)] = str(entry.get("caption") or "")
    for field in filter(_WAYS.fullmatch, record):
        side, kind = field.split("_")
        texts = record.get(f"{kind}_captions") or ""
        rest = iter(texts if isinstance(texts, list) else [texts])
        for name in media_names(record[field], field):
            caption = None if side == "input" else str(next(rest, ""))
            found[MediaRef(kind=kind, url=name)] = caption
    answers = [turn for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
    own = next((turn for turn in answers if turn.get("caption")), {})
    kind = str(record.get("output_modality") or own.get("output_modality") or "").lower()
    name = record.get("mm_name") or record.get("image_name") or _source_name(record, kind)
    if name:
        kind = kind or kind_of(str(name)) or "image"
        if kind not in _GENERATED:
            raise BadRecordError(f"output_modality is {kind!r}, want one of {_GENERATED}")
        caption = str(record.get("caption") or own.get("caption") or "")
        found[MediaRef(kind=kind, url=str(name))] = caption
    if not found:
        raise BadRecordError(
            f"no medium in {', '.join(sorted(record))}: want image_list, output_image, mm_name, "
            "image_name or a source_data that names one"
        )
    return found


def _source_name(record: Any, kind: str) -> str | None:  # noqa: ANN401
    """The medium that T2M's `source_data` names: AudioCaps' id, or a field with a name or URL."""
    source = record.get("source_data")
    if not isinstance(source, dict):
        return None
    if source.get("audiocap_id") is not None:
        return f"{source['audiocap_id']}.wav"
    names = [one for one in source.values() if is_medium(one) or is_url(str(one))]
    if kind == "video" and source.get("videoid") is not None and not names:
        return f"{source['videoid']}.mp4"
    return names[0] if names else None


def _unmarked(
    turns: Sequence[Any], captions: Mapping[MediaRef, str | None]
) -> tuple[list[Any], set[MediaRef]]:
    """MosIT's turns with marks for listed media only, and the listed media without a mark."""
    listed = {ref.url for ref in captions}
    unused = set(captions)
    marked = False

    def unmark(match: re.Match[str]) -> str:
        nonlocal marked
        name = match[2].strip()
        marked = True
        unused.difference_update([ref for ref in captions if ref.url == name])
        return match[0].strip() if name in listed else ""

    plain = [
        {**turn, "value": _MARK.sub(unmark, turn["value"]).strip()}
        if isinstance(turn, dict) and isinstance(turn.get("value"), str)
        else turn
        for turn in turns
    ]
    return plain, unused if marked else set()


def _generated(dialogue: Dialogue, media: Sequence[MediaRef]) -> Dialogue:
    """A dialogue with the media's placeholders at the end of the last, the assistant's, turn."""
    if not media:
        return dialogue
    if not dialogue.turns or dialogue.turns[-1].role != "assistant":
        raise BadRecordError("want a dialogue that ends with an assistant turn")
    tail = "".join(PLACEHOLDERS[ref.kind] for ref in media)
    last = Turn(role="assistant", text=f"{dialogue.turns[-1].text} {tail}")
    return Dialogue(turns=(*dialogue.turns[:-1], last), named=(*dialogue.named, *media))


_PHRASE = re.compile(r"<ph_st>(.*?)<ph_ed>")


def shikra(record: Any) -> Iterator[Record]:  # noqa: ANN401
    """Shikra's jsonl: referring expressions, captions with boxes, and dialogues about boxes.

    RefCOCO, + and g as `{img_path, expression, bbox, height, width}`, Flickr30k Entities as
    `{image_id, sentence, boxes, boxes_seq}`, Shikra-RD as `{img_path, question, cot_with_ans,
    boxes, question_boxes_seq, answer_boxes_seq}`. A box is written as Shikra writes it
    (arXiv:2306.15195, §3.2): `[x_min,y_min,x_max,y_max]` with three decimals, normalised by the
    record's width and height; boxes in pixels without these make the record invalid.
    """
    name = media_names(record.get("img_path"), "img_path")
    media = _images(name or [f"{require_field(record, 'image_id')}.jpg"])
    size = (record.get("width"), record.get("height"))
    lineage = lineage_fields(record, *_SHIKRA, media=media)
    if "expression" in record:
        expression = require_field(record, "expression", str)
        question = f"Where is {expression}? Answer with its box."
        answer = box_text(require_field(record, "bbox", list), size)
        asked = Asked(task="refer", text=expression)
    else:
        boxes = [box_text(box, size) for box in require_field(record, "boxes", list)]
        key = next((key for key in ("sentence", "cot_with_ans") if key in record), "answer")
        if key == "sentence":
            question, sequences = "Describe the image, with boxes of what you name.", "boxes_seq"
        else:
            question = require_field(record, "question", str)
            question = _with_boxes(question, record.get("question_boxes_seq"), boxes)
            sequences = "answer_boxes_seq"
        answer = _with_boxes(require_field(record, key, str), record.get(sequences), boxes)
        asked = Asked(task="dialogue", text=question, answer=answer)
        if key == "sentence":
            asked = Asked(task="grounding", answer=answer, key=answer)
        question, answer = without_marks(question), without_marks(answer)
    said = question_answer(question, answer)
    yield make_record(said, media, lineage=lineage, asked=(asked,))


_SHIKRA = (
    *("img_path", "image_id", "expression", "bbox", "boxes", "boxes_seq", "sentence", "question"),
    *("cot_with_ans", "answer", "question_boxes_seq", "answer_boxes_seq"),
)


def _with_boxes(text: str, sequences: Any, boxes: Sequence[str]) -> str:  # noqa: ANN401
    """A text with boxes after its phrases, which stay between `<ph_st>` and `<ph_ed>`."""
    numbers = iter(sequences or ())

    def add_boxes(match: re.Match[str]) -> str:
        try:
            named = [boxes[number] for number in next(numbers)]
        except (StopIteration, IndexError, TypeError):
            raise BadRecordError("its phrases and its boxes do not match") from None
        return f"{match[0]}{''.join(named)}"

    return _PHRASE.sub(add_boxes, text)


_JSON = (".json", ".jsonl")
SVIT = Format(suffixes=_JSON, rows=json_rows, parse=svit, group_by_medium=True)
MINIGPT4 = Format(suffixes=(".json",), rows=rows_in("annotations"), parse=minigpt4)
BUBOGPT = Format(
    suffixes=(".json",), rows=rows_in("annotations"), parse=bubogpt, group_by_medium=True
)
OSPREY = Format(suffixes=_JSON, rows=json_rows, parse=osprey, group_by_medium=True)
PANDAGPT = Format(suffixes=_JSON, rows=json_rows, parse=pandagpt, group_by_medium=True)
VIDEOCHAT = Format(suffixes=_JSON, rows=json_rows, parse=videochat, group_by_medium=True)
VIDEO_CHATGPT = Format(suffixes=_JSON, rows=json_rows, parse=video_chatgpt, group_by_medium=True)
MIMIC_IT = Format(suffixes=(".json",), rows=mimic_it_rows, parse=mimic_it)
M3IT = Format(suffixes=(*_JSON, ".parquet"), rows=parquet_or_json_rows, parse=m3it)
DOCOWL = Format(suffixes=_JSON, rows=json_rows, parse=docowl, group_by_medium=True)
NEXT_GPT = Format(suffixes=_JSON, rows=json_rows, parse=next_gpt)
SHIKRA = Format(suffixes=_JSON, rows=json_rows, parse=shikra, group_by_medium=True)
FORMATS: Mapping[str, Format] = {
    "svit": SVIT,
    "minigpt4": MINIGPT4,
    "bubogpt": BUBOGPT,
    "osprey": OSPREY,
    "pandagpt": PANDAGPT,
    "videochat": VIDEOCHAT,
    "video-chatgpt": VIDEO_CHATGPT,
    "mimic-it": MIMIC_IT,
    "m3it": M3IT,
    "docowl": DOCOWL,
    "next-gpt": NEXT_GPT,
    "shikra": SHIKRA,
}
