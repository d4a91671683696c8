"""Asking a run about files: the evaluation's own answers, streamed, and one line for mistakes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from etl.cli import UserError
from etl.digits.records import pair_sample
from etl.digits.subjects import sample as subject_sample
from etl.storage.schema import Medium, Sample, Turn
from model.build import build_tokenizer
from pipeline.cli import run as run_pipeline
from pipeline.config.run_config import read_config
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.assistant import AnswerStreamer, Assistant
from pipeline.evaluate.evaluate import load_run
from pipeline.evaluate.generate_answers import generate_answers
from tests import published_tokenizers
from tests.runs import random_run

SUFFIXES = {"image": ".png", "video": ".avi", "audio": ".wav", "points": ".npy"}


def medium_of(kind: str) -> Medium:
    image = kind == "image"
    sample = pair_sample(0, 0) if image else subject_sample(kind, "captions", 0, 0)
    return sample.media[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assistant") / "run"
    random_run(folder, "digits_omni")
    return folder


@pytest.fixture(scope="module")
def assistant(run):
    return Assistant.open(run)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Return a file of each kind of media, and its medium."""
    folder = tmp_path_factory.mktemp("media")
    files = {}
    for kind, suffix in SUFFIXES.items():
        files[kind] = folder / f"file{suffix}"
        files[kind].write_bytes(medium_of(kind).data)
    return files


@pytest.mark.parametrize("kind", SUFFIXES)
def test_an_answer_is_the_evaluation_s(kind, run, assistant, media) -> None:
    pieces: list[str] = []
    answer = assistant.ask(
        "What is it", **{kind: media[kind]}, max_new_tokens=12, on_text=pieces.append
    )
    turns = (Turn(role="user", text=f"<{kind}>\nWhat is it"), Turn(role="assistant", text="?"))
    sample = Sample(id="1", source="", turns=turns, media=(medium_of(kind),))
    config = read_config(run / "config.json")
    tokenizer = build_tokenizer(config.system.model, weights="pretrained")
    encoder = SampleEncoder(config.system.model, tokenizer, prompt="chat", max_tokens=512)
    model = load_run(config, run)
    [expected] = generate_answers(model, tokenizer, encoder, [sample], max_new_tokens=12)
    assert answer == expected.answer != ""
    assert "".join(pieces).strip() == answer


def test_text_alone_and_several_media(assistant, media) -> None:
    alone = assistant.ask("What is it", max_new_tokens=8)
    both = assistant.ask("<audio> or <image>?", image=media["image"], audio=media["audio"])
    other = assistant.ask("<image> or <audio>?", image=media["image"], audio=media["audio"])
    assert len({alone, both, other}) == 3


def test_mistakes_are_one_line(assistant, run, media, tmp_path) -> None:
    def error(ask) -> str:
        with pytest.raises(UserError) as caught:
            ask()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = tmp_path / "x.png"
    assert f"{missing}: cannot be read (No such file" in error(
        lambda: assistant.ask("What", image=missing)
    )
    missing.write_bytes(b"no image")
    assert f"{missing}: its image cannot be decoded (8 bytes that are not an image)" in error(
        lambda: assistant.ask("What", image=missing)
    )
    assert "<video> without a file" in error(lambda: assistant.ask("What is <video>?"))
    assert "no such folder" in error(lambda: Assistant.open(tmp_path / "nowhere"))
    pictures = tmp_path / "pictures"
    random_run(pictures, "digits")
    assert f"--audio: {pictures} takes image, not audio" in error(
        lambda: Assistant.open(pictures).ask("What", audio=media["audio"])
    )


def test_files_are_checked_before_weights_are_loaded(run, media, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match=r"nope\.png: cannot be read"):
        Assistant.open(copy).ask("What", image=tmp_path / "nope.png")
    (tmp_path / "broken.png").write_bytes(media["image"].read_bytes()[:40])
    with pytest.raises(UserError, match=r"broken\.png: its image cannot be decoded"):
        Assistant.open(copy).ask("What", image=tmp_path / "broken.png")
    with pytest.raises(UserError, match="checkpoint"):
        Assistant.open(copy).ask("What", image=media["image"])


def test_the_command_streams_or_prints_json(run, assistant, media, capsys) -> None:
    words = ["ask", "--run", str(run), "--image", str(media["image"]), "--max-new-tokens", "12"]
    assert run_pipeline([*words, "What is it"]) == 0
    answer = assistant.ask("What is it", image=media["image"], max_new_tokens=12)
    assert capsys.readouterr().out.strip() == answer
    assert run_pipeline([*words, "--json", "What is it"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"question": "What is it", "image": str(media["image"]), "answer": answer}


def test_a_run_trained_without_questions_says_so(tmp_path, media, capsys, caplog) -> None:
    config = random_run(tmp_path / "run", "digits")
    stage = replace(config.system.sft, prompt="plain")
    replace(config, system=replace(config.system, sft=stage)).save(tmp_path / "run")
    command = ["ask", "--run", str(tmp_path / "run"), "--image", str(media["image"]), "What"]
    assert run_pipeline(command) == 0
    assert "ignores the question" in caplog.text


def test_a_text_that_ends_an_answer_is_not_streamed() -> None:
    tokenizer = published_tokenizers.llama(legacy=False)
    written: list[str] = []
    streamer = AnswerStreamer(
        lambda ids: tokenizer.decode(ids).partition("###")[0], written.append, ("###",)
    )
    streamer.put(torch.tensor([[]]))
    for number in tokenizer.encode("It is ## or 7 ### Human: no", add_special_tokens=False):
        streamer.put(torch.tensor([number]))
    streamer.end()
    assert "".join(written) == "It is ## or 7 "
    assert len(written) > 2
