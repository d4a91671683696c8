"""Replies with generated media: text, files, seeds, and one line for mistakes."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from etl.cli import UserError
from etl.storage.schema import Sample, Turn
from etl.storage.shards import write_folder
from pipeline.cli import run as run_pipeline
from pipeline.evaluate.assistant import Assistant
from pipeline.generate import GeneratingAssistant, GenerationSettings
from pipeline.generate.batches import GenerateWorker, SampleRange
from tests.runs import random_run
from tests.worlds import generation_sample

LONG = "a very long sentence with a lot of words" * 2
PROMPTS = ("a red 7", "7", "a long sentence of many words, " * 2, LONG, "x")
SETTINGS = GenerationSettings(steps=2, max_new_tokens=12, guidance_scale=3.0)
SIGNALS = 16.0


def asked(number: int, text: str) -> Sample:
    turns = (Turn(role="user", text=text), Turn(role="assistant", text="<image>"))
    return replace(generation_sample(0, number), id=f"asked-{number}", turns=turns)


SAMPLES = [asked(number, text) for number, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "run"
    random_run(folder, "minigpt_5", signals=SIGNALS)
    return folder


@pytest.fixture(scope="module")
def assistant(run):
    return GeneratingAssistant.open(run)


@pytest.fixture(scope="module")
def replies(assistant):
    return assistant.replier(SETTINGS, batch=8).reply(SAMPLES)


def test_replies_hold_media_where_the_backbone_puts_them(replies) -> None:
    assert [reply.id for reply in replies] == [sample.id for sample in SAMPLES]
    assert sum(len(reply.media) for reply in replies) > 1
    assert any(not reply.media for reply in replies)
    for reply in replies:
        assert reply.text.count("<image>") == len(reply.media)
        for medium in reply.media:
            assert (medium.kind, tuple(medium.values.shape)) == ("image", (3, 32, 32))
            assert medium.values.std() > 0.02
    seeds = [medium.seed for reply in replies for medium in reply.media]
    assert len({*seeds}) == len(seeds)


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_changes_no_bit(size, assistant, replies) -> None:
    replier = assistant.replier(SETTINGS, batch=size)
    for start in range(0, len(SAMPLES), size):
        part = replier.reply(SAMPLES[start : start + size])
        for found, expected in zip(part, replies[start : start + size], strict=True):
            assert found.text == expected.text
            for medium, other in zip(found.media, expected.media, strict=True):
                assert torch.equal(medium.values, other.values)


def test_without_signal_tokens_the_text_is_that_of_ask(tmp_path) -> None:
    random_run(tmp_path / "run", "minigpt_5", signals=0.0)
    for prompt in PROMPTS[:2]:
        found = GeneratingAssistant.open(tmp_path / "run").generate(prompt, max_new_tokens=12)
        expected = Assistant.open(tmp_path / "run").ask(prompt, max_new_tokens=12)
        assert found.text == expected != ""
        assert not found.media


def test_the_command_answers_a_prompt(run, tmp_path, capsys) -> None:
    words = ["generate", "--run", str(run), "--output", str(tmp_path), "--steps", "2"]
    options = ["--max-new-tokens", "12", "--guidance-scale", "3", "--prompt", PROMPTS[2]]
    assert run_pipeline([*words, *options]) == 0
    [line] = (tmp_path / "replies.jsonl").read_text().splitlines()
    reply = json.loads(line)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].strip() == reply["text"]
    assert reply["media"]
    for medium, told in zip(reply["media"], printed[1:], strict=True):
        assert medium["file"] in told
        picture = Image.open(tmp_path / medium["file"])
        assert (picture.format, picture.size, picture.mode) == ("PNG", (32, 32), "RGB")


def test_mistakes_are_one_line(run, tmp_path, capsys) -> None:
    def error(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            run_pipeline(["generate", *words])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    of_run = ("--run", str(run))
    assert "--prompt: empty" in error(*of_run, "--prompt", " ")
    assert "either --prompt TEXT or --data" in error(*of_run)
    missing = str(tmp_path / "no.png")
    assert "no.png: cannot be read" in error(*of_run, "--prompt", "x", "--media", missing)
    assert "x.foo is of no known kind" in error(*of_run, "--prompt", "x", "--media", "x.foo")
    assert "x.wav is of kind audio" in error(*of_run, "--prompt", "x", "--media", "x.wav")
    assert "--steps: 0" in error(*of_run, "--prompt", "x", "--steps", "0")
    random_run(tmp_path / "reads", "digits")
    assert "this model has none" in error("--run", str(tmp_path / "reads"), "--prompt", "x")
    assert "no such folder" in error("--run", str(tmp_path / "nowhere"), "--prompt", "x")


def test_shards_are_answered_by_workers(run, replies, tmp_path) -> None:
    write_folder(tmp_path / "data", iter(SAMPLES), job="test", rows_per_shard=2)
    ranges = [SampleRange(number=n, start=2 * n, stop=min(5, 2 * n + 2)) for n in range(3)]
    worker = GenerateWorker(
        run, [tmp_path / "data"], tmp_path / "out", SETTINGS, batch=2, threads=None
    )
    lines = []
    for item in reversed(ranges):
        worker(item)
        lines = item.part(tmp_path / "out").read_text().splitlines() + lines
    for line, expected in zip(lines, replies, strict=True):
        found = json.loads(line)
        assert (found["id"], found["text"]) == (expected.id, expected.text)
        for medium, other in zip(found["media"], expected.media, strict=True):
            assert (medium["kind"], medium["seed"]) == (other.kind, other.seed)
            assert (tmp_path / "out" / medium["file"]).read_bytes() == other.encoded()
