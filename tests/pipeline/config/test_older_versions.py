"""Configurations and run folders of an older version are refused in one line."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import yaml

from model.presets import system
from pipeline.config.decode import decode
from pipeline.config.older_versions import RENAMED_FILES, RENAMED_KEYS, OlderVersionError
from pipeline.config.run_config import RunConfig, check_run_folder, read_config

CONFIG_KEYS = [
    "bad_share",
    "features",
    "features_mode",
    "feature_cache_mode",
    "keep",
    "workers",
    "trains",
]


def new_key(old: str) -> str:
    (new,) = RENAMED_KEYS[old]
    return new


def with_old_key(old: str) -> dict[str, object]:
    """Return a configuration in which a key has its old name."""
    run = RunConfig(stage="pt", system=system("digits"), data=("a",), output="o")
    config: dict[str, object] = json.loads(json.dumps(asdict(run)))
    owner = config["system"]["pt"] if old == "trains" else config  # type: ignore[index]
    owner[old] = owner.pop(new_key(old))
    return config


@pytest.mark.parametrize("old", CONFIG_KEYS)
def test_an_old_key_in_a_run_folder(old: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(with_old_key(old)))
    message = (
        f"{tmp_path}: made by an older version of mmloom (it has `{old}`, now "
        f"`{new_key(old)}`); start a new run folder"
    )
    for check in (check_run_folder, lambda run: read_config(run / "config.json")):
        with pytest.raises(OlderVersionError) as error:
            check(tmp_path)
        assert str(error.value) == message


def test_an_old_key_in_a_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(with_old_key("keep")))
    with pytest.raises(OlderVersionError) as error:
        read_config(file)
    message = f"{file}: made by an older version of mmloom (it has `keep`, now `keep_last`)"
    assert str(error.value) == f"{message}; rename the key"


@pytest.mark.parametrize("old", RENAMED_FILES)
def test_an_old_file_in_a_run_folder(old: str, tmp_path: Path) -> None:
    (tmp_path / old).write_text("{}")
    with pytest.raises(OlderVersionError, match=f"it has `{old}`, now `{RENAMED_FILES[old]}`"):
        check_run_folder(tmp_path)


def test_other_folders_pass(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"stage": "pt"}')  # incomplete, but not old
    check_run_folder(tmp_path)
    RunConfig(stage="pt", system=system("digits"), data=("a",), output="o").save(tmp_path)
    check_run_folder(tmp_path)


def test_an_old_name_where_no_field_replaces_it_is_an_unknown_key() -> None:
    run = RunConfig(stage="pt", system=system("digits"), data=("a",), output="o")
    with pytest.raises(ValueError, match=r"run\.cursor: no such field"):
        decode(RunConfig, asdict(run) | {"cursor": 1}, "run")


@dataclass(frozen=True, kw_only=True)
class Clips:
    clips: int = 1


@dataclass(frozen=True, kw_only=True)
class Segments:
    segments: int = 1


@pytest.mark.parametrize(("cls", "new"), [(Clips, "clips"), (Segments, "segments")])
def test_an_old_key_with_several_new_names_is_replaced_by_that_of_its_class(
    cls: type, new: str
) -> None:
    with pytest.raises(OlderVersionError, match=f"it has `parts`, now `{new}`"):
        decode(cls, {"parts": 2}, "spec")
