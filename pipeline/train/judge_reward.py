"""A language model behind an OpenAI-compatible address, whose grades are a reward of GRPO.

Every grade is kept in the run folder, by what was asked: a run that was killed and resumed asks
nothing twice, and gets the same rewards, even from a judge whose replies vary.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from etl.cli import UserError
from etl.storage.schema import Turn, words_of
from model.spec.rlhf import Judge
from pipeline.data.encode import without_answer
from pipeline.evaluate.judge import address_judge
from pipeline.train.rewards import Answer

log = logging.getLogger(__name__)

JUDGED = "judged.jsonl"
"""In a run folder: one object a grade, with what was asked (`key`), `reward` and `replies`."""

_ADDRESS = "OPENAI_BASE_URL"
_TEMPERATURES = (0.0, 0.5, 1.0)
"""Of the requests, one after another, until a reply has a number."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_FIELD = re.compile(r"\{(question|truth|answer)\}")


class JudgeReward:
    """Rewards answers with a judge's grades.

    Args:
        judge: who is asked, and what.
        folder: the run's.

    Raises:
        UserError: no address, or a file of grades that cannot be read.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        address = judge.address or os.environ.get(_ADDRESS, "")
        if not address:
            raise UserError(
                f"rlhf.objective.judge: no address; set its field, or {_ADDRESS} of the environment"
            )
        self._judge, self._file = judge, folder / JUDGED
        self._ask = address_judge(address, judge.model, connections=judge.parallel)
        self._known = _read(self._file)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Return the rewards of answers; a collective.

        What several ranks want to know is asked once, by the first of them.

        Raises:
            UserError: on every rank, if the judge does not answer one of them.
        """
        asked = {self._key(messages): messages for messages in map(self._messages, answers)}
        missing = [key for key in asked if key not in self._known]
        wanted: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(wanted, missing)
        first = {key: rank for rank, keys in reversed([*enumerate(wanted)]) for key in keys}
        own = [key for key in missing if first[key] == dist.get_rank()]
        with ThreadPoolExecutor(self._judge.parallel) as pool:
            graded = list(pool.map(lambda key: self._grade(key, asked[key]), own))
        gathered: list[list[dict[str, Any] | str]] = [[] for _ in wanted]
        dist.all_gather_object(gathered, graded)
        self._keep([one for of_rank in gathered for one in of_rank])
        return [self._known[self._key(self._messages(answer))] for answer in answers]

    def _messages(self, answer: Answer) -> list[dict[str, Any]]:
        values = {
            "question": _question(answer.sample.turns[:-1]),
            "truth": answer.truth,
            "answer": answer.text,
        }
        text = _FIELD.sub(lambda found: values[found[1]], self._judge.prompt)
        if not self._judge.images:
            return [{"role": "user", "content": text}]
        urls = [
            f"data:{medium.mime};base64,{base64.b64encode(medium.data).decode()}"
            for medium in (*without_answer(answer.sample).media, *answer.media)
            if medium.kind == "image"
        ]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def _key(self, messages: Sequence[Mapping[str, Any]]) -> str:
        own = [self._judge.model, self._judge.max_tokens, messages]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()

    def _grade(self, key: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | str:
        """Return a line of the file, or the error of a judge that does not answer."""
        replies: list[str] = []
        for temperature in _TEMPERATURES:
            try:
                replies.append(self._ask(messages, self._judge.max_tokens, temperature))
            except UserError as error:
                return str(error)
            reward = parse_number(replies[-1])
            if reward is not None:
                return {"key": key, "reward": reward, "replies": replies}
        return {"key": key, "reward": 0.0, "replies": replies, "unreadable": True}

    def _keep(self, graded: Sequence[dict[str, Any] | str]) -> None:
        """Add new grades to what is known, and on rank 0 to the file."""
        lines = [one for one in graded if isinstance(one, dict)]
        self._known |= {line["key"]: line["reward"] for line in lines}
        if dist.get_rank() == 0 and lines:
            with self._file.open("a") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
            for line in lines:
                if "unreadable" in line:
                    log.warning("no number in the judge's replies %s; it counts as 0", line)
        for one in graded:
            if isinstance(one, str):
                raise UserError(f"rewards: judge: {one}; the same command resumes")


def parse_number(reply: str) -> float | None:
    """Return the last number of a reply, of a fraction such as 7/10 the numerator; or None."""
    found = _NUMBER.findall(re.sub(r"(\d)\s*/\s*\d+", r"\1", reply))
    return float(found[-1]) if found else None


def _question(turns: Sequence[Turn]) -> str:
    """Return the turns before an answer; who says what, if there are several."""
    if len(turns) == 1:
        return words_of(turns[0].text).strip()
    return "\n".join(f"{turn.role}: {words_of(turn.text).strip()}" for turn in turns)


def _read(file: Path) -> dict[str, float]:
    """Return the rewards in a file of grades, without the last one if it was cut off by a kill."""
    if not file.is_file():
        return {}
    known = {}
    *lines, rest = file.read_bytes().split(b"\n")
    try:
        for line in lines:
            found = json.loads(line)
            known[str(found["key"])] = float(found["reward"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: line {len(known) + 1} is no grade ({error})") from None
    if rest and dist.get_rank() == 0:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size - len(rest))
    return known
