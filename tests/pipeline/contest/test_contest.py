"""Mistakes in what is to vary, which are named before anything is written."""

from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.contest.contest import contest
from tests.worlds import caption_shards


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ('model.inputs.image.projectr={"kind": "mlp"}', "x"),
        ('model.inputs.image.projector={"kind": "qfromer"}', "x"),
        ('model.inputs.image.projector={"kind": "qformer"', "x"),
        ('model.inputs.image.projector={"kind": "mlp", "depth": "3"}', "x"),
        ("model.inputs.sound.projector.depth=3", "x"),
        ("pt.global_batch=6", "x"),
    ],
)
def test_a_mistake_in_a_variant_is_one_line(vary: str, message: str, tmp_path: Path) -> None:
    data = caption_shards(tmp_path / "data", 8)
    output = tmp_path / "contest"
    words = ["digits", "--data", str(data), "--output", str(output), "--vary", vary]
    with pytest.raises(UserError) as raised:
        contest(words)
    assert "\n" not in str(raised.value)
    assert message in str(raised.value)
    assert not output.exists()
