"""How LLaVA-1.5 puts questions to a model (haotian-liu/LLaVA, docs/Evaluation.md)."""

from __future__ import annotations

from pipeline.evaluate.benchmark import LETTERS, Question

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def short_answer(question: Question) -> str:
    """Return the question, and that a word or phrase is to be the answer."""
    return f"{question.text}\n{SHORT_ANSWER}"


def lettered(question: Question, *, instruction: str = LETTER) -> str:
    """Return the question, its options on lines "A. …", and that a letter is to be the answer."""
    lines = [f"{letter}. {one}" for letter, one in zip(LETTERS, question.options, strict=False)]
    return "\n".join([question.text, *lines, instruction])
