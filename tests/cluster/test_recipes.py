"""Every recipe is planned at full size, and trained tiny, with data of the names in it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.storage.shards import write_folder
from pipeline.config.run_config import (
    REPOSITORY,
    RunConfig,
    StageName,
    parse_train_options,
    resolve,
)
from pipeline.forecast.plan import plan
from tests.cluster.ranks import losses, run_ranks
from tests.worlds import caption_shards, instruct_shards, text_sample

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

FOLDER = REPOSITORY / "docs" / "examples" / "recipes"
WORLD = {"captions": "captions", "weak": "captions", "text": "text"}
"""Names of data in the recipes → folders of the tests' world; all others are dialogues."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    caption_shards(folder / "captions", 8)
    instruct_shards(folder / "dialogues", 8)
    write_folder(folder / "text", [text_sample(0, number) for number in range(8)], job="text")
    return folder


def recipes() -> Iterator[object]:
    """All recipes, nightly but one with a mix, adapters and an earlier run."""
    for file in sorted(FOLDER.glob("*.yaml")):
        default = file.stem == "vila_1_peft"
        yield pytest.param(file, marks=() if default else pytest.mark.nightly, id=file.stem)


@pytest.mark.parametrize("file", recipes())
def test_a_recipe_is_planned_and_trains(file: Path, world: Path, tmp_path: Path) -> None:
    [stage] = re.findall(r"^stage: (init|pt|sft)$", file.read_text(), re.MULTILINE)
    full = config(file, stage)
    if stage != "init":
        assert plan(full.system, stage, 64).trainable > 0
    data = [own_data(world, Path(name).name, tmp_path) for name in full.data]
    output = tmp_path / "run"
    # Tiny backbones have fewer positions than some recipes' samples.
    short = () if stage == "init" else ("--set", f"{stage}.max_tokens=512")
    for size in re.findall(r"processor\.size: \[(\d+), ", file.read_text()):
        pixels = int(size) // 112 * 8  # tiny patches have 8 pixels in place of 14
        short += ("--set", f"model.inputs.image.encoder.processor.size=[{pixels}, {pixels}]")
    outcome = run_ranks(
        *(1, stage, file, "--scale", "tiny", "--data", *data, "--output", output),
        *("--init-from", "None", "--global-batch", 4, "--micro-batch", 2, "--epochs", 4),
        *("--learning-rate", 3e-3, "--max-steps", 4, "--save-every", 4, *short),
    )
    assert outcome.code == 0, outcome.stderr
    curve = losses(output)
    assert len(curve) == 4
    assert sum(curve[2:]) < sum(curve[:2])  # of the same samples, once more


def config(file: Path, stage: StageName) -> RunConfig:
    return resolve(parse_train_options(stage, [str(file), "--output", "o"]), stage)


def own_data(world: Path, name: str, folder: Path) -> Path:
    """Return data of a recipe's name, which its shares name."""
    return Path(shutil.copytree(world / WORLD.get(name, "dialogues"), folder / "shards" / name))
