"""Visual question answering turned into instructions by the survey's templates.

Zhang et al., *MM-LLMs* (arXiv:2401.13601, §3.2) give two templates as examples; they ask for a
short answer, so the sets' own answers are used as they are. Which one a question gets follows
from a hash of it, so that an order of the input changes nothing.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etl.cli import UserError
from etl.sources.base import BadRecordError, Format, Record, Ref, take
from etl.sources.files import json_rows, read_json, rows_in
from etl.storage.schema import Turn

TEMPLATES = (
    "<image>{question} A short answer to the question is;",
    "<image>Examine the image and respond to the following question with a brief answer: "
    "{question}. Answer:",
)
"""The survey's two, as §3.2 prints them (without its quotation marks)."""


def instruct(image: str, questions: Sequence[tuple[str, str]], **lineage: str) -> Iterator[Record]:
    """A dialogue of questions about one image; the template stands around the first of them.

    Args:
        image: URL or name.
        questions: with their answers.
        lineage: where the record comes from.
    """
    turns: list[Turn] = []
    for question, answer in questions:
        template = TEMPLATES[hashlib.sha256(question.encode()).digest()[0] % len(TEMPLATES)]
        if turns:
            template = template.removeprefix("<image>")
        whole = question.strip().rstrip(".")
        if whole.endswith(("?", "!")):  # which need no full stop of the template's
            template = template.replace("{question}.", "{question}")
        turns.append(Turn(role="user", text=template.replace("{question}", whole)))
        turns.append(Turn(role="assistant", text=answer.strip()))
    yield Record(turns=tuple(turns), media=(Ref(kind="image", url=image),), lineage=lineage)


def most_said(answers: Sequence[str]) -> str:
    """The most frequent answer; of equally frequent ones the first."""
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadRecordError("want a list of answers, and at least one")
    return collections.Counter(answers).most_common(1)[0][0]


def vqa_rows(file: Path) -> list[dict[str, Any]]:
    """VQAv2's and OK-VQA's questions with their annotations, which lie in the same folder.

    Raises:
        UserError: one of the two files is missing.
    """
    found = read_json(file)
    if not isinstance(found, dict) or "questions" not in found:
        if isinstance(found, dict) and "annotations" in found:
            return []  # read with its questions
        raise UserError(f"{file}: want 'questions', or 'annotations' of questions beside it")
    subtype = found.get("data_subtype")
    for other in sorted(file.parent.glob("*.json")):
        answers = read_json(other) if other != file else None
        if not isinstance(answers, dict) or "annotations" not in answers:
            continue
        if answers.get("data_subtype") == subtype:
            by_id = {one["question_id"]: one for one in answers["annotations"]}
            return [
                {**by_id.get(one["question_id"], {}), **one, "subtype": subtype}
                for one in found["questions"]
            ]
    raise UserError(f"{file}: no annotations of {subtype!r} beside it")


def vqa(row: dict[str, Any]) -> Iterator[Record]:
    """VQAv2, OK-VQA: pictures of COCO, the answer that most annotators gave."""
    said = row.get("multiple_choice_answer") or most_said(
        [one.get("answer") for one in take(row, "answers", list)]
    )
    name = f"COCO_{row['subtype']}_{take(row, 'image_id', int):012d}.jpg"
    yield from instruct(name, [(take(row, "question", str), said)])


def gqa_rows(file: Path) -> list[dict[str, Any]]:
    """GQA's questions, by id."""
    found = read_json(file)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{file}: want an object of questions by their ids")
    return list(found.values())


def gqa(row: Any) -> Iterator[Record]:  # noqa: ANN401 - parsed JSON
    """GQA: `{imageId, question, answer}`."""
    name = f"{take(row, 'imageId')}.jpg"
    yield from instruct(name, [(take(row, "question", str), take(row, "answer", str))])


