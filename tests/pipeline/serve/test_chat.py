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
        "/set top_p x": "'x' is not a number",
        "/set top_p 2": "--top-p: 2.0, want a number above 0",
    }
    printed = talk(
        monkeypatch, capsys, run, *lines, f"/image {tmp_path / 'bad.png'}", "What", "Why"
    )
    for line, message in zip(printed, lines.values(), strict=False):
        assert line.startswith("error: ")
        assert message in line
    assert "its image cannot be decoded" in printed[len(lines)]
    assert printed[len(lines) + 1]
    assert len(printed) == len(lines) + 2
