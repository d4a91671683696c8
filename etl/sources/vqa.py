"""Visual question answering data sets as instructions in the survey's templates.

Zhang et al., *MM-LLMs* (arXiv:2401.13601, §3.2) give two templates as examples; they ask for a
short answer, so the data sets' answers are used unchanged. A hash of the question selects the
template, so it does not depend on the order of the input.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import Asked, BadRecordError, Format, MediaRef, Record, require_field
from etl.sources.fields import lineage_fields
from etl.sources.files import json_rows, read_json, rows_in
from etl.storage.schema import Turn

TEMPLATES = (
    "<image>{question} A short answer to the question is;",
    "<image>Examine the image and respond to the following question with a brief answer: "
    "{question}. Answer:",
)
"""The survey's two templates, as printed in §3.2 (without quotation marks)."""


def vqa_dialogue(
    image: str, questions: Sequence[tuple[str, str]], **lineage: str
) -> Iterator[Record]:
    """A dialogue of questions about one image, each in a template; the image comes first.

    Args:
        image: URL or name.
        questions: with their answers.
        lineage: of the record.
    """
    turns: list[Turn] = []
    for question, answer in questions:
        if not isinstance(question, str) or not isinstance(answer, str):
            raise BadRecordError(f"want texts, got {question!r:.40} and {answer!r:.40}")
        template = TEMPLATES[hashlib.sha256(question.encode()).digest()[0] % len(TEMPLATES)]
        if turns:
            template = template.removeprefix("<image>")
        text = question.strip().rstrip(".")
        if text.endswith(("?", "!")):  # then the template's full stop is redundant
            template = template.replace("{question}.", "{question}")
        turns.append(Turn(role="user", text=template.replace("{question}", text)))
        turns.append(Turn(role="assistant", text=answer.strip()))
    asked = tuple(Asked(task="vqa", text=question.strip()) for question, _ in questions)
    media = (MediaRef(kind="image", url=image),)
    yield Record(turns=tuple(turns), media=media, lineage=lineage, asked=asked)


_SPLITS = ("data_split", "set_name", "subtype")
"""Fields that hold a question's split in one data set or another."""


def _lineage(row: Any, *read: str) -> dict[str, str]:  # noqa: ANN401 - parsed JSON
    """What a row has besides its question and answers, such as the question's id and its split."""
    lineage = lineage_fields(row, "question", "answer", "answers", *read, media=("image",))
    split = next((lineage.pop(name) for name in _SPLITS if name in lineage), None)
    return lineage if split is None else {**lineage, "split": split}


def _questions(rows: Sequence[Any]) -> tuple[list[tuple[str, str]], str]:
    """The questions and answers of an image, and the questions' ids with blanks between them."""
    qas = [(require_field(one, "question", str), require_field(one, "answer", str)) for one in rows]
    if not qas:
        raise BadRecordError("an image without questions")
    return qas, " ".join(str(one.get("qa_id", "")) for one in rows).strip()


def most_frequent(answers: Sequence[str]) -> str:
    """The most frequent answer; the first of equally frequent ones."""
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadRecordError("want a list of answers, and at least one")
    return collections.Counter(answers).most_common(1)[0][0]


def vqa_rows(file: Path) -> list[dict[str, Any]]:
    """VQAv2's and OK-VQA's questions with their annotations, from the same folder.

    Raises:
        UserError: one of the two files is missing.
    """
    document = read_json(file)
    if not isinstance(document, dict) or "questions" not in document:
        if isinstance(document, dict) and "annotations" in document:
            return []  # read together with its questions
        raise UserError(f"{file}: want 'questions', or 'annotations' next to their questions")
    subtype = document.get("data_subtype")
    for other in sorted(file.parent.glob("*.json")):
        answers = read_json(other) if other != file else None
        if not isinstance(answers, dict) or "annotations" not in answers:
            continue
        if answers.get("data_subtype") == subtype:
            by_id = {
                str(one.get("question_id")): one
                for one in answers["annotations"]
                if isinstance(one, dict)
            }
            return [
                {**by_id.get(str(one.get("question_id")), {}), **one, "subtype": subtype}
                if isinstance(one, dict)
                else one
                for one in document["questions"]
            ]
    raise UserError(f"{file}: no annotations of {subtype!r} in the same folder")


def vqa(row: dict[str, Any]) -> Iterator[Record]:
    """VQAv2, OK-VQA: images of COCO, the answer that most annotators gave."""
    require_field(row, "question", str)
    answer = row.get("multiple_choice_answer") or most_frequent(
        [require_field(one, "answer", str) for one in require_field(row, "answers", list)]
    )
    name = f"COCO_{row['subtype']}_{require_field(row, 'image_id', int):012d}.jpg"
    qa = (require_field(row, "question", str), answer)
    yield from vqa_dialogue(name, [qa], **_lineage(row, "multiple_choice_answer"))


def gqa_rows(file: Path) -> list[dict[str, Any]]:
    """GQA's questions, by id."""
    document = read_json(file)
    if not isinstance(document, dict) or not document:
        raise UserError(f"{file}: want an object of questions by their ids")
    return [
        {"question_id": name, **(one if isinstance(one, dict) else {})}
        for name, one in document.items()
    ]


