"""MMBench and MMBench-CN, with circular evaluation (Liu et al. 2023, arXiv:2307.06281).

https://github.com/open-compass/MMBench; the first file that a folder has of

    DATA/{mmbench_dev_20230712,MMBench_DEV_EN}.tsv            mmbench
    DATA/{mmbench_dev_cn_20231003,MMBench_DEV_CN}.tsv         mmbench_cn

with the images as base64. A question with n options stands there n times, its options rotated;
question and rotations have the same index modulo 1,000,000. Scored as VLMEvalKit's
`mcq_circular_eval` without a language model (its `exact_matching`): a question is right if its
answer and those of all its rotations are. What is not in the predictions is not counted: a question
that is not there, or its missing rotations; a row that is there twice counts twice. Predictions: a
spreadsheet (.xlsx) with `index` and `prediction`, as the server takes it, or the same as .tsv or
.csv. The server has a language model match replies that name no option; here they are wrong.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from openpyxl import Workbook, load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from etl.cli import UserError
from pipeline.evaluate.benchmark import (
    LETTERS,
    Answered,
    Benchmark,
    Headline,
    Needed,
    Question,
    Rules,
    data_uri,
    percent,
)
from pipeline.evaluate.metrics import Metrics, accuracies
from pipeline.evaluate.multiple_choice import lettered_options, mmbench_letter
from pipeline.evaluate.prediction_files import build, read_text
from pipeline.evaluate.prompts import lettered

_SOURCE = "https://github.com/open-compass/MMBench"
_FILES = ("mmbench_dev_20230712.tsv", "MMBench_DEV_EN.tsv")
_FILES_CN = ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv")
_ROTATION = 1_000_000
_REFERENCE = 64
"""A shorter image is the index of the row that has it."""
_NOTHING = frozenset(
    (
        *("", "nan", "NaN", "-nan", "-NaN", "none", "None", "null", "NULL"),
        *("NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "#N/A N/A"),
    )
)
"""Texts that pandas or LLaVA's `is_none` take for a missing option or hint."""
LETTER_CN = "请直接回答选项字母。"
"""LLaVA's `model_vqa_mmbench.py --lang cn`."""


def read(folder: Path, *, names: Sequence[str]) -> list[Question]:
    """Read all rows, rotations too; their ids are their indexes."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: has none of {', '.join(names)}")
    rows = _table(path, "\t")
    images = {row.get("index", ""): row.get("image", "") for row in rows}
    want = "index, question, A, B, image as base64, and answer and category where published"
    return [
        build(f"{path}: row {number}", want, partial(_question, row, images))
        for number, row in enumerate(rows, start=1)
    ]


def _table(path: Path, delimiter: str) -> list[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)  # images are longer than the default
    stream = io.StringIO(read_text(path, "a table with index and question or prediction"))
    try:
        return list(csv.DictReader(stream, delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error})") from None


def _question(row: Mapping[str, str], images: Mapping[str, str]) -> Question:
    options: list[str] = []
    for letter in LETTERS[:4]:
        if row.get(letter, "") in _NOTHING:
            break
        options.append(row[letter])
    hint, image = row.get("hint", ""), row["image"]
    index = int(row["index"])
    return Question(
        id=str(index),
        split=row.get("split") or "dev",
        text=row["question"] if hint in _NOTHING else f"{hint}\n{row['question']}",
        answer=row.get("answer", ""),
        images=(data_uri(image if len(image) > _REFERENCE else images[image]),),
        options=tuple(options),
        unit=str(index % _ROTATION),
        labels={
            "question": row["question"],
            "category": row.get("category", ""),
            "l2-category": row.get("l2-category", ""),
        },
    )


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the circular accuracy, of all and by category, and that of the first rotation."""
    right: dict[str, bool] = {}
    own: list[tuple[Question, bool]] = []
    for question, answer in answered:
        letter = mmbench_letter(answer, lettered_options(question.options))
        right[question.unit] = right.get(question.unit, True) and letter == question.answer
        if question.id == question.unit:
            own.append((question, letter == question.answer))
    rows: dict[str, list[tuple[float, str]]] = {"all": [], "without rotations": []}
    for question, alone in own:
        row = (float(right[question.unit]), question.unit)
        rows["all"].append(row)
        rows["without rotations"].append((float(alone), question.unit))
        for kind in ("l2-category", "category"):
            if question.labels[kind]:
                rows.setdefault(f"{kind}/{question.labels[kind]}", []).append(row)
    return accuracies(rows)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    del questions
    if path.suffix == ".xlsx":
        rows = _spreadsheet(path)
    else:
        rows = list(map(dict, _table(path, "," if path.suffix == ".csv" else "\t")))
    return [
        build(
            f"{path}: row {number}",
            "index and prediction",
            lambda row: (
                str(int(row["index"])),
                "nan" if row["prediction"] is None else str(row["prediction"]),
            ),
            row,
        )
        for number, row in enumerate(rows, start=1)
    ]


def _spreadsheet(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; want .xlsx, .tsv or .csv")
    try:
        sheet = load_workbook(path, read_only=True).active
        names, *lines = sheet.iter_rows(values_only=True)
        return [dict(zip(names, line, strict=True)) for line in lines]
    except (BadZipFile, KeyError, ValueError, InvalidFileException) as error:
        raise UserError(f"{path}: not a spreadsheet with index and prediction ({error})") from None


def _save(answered: Sequence[Answered], *, name: str) -> dict[str, bytes]:
    book = Workbook()
    letters = LETTERS[:4]
    book.active.append(["index", "question", *letters, "answer", "prediction"])
    for question, answer in answered:
        options = [*question.options, *[None] * 4][:4]
        row = [int(question.id), question.labels["question"], *options, question.answer, answer]
        book.active.append([_cell(value) for value in row])
    stream = io.BytesIO()
    book.save(stream)
    return {name: stream.getvalue()}


def _cell(value: str | int | None) -> str | int | None:
    """Return a value that a spreadsheet holds: without control characters, and never a formula."""
    if not isinstance(value, str):
        return value
    text = "".join(letter for letter in value if letter >= " " or letter in "\n\t")
    return f"'{text}" if text.startswith("=") else text


def _benchmark(name: str, column: str, files: tuple[str, ...], instruction: str) -> Benchmark:
    return Benchmark(
        name=name,
        read=partial(read, names=files),
        metrics=metrics,
        prompt=partial(lettered, instruction=instruction),
        load=_load,
        save=partial(_save, name=f"{name}.xlsx"),
        rules=Rules(missing="not counted", repeated="each", unknown="error"),
        layout=(Needed(paths=files, source=_SOURCE),),
        headlines=(Headline(column=column, value=percent("all", "accuracy")),),
    )


MMBENCH = _benchmark(
    "mmbench", "MMB", _FILES, "Answer with the option's letter from the given choices directly."
)
MMBENCH_CN = _benchmark("mmbench_cn", "MMB-CN", _FILES_CN, LETTER_CN)
