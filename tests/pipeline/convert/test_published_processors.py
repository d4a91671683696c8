"""Imported checkpoints and exported presets: prompts, targets, pixels and answers of processors."""

from pathlib import Path

import pytest

from tests.published_processors import CASES, Case, Exported, Oracle, write_image


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_prompts_targets_pixels_and_answers_are_the_published_ones(
    case: Case, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "image.png")
    found = Oracle(case, tmp_path).compare(image)
    assert found.compared == 3
    assert found.equal, found


@pytest.mark.parametrize("preset", ["llava_1_5_7b", "blip_2_flan_t5_xxl"])
def test_an_exported_preset_says_and_answers_the_same_in_transformers(
    preset: str, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "image.png")
    found = Exported(preset, tmp_path).compare(image)
    assert found.compared == 3
    assert found.equal, found
