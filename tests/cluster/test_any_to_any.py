"""Systems that generate media: MM-PT, then MM-IT on T2M and MosIT, from files by commands.

Their projectors on both sides train, in MM-IT with LoRA in the backbone; a rank that is killed in
MM-IT changes nothing. Slurm has the same in `test_slurm_training`.
"""

import json
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from pipeline.checkpoint.checkpoints import newest_weights
from tests.cluster.ranks import Ranks, losses, run_ranks, wait_for
from tests.generation_files import dialogues
from tests.worlds import preset_shards

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

KINDS = {"next_gpt": ("image", "video", "audio"), "minigpt_5": ("image",)}
KINDS["codi_2"] = KINDS["next_gpt"]
STEPS = 6
SMALL = ("--scale", "tiny", "--global-batch", 6, "--micro-batch", 2, "--epochs", 9)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    preset_shards(folder, rows=24)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("minigpt_5", marks=pytest.mark.nightly(minutes=2)),
        pytest.param("next_gpt", marks=pytest.mark.nightly(minutes=2)),
        pytest.param("codi_2", marks=pytest.mark.nightly(minutes=2)),
    ],
)
def test_pt_then_it_on_dialogues_with_media_in_and_out(
    name: str, world: Path, tmp_path: Path
) -> None:
    kinds = KINDS[name]
    pt = tmp_path / "pt"
    data = [world / kind / "pt" for kind in (*kinds, *(f"to_{kind}" for kind in kinds))]
    outcome = run_ranks(2, "pt", name, "--data", *data, *SMALL, "--max-steps", 2, "--output", pt)
    assert outcome.code == 0, outcome.stderr

    data = [*dialogues(tmp_path, kinds), world / "image" / "sft"]
    words = ["sft", name, "--data", *data, *SMALL, "--max-steps", STEPS, "--init-from", pt]
    words += ["--save-every", 2, "--output"]
    outcome = run_ranks(2, *words, tmp_path / "whole")
    assert outcome.code == 0, outcome.stderr
    killed = tmp_path / "killed"
    ranks = Ranks(2, [*words, killed])
    wait_for(killed / "checkpoints" / "step-00000002", ranks)
    ranks.processes[1].send_signal(signal.SIGKILL)
    assert ranks.wait().code != 0
    assert len((killed / "metrics.jsonl").read_text().splitlines()) < STEPS
    outcome = run_ranks(2, *words, killed)
    assert outcome.code == 0, outcome.stderr
    assert losses(killed) == losses(tmp_path / "whole")

    last = json.loads((killed / "metrics.jsonl").read_text().splitlines()[-1])
    terms = [f"to_{kind}.{loss}" for kind in kinds for loss in ("align", "denoise")]
    assert last["losses"].keys() == {"text", *terms}
    assert not (killed / "bad_samples.jsonl").exists()
    with safe_open(newest_weights(killed), "pt") as weights:
        trained = list(weights.keys())
    for part in ("lora", "inputs.image.projector", *(f"outputs.{k}.projector" for k in kinds)):
        assert any(part in each for each in trained), part