def gqa(row: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """GQA: `{imageId, question, answer}`."""
    name = f"{require_field(row, 'imageId')}.jpg"
    qa = (require_field(row, "question", str), require_field(row, "answer", str))
    yield from vqa_dialogue(name, [qa], **_lineage(row))


def a_okvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """A-OKVQA: `{split, image_id, question, direct_answers}`, images of COCO 2017."""
    name = f"{require_field(row, 'split', str)}2017/{require_field(row, 'image_id', int):012d}.jpg"
    answer = most_frequent(require_field(row, "direct_answers", list))
    qa = (require_field(row, "question", str), answer)
    for record in vqa_dialogue(name, [qa], **_lineage(row)):
        yield dataclasses.replace(record, asked=_choices(row) or record.asked)


def _choices(row: Any) -> tuple[Asked, ...]:  # noqa: ANN401 - parsed JSON
    """A question with its options, if there are any and one of them is said to be right."""
    options, right = row.get("choices"), row.get("correct_choice_idx")
    if not isinstance(options, list) or not isinstance(right, int):
        return ()
    if not 0 <= right < len(options):
        raise BadRecordError(f"correct_choice_idx {right} of {len(options)} choices")
    named = tuple(map(str, options))
    return (Asked(task="options", text=row["question"], options=named, answer=named[right]),)


def ocr_vqa_rows(file: Path) -> list[tuple[str, Any]]:
    """OCR-VQA's books, by id."""
    document = read_json(file)
    if not isinstance(document, dict) or not document:
        raise UserError(f"{file}: want an object of books by their ids")
    return list(document.items())


_OCR_VQA_SPLITS = {1: "train", 2: "validation", 3: "test"}
"""OCR-VQA's numbers of its splits (its loadDataset.py)."""


def ocr_vqa(row: tuple[str, Any]) -> Iterator[Record]:
    """OCR-VQA: `{imageURL, questions, answers, split}` of a book's cover."""
    name, book = row
    questions, answers = (
        require_field(book, "questions", list),
        require_field(book, "answers", list),
    )
    if len(questions) != len(answers):
        raise BadRecordError(f"{len(questions)} questions, but {len(answers)} answers")
    url = require_field(book, "imageURL", str)
    lineage = {**_lineage(book, "imageURL"), "original_id": name}
    if book.get("split") in _OCR_VQA_SPLITS:
        lineage["split"] = _OCR_VQA_SPLITS[book["split"]]
    yield from vqa_dialogue(url, list(zip(questions, answers, strict=True)), **lineage)


def st_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """ST-VQA: `data: [{file_path, question, answers}]`."""
    answer = most_frequent(require_field(row, "answers", list))
    name = require_field(row, "file_path", str)
    qa = (require_field(row, "question", str), answer)
    yield from vqa_dialogue(name, [qa], **_lineage(row, "file_path", "file_name"))


def vgqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual Genome's questions: `{id, qas: [{question, answer}]}` of one image."""
    qas, ids = _questions(require_field(row, "qas", list))
    name = f"{require_field(row, 'id')}.jpg"
    yield from vqa_dialogue(name, qas, **_lineage(row), question_ids=ids)


def dvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DVQA: `{image, question, answer}` of a bar chart."""
    qa = (require_field(row, "question", str), str(require_field(row, "answer")))
    yield from vqa_dialogue(require_field(row, "image", str), [qa], **_lineage(row, "image"))


def doc_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DocVQA: `data: [{image, question, answers}]`; TextVQA names images by `image_id`."""
    name = row.get("image") or f"{require_field(row, 'image_id')}.jpg"
    qa = (require_field(row, "question", str), most_frequent(require_field(row, "answers", list)))
    yield from vqa_dialogue(name, [qa], **_lineage(row, "image"))


def visual7w(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual7W telling: `images: [{filename, qa_pairs: [{question, answer}]}]`."""
    qas, ids = _questions(require_field(row, "qa_pairs", list))
    lineage = {**_lineage(row, "filename"), "question_ids": ids}
    yield from vqa_dialogue(require_field(row, "filename", str), qas, **lineage)


def arxiv_qa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Multimodal ArXiv's ArXivQA: `{image, question, options, label}`."""
    options = "\n".join(map(str, require_field(row, "options", list)))
    question = f"{require_field(row, 'question', str)}\n{options}"
    qa = (question, require_field(row, "label", str))
    lineage = _lineage(row, "image", "options", "label")
    yield from vqa_dialogue(require_field(row, "image", str), [qa], **lineage)


_JSON = (".json", ".jsonl")
VQA = Format(suffixes=(".json",), rows=vqa_rows, parse=vqa, group_by_medium=True)
GQA = Format(suffixes=(".json",), rows=gqa_rows, parse=gqa, group_by_medium=True)
A_OKVQA = Format(suffixes=(".json",), rows=json_rows, parse=a_okvqa, group_by_medium=True)
OCR_VQA = Format(suffixes=(".json",), rows=ocr_vqa_rows, parse=ocr_vqa)
ST_VQA = Format(suffixes=(".json",), rows=rows_in("data"), parse=st_vqa, group_by_medium=True)
VGQA = Format(suffixes=(".json",), rows=json_rows, parse=vgqa)
DVQA = Format(suffixes=(".json",), rows=json_rows, parse=dvqa, group_by_medium=True)
DOC_VQA = Format(suffixes=(".json",), rows=rows_in("data"), parse=doc_vqa, group_by_medium=True)
VISUAL7W = Format(suffixes=(".json",), rows=rows_in("images"), parse=visual7w)
ARXIV_QA = Format(suffixes=_JSON, rows=json_rows, parse=arxiv_qa, group_by_medium=True)
FORMATS: Mapping[str, Format] = {
    "vqa": VQA,
    "gqa": GQA,
    "a-okvqa": A_OKVQA,
    "ocr-vqa": OCR_VQA,
    "st-vqa": ST_VQA,
    "vgqa": VGQA,
    "dvqa": DVQA,
    "doc-vqa": DOC_VQA,
    "visual7w": VISUAL7W,
    "arxiv-qa": ARXIV_QA,
}
