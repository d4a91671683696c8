"""A dialogue in the terminal: many turns, files, commands, one line for mistakes."""

import io
import json
from pathlib import Path

import pytest

from etl.storage.shards import ShardSet
from pipeline.cli import run as run_pipeline
from pipeline.evaluate.assistant import Assistant
from tests.runs import random_run
from tests.served import picture

OPTIONS = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "toy"
    random_run(folder, "digits")
    return folder


def talk(monkeypatch, capsys, run: Path, *lines: str, options=OPTIONS) -> list[str]:
    """Return what a session prints."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, ""])))
    assert run_pipeline(["chat", "--run", str(run), *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dialogue_with_files(run, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(picture())
    saved, shard = tmp_path / "talk.json", tmp_path / "shard"
    lines = [f"/image {file}", "What is it", "Why", f"/save {saved}", f"/save {shard}", "/quit"]
    printed = talk(monkeypatch, capsys, run, *lines)
    first = Assistant.open(run).ask("What is it", image=file, max_new_tokens=8)
    assert printed[0] == first != ""
    assert printed[2:] == [f"saved: {saved}", f"saved: {shard}"]
    messages = json.loads(saved.read_text())
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2
    assert [part["type"] for part in messages[0]["content"]] == ["image_url", "text"]
    assert messages[1]["content"] == [{"type": "text", "text": first}]
    [sample] = ShardSet([shard])
    assert [turn.text for turn in sample.turns[:2]] == ["<image>\nWhat is it", first]
    assert sample.media[0].data == picture()


def test_retry_undo_and_settings(run, monkeypatch, capsys) -> None:
    lines = ["/set temperature 2", "Why", "/retry", "/undo", "/set seed 0", "Why"]
    printed = talk(monkeypatch, capsys, run, *lines)
    assert printed[0] == printed[2] != printed[1]


def test_mistakes_are_one_line_and_the_session_goes_on(run, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    lines = {
        f"/image {tmp_path / 'no.png'}": "no.png: cannot be read (No such file",
        f"/audio {tmp_path / 'bad.png'}": "toy takes image, not audio",
        "/sing": "/sing: unknown; /help lists",
        "/retry": "there is no question yet",
        "/save x.json": "there is nothing to save yet",
        "/set mood 3": "/set: 'mood', want one of temperature",
        "/set top_p x": "/set top_p: 'x', want a number",
        "/set top_p 2": "/set top_p: 2.0, want a number above 0",
        "/set top_p 0.5 0.6": "/set top_p: '0.5 0.6', want one value",
        "/set seed 1.5": "/set seed: '1.5', want a whole number",
        "/undo 2": "/undo: '2', want nothing after it",
        "/image": "/image: want a file",
        f"/image {tmp_path / 'bad.png'}": "bad.png: its image cannot be decoded",
    }
    printed = talk(monkeypatch, capsys, run, *lines, "Why")
    for line, message in zip(printed, lines.values(), strict=False):
        assert line.startswith("error: ")
        assert message in line
    assert printed[len(lines)]
    assert len(printed) == len(lines) + 1


def test_nothing_is_lost(run, tmp_path, monkeypatch, capsys) -> None:
    """Neither a file, nor an answer whose retry fails, nor what is shown with a failed question."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shown, kept = tmp_path / "digit.png", tmp_path / "kept.json"
    shown.write_bytes(picture())
    kept.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = ["Why", "/set max_new_tokens 99999", "/retry", f"/image {shown}", "What"]
    lines += ["/set max_new_tokens 8", "What", "/save ~/talk.json", f"/save {kept}"]
    lines += [f"/save {folder}", f"/save {tmp_path / 'no' / 'talk'}", "/set"]
    printed = talk(monkeypatch, capsys, run, *lines)
    assert "want an answer of at most" in printed[1]
    assert printed[4] == f"saved: {tmp_path / 'talk.json'}"
    assert [line.partition(": ")[0] for line in printed[5:8]] == ["error"] * 3
    assert "exists already" in printed[5]
    assert "exists already" in printed[6]
    assert f"no folder {tmp_path / 'no'}" in printed[7]
    assert "max_new_tokens=8 seed=0" in printed[8]
    assert kept.read_text() == "mine"
    assert not [*folder.iterdir()]
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"][0]["text"] == printed[0]
    assert [part["type"] for part in messages[2]["content"]] == ["image_url", "text"]
