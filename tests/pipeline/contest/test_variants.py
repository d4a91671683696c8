"""The variants of a contest, and whether they train on the same samples."""

from dataclasses import replace
from pathlib import Path

import pytest

from etl.cli import UserError
from model.presets import system
from model.spec import System
from pipeline.config.mix import Mix
from pipeline.config.run_config import RunConfig
from pipeline.contest.variants import Variant, check_same_samples, read_variants
from tests.worlds import instruct_shards

QFORMER = 'model.inputs.image.projector={"kind": "qformer", "queries": 16}'


def test_variants_have_names_and_settings() -> None:
    found = read_variants([QFORMER, "model.a.depth=3", "both:pt.warmup=0.1; pt.z_loss=1e-4"])
    assert found == [
        Variant(name="base"),
        Variant(name="projector-qformer", settings=(QFORMER,)),
        Variant(name="depth-3", settings=("model.a.depth=3",)),
        Variant(name="both", settings=("pt.warmup=0.1", "pt.z_loss=1e-4")),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "want at least one variant"),
        (["pt.warmup"], "want PATH=JSON"),
        (["base:pt.warmup=1"], "want another name than 'base'"),
        (["a.depth=3", "b.depth=3"], "want another name than 'depth-3'"),
        (["../x:a=1"], "want another name"),
    ],
)
def test_mistakes_are_named(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_variants(options)


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    data = (str(instruct_shards(tmp_path / "data", 12)),)
    preset = system("digits")
    preset = replace(preset, sft=replace(preset.sft, global_batch=4, epochs=2))
    return RunConfig(stage="sft", system=preset, data=data, output=str(tmp_path / "run"))


def with_stage(run: RunConfig, **changes: object) -> RunConfig:
    preset: System = replace(run.system, sft=replace(run.system.sft, **changes))
    return replace(run, system=preset)


def test_all_variants_train_on_the_same_samples(run: RunConfig) -> None:
    assert check_same_samples({"base": run, "slow": with_stage(run, learning_rate=1e-6)}) == 6
    for other in (
        with_stage(run, global_batch=6),
        with_stage(run, epochs=1),
        replace(run, seed=1),
        replace(run, mix=Mix(shares=("data=2",))),
    ):
        with pytest.raises(UserError, match="other changes the samples of the steps"):
            check_same_samples({"base": run, "other": other})


def test_a_variant_that_skips_other_samples_is_refused(run: RunConfig) -> None:
    short = with_stage(run, max_tokens=46)
    with pytest.raises(UserError, match=r"short and base skip different samples, \d+ in all \(row"):
        check_same_samples({"base": run, "short": short})
