"""The CLI; every mistake of a user's is one line on stderr and exit code 2, nothing is written."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.cli import UserError, main
from etl.storage.lock import owner_lock
from model.presets import PRESETS, system
from model.spec import SpecError
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.cli import COMMANDS, preset_lines, run
from pipeline.config.run_config import RunConfig
from tests.worlds import caption_shards

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_shards(tmp_path_factory.mktemp("captions"), 16)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m pipeline` in this process; return exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main(run, mistakes=(UserError, SpecError))
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def error_line(pipeline: Command) -> Callable[..., str]:
    """Run a command that must fail; return the one line of its error."""

    def call(*words: object) -> str:
        code, _, stderr = pipeline(*words)
        assert code == 2, stderr
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert stderr.splitlines()[-1] == errors[0]
        return errors[0]

    return call


def test_help_and_suggestions(pipeline: Command, error_line: Callable[..., str]) -> None:
    code, usage, _ = pipeline("--help")
    assert code == 0
    assert all(name in usage for name in COMMANDS)
    assert "did you mean 'evaluate'?" in error_line("evalute")


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


def test_list_is_one_line_per_preset_with_the_whole_name(pipeline: Command) -> None:
    systems = [make() for make in PRESETS.values()]
    for width in (80, 20, 10):
        lines = preset_lines(systems, width=width)
        assert len(lines) == len(systems)
        for item, line in zip(systems, lines, strict=True):
            assert len(line) <= max(width, len(item.name) + 1)
            assert line.rstrip("…").split()[0] == item.name
    _, listed, _ = pipeline("list")
    assert [line.split()[0] for line in listed.splitlines()] == list(PRESETS)


def test_runs_of_an_older_version_are_refused(
    captions: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    config = RunConfig(stage="pt", system=system("digits"), data=("d",), output="o")
    write_weights(old, {}, {})
    config.save(old)
    written = json.loads((old / "config.json").read_text())
    written["system"]["pt"]["trains"] = written["system"]["pt"].pop("trainable")
    (old / "config.json").write_text(json.dumps(written))
    train = ("pt", "digits", "--data", captions, "--output")
    for words in (
        (*train, old),
        (*train, new, "--init-from", old),
        ("pt", old / "config.json", "--output", new),
        ("evaluate", "--run", old, "--data", captions),
        ("export", "--run", old, "--output", new),
    ):
        line = error_line(*words)
        assert line == (
            f"error: {old}: made by an older version of mmloom (it has `trains`, now `trainable`); "
            "start a new run folder"
        )
    assert not new.exists()


def test_missing_empty_and_damaged_data(
    captions: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    output = tmp_path / "run"
    train = ("pt", "digits", "--output", output, "--data")
    assert "no such folder" in error_line(*train, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no manifest.json" in error_line(*train, tmp_path / "empty")
    damaged = shutil.copytree(captions, tmp_path / "damaged")
    shard = next(damaged.glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert f"{shard}: shard is damaged: sha256" in error_line(*train, damaged)
    assert not output.exists()


def test_invalid_options(captions: Path, tmp_path: Path, error_line: Callable[..., str]) -> None:
    output = tmp_path / "run"
    train = ("pt", "digits", "--data", captions, "--output", output)
    assert "'caption' is no folder of --data" in error_line(*train, "--mix", "caption=2")
    assert "want one of zero2, zero3" in error_line(*train, "--ds-config", "zero9")
    assert "no such run folder" in error_line(*train, "--init-from", tmp_path / "none")
    assert "want auto, never or a step" in error_line(*train, "--resume", "last")
    assert "did you mean 'digits'?" in error_line("pt", "digit", *train[2:])
    assert not output.exists()


def test_an_output_that_cannot_be_written_or_is_in_use(
    captions: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    train = ("pt", "digits", "--data", captions, "--output")
    line = error_line(*train, "/dev/null/run")
    assert line == "error: --output /dev/null/run: cannot be written (Not a directory)"
    run_folder = tmp_path / "run"
    with owner_lock(run_folder / "in-use.json", name="another"):
        line = error_line(*train, run_folder)
    assert line.startswith(f"error: --output {run_folder}: in use by process {os.getpid()} on host")
    assert list(run_folder.iterdir()) == []


def test_data_of_which_no_sample_can_be_used(
    captions: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    line = error_line(
        "pt", "digits", "--data", captions, "--output", tmp_path / "run", "--set", "pt.max_tokens=5"
    )
    assert "--data: all 16 samples are unusable; first: sample " in line
    assert line.endswith("its media do not fit in 5 tokens")


def test_a_run_of_the_stage_init_has_no_answers_to_a_benchmark(
    captions: Path, tmp_path: Path, error_line: Callable[..., str]
) -> None:
    preset = system("dlp").tiny()
    run = RunConfig(stage="init", part="qformer", system=preset, data=("d",), output="o")
    run.save(tmp_path)
    words = ("evaluate", "--run", tmp_path, "--data", captions, "--benchmark", "pope")
    message = "a run of stage init has no answers, only retrieval; want one of pt, sft or rlhf"
    assert message in error_line(*words)
