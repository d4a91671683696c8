"""The floor is the same run but for its output projectors, and can be opened like any."""

import torch
from safetensors.torch import load_file

from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.generate import GeneratingAssistant
from pipeline.quickstart.bounds import with_untrained_projectors
from tests.runs import random_run


def test_only_the_projectors_differ(tmp_path):
    run, floor = tmp_path / "run", tmp_path / "floor"
    random_run(run, "minigpt_5", signals=1.0)
    with_untrained_projectors(run, floor)
    before, after = (load_file(newest_weights(folder)) for folder in (run, floor))
    assert before.keys() == after.keys()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    projector = {name for name in before if name.startswith("outputs.image.projector.")}
    assert different <= projector
    assert "outputs.image.projector.decoder.0.mlp.0.weight" in different
    GeneratingAssistant.open(floor)
