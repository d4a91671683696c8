"""Imported checkpoints give the prompts, targets, pixels and answers of their own processors."""

from pathlib import Path

import pytest

from tests.published_processors import CASES, Case, Oracle, write_image


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_prompts_targets_pixels_and_answers_are_the_published_ones(
    case: Case, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "image.png")
    found = Oracle(case, tmp_path).compare(image)
    assert found.compared == 3
    assert found.equal, found
