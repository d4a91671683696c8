"""A judge behind an address as a reward: what it is asked, what counts, and what is kept."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.storage.schema import words_of
from model.spec import SpecError
from model.spec.rlhf import Grpo, Judge
from pipeline.train.judge_reward import JUDGED, JudgeReward, parse_number
from pipeline.train.rewards import Answer
from tests.judge_endpoint import JudgeEndpoint
from tests.worlds import preference_sample

pytestmark = pytest.mark.usefixtures("alone")


def answers(*texts: str) -> list[Answer]:
    return [Answer(sample=preference_sample(0), text=text, finished=True) for text in texts]


def test_it_is_asked_question_truth_and_answer(endpoint: JudgeEndpoint, tmp_path: Path) -> None:
    judge = Judge(model="grader", address=endpoint.address, images=True, prompt="{question}|{truth}"
                  "|{answer}|{other}")  # fmt: skip
    sample = preference_sample(0)
    (answer,) = answers("It says {truth}.")
    drawn = replace(sample.media[0], mime="image/png")
    found = JudgeReward(judge, tmp_path)([replace(answer, media=(drawn,))])
    (request,) = endpoint.requests
    question, truth = (words_of(turn.text).strip() for turn in sample.turns)
    text = f"{question}|{truth}|It says {{truth}}.|{{other}}"
    picture, own, words = request["messages"][0]["content"]
    assert words == {"type": "text", "text": text}
    assert picture["image_url"]["url"].startswith(f"data:{sample.media[0].mime};base64,")
    assert own["image_url"]["url"].startswith("data:image/png;base64,")
    assert request["model"] == "grader"
    assert request["temperature"] == 0.0
    assert found == [len(text)]


def test_the_answers_of_a_step_are_asked_in_parallel_and_equal_ones_once(
    endpoint: JudgeEndpoint, tmp_path: Path
) -> None:
    endpoint.together = threading.Barrier(3)  # none is answered before three are asked
    judge = Judge(model="grader", address=endpoint.address, prompt="{answer}", parallel=3)
    assert JudgeReward(judge, tmp_path)(answers("a", "bb", "a", "ccc")) == [1.0, 2.0, 1.0, 3.0]
    assert len(endpoint.requests) == 3


def test_a_resumed_run_asks_nothing_twice(
    endpoint: JudgeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a judge at another address whose grades vary, and after a kill within a line."""
    endpoint.reply = lambda _: str(len(endpoint.requests))
    judge = Judge(model="grader", address=endpoint.address, parallel=1)
    assert JudgeReward(judge, tmp_path)(answers("a", "b")) == [1.0, 2.0]
    with (tmp_path / JUDGED).open("a") as stream:
        stream.write('{"key": "1f')
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.address)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    again = JudgeReward(replace(judge, address=""), tmp_path)
    assert again(answers("b", "c", "a")) == [2.0, 3.0, 1.0]
    assert endpoint.requests[-1]["key"] == "Bearer secret"
    lines = (tmp_path / JUDGED).read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [1.0, 2.0, 3.0]


def test_what_is_no_number_is_asked_again_and_then_counts_as_0(
    endpoint: JudgeEndpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replies = iter(["Well.", "0.7", "Good!", "Fine!", "Bad!"])
    endpoint.reply = lambda _: next(replies)
    judge = Judge(model="grader", address=endpoint.address, parallel=1)
    reward = JudgeReward(judge, tmp_path)
    assert reward(answers("a", "b")) == [0.7, 0.0]
    assert [one["temperature"] for one in endpoint.requests] == [0.0, 0.5, 0.0, 0.5, 1.0]
    assert "no number in the judge's replies" in caplog.text
    assert "Bad!" in caplog.text


def test_mistakes_are_one_line(
    endpoint: JudgeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.status = 401
    reward = JudgeReward(Judge(model="grader", address=endpoint.address), tmp_path)
    with pytest.raises(UserError, match=r"^rewards: judge: .*status 401, want 200.*resumes$"):
        reward(answers("a"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="judge: no address; set its field, or OPENAI_BASE_URL"):
        JudgeReward(Judge(model="grader"), tmp_path)
    with pytest.raises(SpecError, match=r"no \{answer\}"):
        Judge(model="grader", prompt="{question}")
    with pytest.raises(SpecError, match="needs the field"):
        Grpo(rewards=("judge",))
    (tmp_path / JUDGED).write_text("[]\n")
    with pytest.raises(UserError, match=rf"{JUDGED}: line 1 is no grade"):
        JudgeReward(Judge(model="grader", address=endpoint.address), tmp_path)


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("0.5", 0.5),
        ("Score: 1.", 1.0),
        ("2 of 3 facts are right: 0.67", 0.67),
        ("7/10", 7.0),
        ("-1", -1.0),
        ("none", None),
    ],
)
def test_numbers_of_replies(reply: str, number: float | None) -> None:
    assert parse_number(reply) == number
