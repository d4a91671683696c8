"""Mistakes in what is to vary, which are named before anything is written."""

from pathlib import Path

import pytest

from etl.cli import UserError
from pipeline.contest.contest import contest
from tests.worlds import caption_shards


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            'model.inputs.image.projectr={"kind": "mlp"}',
            "--vary projectr-mlp: model.inputs.image.projectr: no such field; "
            "did you mean 'projector'?",
        ),
        (
            'model.inputs.image.projector={"kind": "qfromer"}',
            "projector.kind: 'qfromer', want one of mlp",
        ),
        (
            'mine:model.inputs.image.projector={"kind": "qformer"',
            '--vary mine: model.inputs.image.projector: \'{"kind": "qformer"\' is not JSON',
        ),
        ("model.inputs.image.projector.depth=deep", "projector.depth: 'deep', want int"),
        ("model.inputs.sound.projector.depth=3", "model.inputs.sound: no such field"),
        ("pt.global_batch=6", "--vary: global_batch-6 changes the samples of the steps"),
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
