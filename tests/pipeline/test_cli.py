"""Every mistake of a user's is one line on stderr and exit code 2, and nothing is written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.cli import UserError, main
from model.presets import PRESETS, system
from model.spec import SpecError
from pipeline.cli import COMMANDS, run
from pipeline.config.run_config import RunConfig
from tests.worlds import caption_shards

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 16)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m pipeline` in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main(run, mistakes=(UserError, SpecError))
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def complaint(pipeline: Command) -> Callable[..., str]:
    """Run a command that must fail; return its one line."""

    def call(*words: object) -> str:
        code, _, stderr = pipeline(*words)
        assert code == 2, stderr
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert stderr.splitlines()[-1] == errors[0]
        return errors[0]

    return call


def test_commands_and_their_suggestions(pipeline: Command, complaint: Callable[..., str]) -> None:
    code, usage, _ = pipeline("--help")
    assert code == 0
    assert all(name in usage for name in COMMANDS)
    assert "did you mean 'evaluate'?" in complaint("evalute")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, pipeline: Command) -> None:
    code, usage, _ = pipeline(name, "--help")
    assert code == 0
    assert f"python -m pipeline {name}" in usage


def test_list_and_show_print_json(pipeline: Command) -> None:
    _, listed, _ = pipeline("list", "--json")
    names = [entry["name"] for entry in json.loads(listed)]
    assert names == list(PRESETS)
    _, shown, _ = pipeline("show", "llava_1_5_7b")
    assert json.loads(shown)["model"]["backbone"]["width"] == 4096


def test_data_that_is_missing_empty_or_damaged(
    captions: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    output = tmp_path / "run"
    train = ("pt", "digits", "--output", output, "--data")
    assert "no such folder" in complaint(*train, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no manifest.json" in complaint(*train, tmp_path / "empty")
    damaged = shutil.copytree(captions, tmp_path / "damaged")
    shard = next(damaged.glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert f"{shard}: shard is damaged: sha256" in complaint(*train, damaged)
    assert not output.exists()


def test_options_that_cannot_work(
    captions: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    output = tmp_path / "run"
    train = ("pt", "digits", "--data", captions, "--output", output)
    assert "'caption' is no folder of --data" in complaint(*train, "--mix", "caption=2")
    assert "want one of zero2, zero3" in complaint(*train, "--ds-config", "zero9")
    assert "no such run folder" in complaint(*train, "--init-from", tmp_path / "none")
    assert "want auto, never or a step" in complaint(*train, "--resume", "last")
    assert "did you mean 'digits'?" in complaint("pt", "digit", *train[2:])
    assert not output.exists()


def test_a_run_of_the_stage_before_mm_pt_answers_nothing(
    captions: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    whole = system("dlp").tiny()
    run = RunConfig(stage="init", part="qformer", system=whole, data=("d",), output="o")
    run.save(tmp_path)
    words = ("evaluate", "--run", tmp_path, "--data", captions)
    assert "a run of stage init has no answers; want one of pt or sft" in complaint(*words)
