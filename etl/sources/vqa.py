"""Visual question answering data sets as instructions in the survey's templates.

Zhang et al., *MM-LLMs* (arXiv:2401.13601, §3.2) give two templates as examples; they ask for a
short answer, so the data sets' answers are used unchanged. A hash of the question selects the
template, so it does not depend on the order of the input.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, MediaRef, Record, require_field
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
        template = TEMPLATES[hashlib.sha256(question.encode()).digest()[0] % len(TEMPLATES)]
        if turns:
            template = template.removeprefix("<image>")
        text = question.strip().rstrip(".")
        if text.endswith(("?", "!")):  # then the template's full stop is redundant
            template = template.replace("{question}.", "{question}")
        turns.append(Turn(role="user", text=template.replace("{question}", text)))
        turns.append(Turn(role="assistant", text=answer.strip()))
    yield Record(turns=tuple(turns), media=(MediaRef(kind="image", url=image),), lineage=lineage)


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
            by_id = {one["question_id"]: one for one in answers["annotations"]}
            return [
                {**by_id.get(one["question_id"], {}), **one, "subtype": subtype}
                for one in document["questions"]
            ]
    raise UserError(f"{file}: no annotations of {subtype!r} in the same folder")


def vqa(row: dict[str, Any]) -> Iterator[Record]:
    """VQAv2, OK-VQA: images of COCO, the answer that most annotators gave."""
    answer = row.get("multiple_choice_answer") or most_frequent(
        [one.get("answer") for one in require_field(row, "answers", list)]
    )
    name = f"COCO_{row['subtype']}_{require_field(row, 'image_id', int):012d}.jpg"
    yield from vqa_dialogue(name, [(require_field(row, "question", str), answer)])


def gqa_rows(file: Path) -> list[dict[str, Any]]:
    """GQA's questions, by id."""
    document = read_json(file)
    if not isinstance(document, dict) or not document:
        raise UserError(f"{file}: want an object of questions by their ids")
    return list(document.values())


def gqa(row: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """GQA: `{imageId, question, answer}`."""
    name = f"{require_field(row, 'imageId')}.jpg"
    yield from vqa_dialogue(
        name, [(require_field(row, "question", str), require_field(row, "answer", str))]
    )


def a_okvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """A-OKVQA: `{split, image_id, question, direct_answers}`, images of COCO 2017."""
    name = f"{require_field(row, 'split', str)}2017/{require_field(row, 'image_id', int):012d}.jpg"
    answer = most_frequent(require_field(row, "direct_answers", list))
    yield from vqa_dialogue(name, [(require_field(row, "question", str), answer)])


def ocr_vqa_rows(file: Path) -> list[tuple[str, Any]]:
    """OCR-VQA's books, by id."""
    document = read_json(file)
    if not isinstance(document, dict) or not document:
        raise UserError(f"{file}: want an object of books by their ids")
    return list(document.items())


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
    yield from vqa_dialogue(url, list(zip(questions, answers, strict=True)), original_id=name)


def st_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """ST-VQA: `data: [{file_path, question, answers}]`."""
    answer = most_frequent(require_field(row, "answers", list))
    name = require_field(row, "file_path", str)
    yield from vqa_dialogue(name, [(require_field(row, "question", str), answer)])


def vgqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual Genome's questions: `{id, qas: [{question, answer}]}` of one image."""
    qas = [
        (require_field(one, "question", str), require_field(one, "answer", str))
        for one in require_field(row, "qas", list)
    ]
    if not qas:
        raise BadRecordError("an image without questions")
    yield from vqa_dialogue(f"{require_field(row, 'id')}.jpg", qas)


def dvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DVQA: `{image, question, answer}` of a bar chart."""
    qa = (require_field(row, "question", str), str(require_field(row, "answer")))
    yield from vqa_dialogue(require_field(row, "image", str), [qa])


def doc_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DocVQA: `data: [{image, question, answers}]`; TextVQA names images by `image_id`."""
    name = row.get("image") or f"{require_field(row, 'image_id')}.jpg"
    qa = (require_field(row, "question", str), most_frequent(require_field(row, "answers", list)))
    yield from vqa_dialogue(name, [qa])


def visual7w(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual7W telling: `images: [{filename, qa_pairs: [{question, answer}]}]`."""
    pairs = require_field(row, "qa_pairs", list)
    qas = [
        (require_field(one, "question", str), require_field(one, "answer", str)) for one in pairs
    ]
    if not qas:
        raise BadRecordError("an image without questions")
    yield from vqa_dialogue(require_field(row, "filename", str), qas)


def arxiv_qa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Multimodal ArXiv's ArXivQA: `{image, question, options, label}`."""
    options = "\n".join(map(str, require_field(row, "options", list)))
    question = f"{require_field(row, 'question', str)}\n{options}"
    yield from vqa_dialogue(
        require_field(row, "image", str), [(question, require_field(row, "label", str))]
    )


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
