"""MME: ten perception and four cognition tasks, two yes/no questions per image (Fu et al. 2023).

https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation
(arXiv:2306.13394), the unpacked MME_Benchmark_release_version:

    DATA/TASK/….txt                          two lines "question⇥Yes|No", beside the image, or
    DATA/TASK/questions_answers_YN/….txt     with the image in DATA/TASK/images/

Scored by the official `calculation.py`: a task's score is 100 × (accuracy + accuracy+), where
accuracy+ is the share of images with both questions right; perception is at most 2000, cognition
800. An answer is read from its first four letters: "yes" in them, or else "no", or else neither,
which is wrong. The script pairs consecutive lines, so that a missing image is not counted and a
repeated one counts twice. Predictions: a folder of `TASK.txt` with lines
"image⇥question⇥true answer⇥prediction".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from etl.cli import UserError
from pipeline.evaluate.benchmark import Answered, Benchmark, Headline, Needed, Question, Rules
from pipeline.evaluate.metrics import Array, Metric, Metrics, ratio, sums_metric
from pipeline.evaluate.prediction_files import read_text
from pipeline.evaluate.prompts import short_answer

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_IMAGES = (".jpg", ".png", ".jpeg")


def read(folder: Path) -> list[Question]:
    """Read the questions of all tasks that a folder has."""
    found: list[Question] = []
    for task in (*PERCEPTION, *COGNITION):
        texts, images = folder / task, folder / task
        if (folder / task / "questions_answers_YN").is_dir():
            texts, images = folder / task / "questions_answers_YN", folder / task / "images"
        for path in sorted(texts.glob("*.txt")):
            image = next(
                (
                    images / f"{path.stem}{end}"
                    for end in _IMAGES
                    if (images / f"{path.stem}{end}").is_file()
                ),
                images / f"{path.stem}.jpg",
            )
            found += _questions(task, path, str(image.relative_to(folder)))
    if not found:
        raise UserError(f"{folder}: has no questions of {', '.join((*PERCEPTION, *COGNITION))}")
    return found


def _questions(task: str, path: Path, image: str) -> list[Question]:
    lines = [line for line in read_text(path, "two questions").splitlines() if line.strip()]
    if len(lines) != 2:
        raise UserError(f"{path}: {len(lines)} lines, want two questions about one image")
    found = []
    for number, line in enumerate(lines, start=1):
        text, tab, answer = line.partition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise UserError(f"{path}:{number}: want a question, a tab, and Yes or No")
        found.append(
            Question(
                id=f"{task}/{path.stem}/{number}",
                split=task,
                text=text.strip(),
                answer=answer.strip(),
                images=(image,),
                unit=f"{task}/{path.stem}",
            )
        )
    return found


def parse_answer(answer: str) -> str:
    """Return "yes", "no" or "other", as the official script reads an answer."""
    answer = answer.lower()
    head = answer if answer in ("yes", "no") else answer[:4]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


def metrics(answered: Sequence[Answered]) -> Metrics:
    """Return the totals of perception and cognition, and accuracy, accuracy+ and score per task."""
    images = _images(answered)
    found: dict[str, dict[str, Metric]] = {}
    for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        some = {task: images[task] for task in tasks if task in images}
        if some:
            found[name] = {"score": _total(some)}
    for task, rows in images.items():
        columns = [(right, questions, both, 1) for _, right, questions, both in rows]
        units = [unit for unit, *_ in rows]
        formulas = {
            "score": _task_score,
            "accuracy": lambda sums: ratio(sums[0], sums[1]),
            "accuracy_plus": lambda sums: ratio(sums[2], sums[3]),
        }
        found[task] = {
            metric: sums_metric(columns, units, formula) for metric, formula in formulas.items()
        }
    return found


Row = tuple[str, int, int, int]
"""An image: its unit, how many of its questions are right, how many there are, whether all are."""


def _images(answered: Sequence[Answered]) -> Mapping[str, list[Row]]:
    """Return the answered images of each task; a repeated prediction is another image."""
    pairs: dict[tuple[str, str, int], list[bool]] = {}
    seen: dict[str, int] = {}
    for question, answer in answered:
        repeat = seen[question.id] = seen.get(question.id, -1) + 1
        right = parse_answer(answer) == question.answer.lower()
        pairs.setdefault((question.split, question.unit, repeat), []).append(right)
    found: dict[str, list[Row]] = {}
    for (task, unit, _), pair in pairs.items():
        if len(pair) != 2:
            raise UserError(f"{unit}: {len(pair)} answer, want one to each of its two questions")
        found.setdefault(task, []).append((unit, sum(pair), 2, all(pair)))
    return found


def _task_score(sums: Array) -> float:
    return 100 * (ratio(sums[0], sums[1]) + ratio(sums[2], sums[3]))


def _total(images: Mapping[str, Sequence[Row]]) -> Metric:
    columns, units = [], []
    for number, rows in enumerate(images.values()):
        for unit, right, questions, both in rows:
            row = [0.0] * (4 * len(images))
            row[4 * number : 4 * number + 4] = [right, questions, both, 1]
            columns.append(row)
            units.append(unit)

    def total(sums: Array) -> float:
        return sum(_task_score(task) for task in sums.reshape(len(images), 4))

    return sums_metric(columns, units, total)


def _load(path: Path, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Read the files of all tasks in a folder, or of one."""
    by_text = {(q.split, Path(q.images[0]).name, q.text): q.id for q in questions}
    tasks = list(dict.fromkeys(question.split for question in questions))
    files = [path / f"{task}.txt" for task in tasks] if path.is_dir() else [path]
    found = []
    for file in files:
        lines = read_text(file, "the answers to a task, as of all of MME's tasks").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line and number == len(lines):
                continue
            parts = line.split("\t")
            if len(parts) != 4:
                raise UserError(
                    f"{file}:{number}: want image, question, true answer and prediction, with tabs"
                )
            key = (file.stem, parts[0], parts[1].strip())
            if key not in by_text:
                raise UserError(f"{file}:{number}: no question {key[2]!r} about {key[1]!r}")
            found.append((by_text[key], parts[3]))
    return found


def _save(answered: Sequence[Answered]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for question, answer in answered:
        words = " ".join(answer.split())  # a tab or a line break would be another field
        fields = (Path(question.images[0]).name, question.text, question.answer, words)
        name = f"mme/{question.split}.txt"
        files[name] = files.get(name, b"") + ("\t".join(fields) + "\n").encode()
    return files


_SOURCE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"

MME = Benchmark(
    name="mme",
    read=read,
    metrics=metrics,
    prompt=short_answer,
    load=_load,
    save=_save,
    rules=Rules(missing="not counted", repeated="each", unknown="error"),
    layout=tuple(
        Needed(paths=(f"{task}/*.txt", f"{task}/questions_answers_YN/*.txt"), source=_SOURCE)
        for task in (*PERCEPTION, *COGNITION)
    ),
    headlines=tuple(
        Headline(
            column=column, value=partial(lambda scores, name: scores[name]["score"], name=name)
        )
        for column, name in (("MME-P", "perception"), ("MME-C", "cognition"))
    ),
)