def a_okvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """A-OKVQA: `{split, image_id, question, direct_answers}`, pictures of COCO 2017."""
    name = f"{take(row, 'split', str)}2017/{take(row, 'image_id', int):012d}.jpg"
    said = most_said(take(row, "direct_answers", list))
    yield from instruct(name, [(take(row, "question", str), said)])


def ocr_vqa_rows(file: Path) -> list[tuple[str, Any]]:
    """OCR-VQA's books, by id."""
    found = read_json(file)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{file}: want an object of books by their ids")
    return list(found.items())


def ocr_vqa(row: tuple[str, Any]) -> Iterator[Record]:
    """OCR-VQA: `{imageURL, questions, answers, split}` of a book's cover."""
    name, book = row
    questions, answers = take(book, "questions", list), take(book, "answers", list)
    if len(questions) != len(answers):
        raise BadRecordError(f"{len(questions)} questions, but {len(answers)} answers")
    url = take(book, "imageURL", str)
    yield from instruct(url, list(zip(questions, answers, strict=True)), original_id=name)


def st_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """ST-VQA: `data: [{file_path, question, answers}]`."""
    said = most_said(take(row, "answers", list))
    name = take(row, "file_path", str)
    yield from instruct(name, [(take(row, "question", str), said)])


def vgqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual Genome's questions: `{id, qas: [{question, answer}]}` of one picture."""
    qas = [(take(one, "question", str), take(one, "answer", str)) for one in take(row, "qas", list)]
    if not qas:
        raise BadRecordError("a picture without questions")
    yield from instruct(f"{take(row, 'id')}.jpg", qas)


def dvqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DVQA: `{image, question, answer}` of a bar chart."""
    qa = (take(row, "question", str), str(take(row, "answer")))
    yield from instruct(take(row, "image", str), [qa])


def doc_vqa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """DocVQA: `data: [{image, question, answers}]`; TextVQA names pictures by `image_id`."""
    name = row.get("image") or f"{take(row, 'image_id')}.jpg"
    qa = (take(row, "question", str), most_said(take(row, "answers", list)))
    yield from instruct(name, [qa])


def visual7w(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Visual7W telling: `images: [{filename, qa_pairs: [{question, answer}]}]`."""
    pairs = take(row, "qa_pairs", list)
    qas = [(take(one, "question", str), take(one, "answer", str)) for one in pairs]
    if not qas:
        raise BadRecordError("a picture without questions")
    yield from instruct(take(row, "filename", str), qas)


def arxiv_qa(row: Any) -> Iterator[Record]:  # noqa: ANN401
    """Multimodal ArXiv's ArXivQA: `{image, question, options, label}`."""
    options = "\n".join(map(str, take(row, "options", list)))
    question = f"{take(row, 'question', str)}\n{options}"
    yield from instruct(take(row, "image", str), [(question, take(row, "label", str))])


_JSON = (".json", ".jsonl")
VQA = Format(suffixes=(".json",), rows=vqa_rows, parse=vqa, together=True)
GQA = Format(suffixes=(".json",), rows=gqa_rows, parse=gqa, together=True)
A_OKVQA = Format(suffixes=(".json",), rows=json_rows, parse=a_okvqa, together=True)
OCR_VQA = Format(suffixes=(".json",), rows=ocr_vqa_rows, parse=ocr_vqa)
ST_VQA = Format(suffixes=(".json",), rows=rows_in("data"), parse=st_vqa, together=True)
VGQA = Format(suffixes=(".json",), rows=json_rows, parse=vgqa)
DVQA = Format(suffixes=(".json",), rows=json_rows, parse=dvqa, together=True)
DOC_VQA = Format(suffixes=(".json",), rows=rows_in("data"), parse=doc_vqa, together=True)
VISUAL7W = Format(suffixes=(".json",), rows=rows_in("images"), parse=visual7w)
ARXIV_QA = Format(suffixes=_JSON, rows=json_rows, parse=arxiv_qa, together=True)
