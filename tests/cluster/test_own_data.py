"""docs/train-on-your-own-data.md, run as it stands: from a folder of files to an exported model.

Two steps a stage on one rank, of a LLaVA that is published in tiny. The stages and what ends them
run as `tests.cluster.ranks` starts them; DeepSpeed's launcher is not what this page is about.
"""

import io
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import LlavaForConditionalGeneration

from etl.digits.records import dialogue_sample, pair_sample, question_sample
from etl.storage.shards import read_manifest
from pipeline.cli import run as run_pipeline
from tests import published
from tests.cluster.ranks import REPOSITORY, run_ranks
from tests.cluster.ray_cluster import RayHead
from tests.pipeline.convert.test_convert import save, tensors_of
from tests.test_docs import commands

PAGE = REPOSITORY / "docs" / "train-on-your-own-data.md"
TWO_STEPS = ("--global-batch", 4, "--micro-batch", 4, "--max-steps", 2)
"""The first step of a run moves nothing: the learning rate begins at 0."""
ROLES = {"user": "human", "assistant": "gpt"}
LISTS = {"dialogues": (dialogue_sample, 6), "held_out": (question_sample, 3)}
ROWS = {"captions": 6, **{name: rows for name, (_, rows) in LISTS.items()}}


def write_files(folder: Path) -> None:
    """Write what the page begins with: captioned images, two lists of dialogues, a checkpoint."""
    (folder / "captioned").mkdir()
    for row in range(ROWS["captions"]):
        sample = pair_sample(0, row)
        (image,) = sample.media
        file = folder / "captioned" / f"{row}.{image.mime.removeprefix('image/')}"
        file.write_bytes(image.data)
        file.with_suffix(".txt").write_text(sample.turns[1].text)
    (folder / "photos").mkdir()
    for name, (make, rows) in LISTS.items():
        entries = []
        for row in range(rows):
            sample = make(0, row)
            (image,) = sample.media
            file = f"{name}-{row}.{image.mime.removeprefix('image/')}"
            (folder / "photos" / file).write_bytes(image.data)
            said = [{"from": ROLES[turn.role], "value": turn.text} for turn in sample.turns]
            entries.append({"id": str(row), "image": file, "conversations": said})
        (folder / f"{name}.json").write_text(json.dumps(entries))
    save(published.llava(), folder / "llava-1.5-7b-hf")


def serve(words: list[str]) -> None:
    """Serve until the address is printed; what it answers is tested in tests/pipeline/serve/."""
    command = [sys.executable, "-m", "pipeline", "serve", *words, "--port", "0", "--page", "never"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("tuned: http://127.0.0.1:")
    finally:
        process.terminate()
        process.communicate()


def run_command(words: list[str], head: RayHead) -> None:
    """Run one command of the page in the current folder."""
    match words:
        case ["python", path, *rest] if path.startswith("etl/"):
            env = {**head.env, "RAY_ADDRESS": head.address}
            rest = [str(Path(word).resolve()) if Path(word).exists() else word for word in rest]
            subprocess.run([sys.executable, REPOSITORY / path, *rest], env=env, check=True)
        case ["python", "-m", "pipeline", "plan", *_]:
            pass  # of the full size; tests/pipeline/forecast/ plans
        case ["python", "-m", "pipeline", "chat", *rest]:
            with patch("sys.stdin", io.StringIO("What is in the picture?\n")):
                assert run_pipeline(["chat", *rest]) == 0
        case ["python", "-m", "pipeline", "serve", *rest]:
            serve(rest)
        case ["python", "-m", "pipeline", *rest]:
            assert run_pipeline(rest) == 0
        case ["deepspeed", "--num_accelerators", "8", "--module", "pipeline", stage, *rest]:
            rest = [str(Path(word).resolve()) if "/" in word else word for word in rest]
            outcome = run_ranks(1, stage, *rest, *TWO_STEPS)
            assert outcome.code == 0, outcome.stderr
        case _:
            raise AssertionError(words)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_page_leads_from_files_to_an_exported_model(
    tmp_path: Path, ray_head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(PAGE):
        run_command(list(command.words), ray_head)

    assert {name: read_manifest(Path("shards") / name).rows for name in ROWS} == ROWS
    predictions = Path("runs/tuned/evaluation/predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 3
    assert Path("runs/aligned/report.html").is_file()
    before, after = tensors_of(Path("llava-1.5-7b-hf")), tensors_of(Path("llava-tuned"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys()
    assert any("projector" in name for name in changed)
    assert any("q_proj" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    LlavaForConditionalGeneration.from_pretrained("llava-tuned")
