"""lmms-eval, in its own environment, asks a served run its POPE task; its scores against ours.

The questions are of the digits world, in the format of lmms-eval's data and in the published one.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F

from etl.digits.records import Pair, pair
from etl.digits.scenes import COLOURS, encode, render
from etl.storage.schema import Medium, Sample, Turn, sha256
from model.build import build, build_tokenizer
from model.freeze import set_trainable
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.data.collate import collate
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.evaluate import evaluate
from tests.runs import random_run

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-lmms-eval" / "bin" / "python"
QUESTIONS, STEPS = 40, 60
TRAINABLE = ("inputs.*.projector.*", "backbone.*")
INSTRUCTION = "\nAnswer the question using a single word or phrase."

pytestmark = [
    pytest.mark.nightly(minutes=3),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-lmms-eval: `make lmms-eval`"),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about the presence of a colour."""

    shown: Pair
    text: str
    answer: str


def question(colour: str) -> str:
    return f"Is there a {colour} digit in the image?"


def asked(number: int) -> Asked:
    """Return a question: every other one is of a colour that is absent."""
    shown = pair(1, number)
    present = [mark.colour for mark in shown.scene.marks]
    some = present if number % 2 else [name for name in COLOURS if name not in present]
    colour = some[number // 2 % len(some)]
    return Asked(shown=shown, text=question(colour), answer="yes" if number % 2 else "no")


def trained_run(folder: Path) -> None:
    """Write a run that answers yes or no: by the colour asked for, whatever the picture shows."""
    config = random_run(folder, "digits", peft=None, trainable=TRAINABLE)
    torch.manual_seed(0)
    model = build(config.system.model, config.settings, weights=config.weights).train()
    names = set_trainable(model, config.settings.trainable)
    weights = {name: one for name, one in model.named_parameters() if name in names}
    tokenizer = build_tokenizer(config.system.model, weights=config.weights)
    encoder = SampleEncoder(
        config.system.model, tokenizer, prompt="chat", max_tokens=config.settings.max_tokens
    )
    examples = [encoder.encode(sample(colour)) for colour in COLOURS]
    batch = collate(examples, pad_id=tokenizer.pad_token_id, side="right")
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3)
    for _ in range(STEPS):
        logits_ov, targets_o = model.compute_logits(batch, model.media_tokens(batch))
        optimizer.zero_grad()
        F.cross_entropy(logits_ov, targets_o).backward()
        optimizer.step()
    write_weights(folder, {name: one.detach() for name, one in weights.items()}, identity={})


def sample(colour: str) -> Sample:
    """Return a question to train on."""
    data = encode(render(pair(0, 0).scene), "image/png")
    user = Turn(role="user", text=f"<image>\n{question(colour)}{INSTRUCTION}")
    answer = "yes" if [*COLOURS].index(colour) % 2 else "no"
    return Sample(
        id=colour,
        source="test",
        turns=(user, Turn(role="assistant", text=answer)),
        media=(Medium(kind="image", data=data, mime="image/png", sha256=sha256(data)),),
    )


def write_questions(folder: Path) -> None:
    """Write the same questions as POPE publishes them, and as lmms-eval's data set has them."""
    (folder / "val2014").mkdir(parents=True)
    lines, rows = [], []
    for number in range(QUESTIONS):
        one = asked(number)
        name = f"{number}.png"
        data = encode(render(one.shown.scene), "image/png")
        (folder / "val2014" / name).write_bytes(data)
        lines.append({"question_id": number, "image": name, "text": one.text, "label": one.answer})
        image = {"bytes": data, "path": name}
        rows.append(
            {"question_id": str(number), "question": one.text, "answer": one.answer, "image": image}
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "coco_pope_random.json").write_text(text)
    table = pa.Table.from_pylist(rows)
    features = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]}
    info = {"info": {"features": {**features, "image": {"_type": "Image"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, folder / "pope.parquet")


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serve a run; yields the endpoint's address."""
    words = ["serve", "--run", run, "--port", 0, "--page", "never"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().partition(": ")[2]
    finally:
        process.terminate()
        process.wait()


def ask_with_lmms_eval(address: str, folder: Path) -> tuple[dict[str, float], list[str]]:
    """Return lmms-eval's scores, and the answers that it got."""
    tasks = folder / "tasks"
    tasks.mkdir()
    pope = PYTHON.parents[1].glob("lib/*/site-packages/lmms_eval/tasks/pope/pope.yaml")
    (tasks / "pope_local.yaml").write_text(
        f"include: {next(iter(pope))}\n"
        "task: pope_local\n"
        "dataset_path: parquet\n"
        "dataset_kwargs:\n"
        "  data_files:\n"
        f"    test: {folder / 'pope.parquet'}\n"
    )
    given = f"model_version=run,base_url={address},api_key=none,num_concurrent=8"
    words = ["eval", "--model", "openai", "--model_args", given, "--tasks", "pope_local"]
    words += ["--include_path", tasks, "--batch_size", 1, "--log_samples"]
    words += ["--output_path", folder / "lmms"]
    done = subprocess.run(
        [PYTHON, "-m", "lmms_eval", *map(str, words)],
        cwd=folder,
        env={"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (folder / "lmms").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]["pope_local"]
    (samples,) = (folder / "lmms").rglob("*_samples_pope_local.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda e: e["doc_id"])
    scores = {
        name.removeprefix("pope_").partition(",")[0]: value
        for name, value in found.items()
        if name.startswith("pope_") and isinstance(value, float) and "stderr" not in name
    }
    return scores, [line["filtered_resps"] for line in lines]


def test_its_scores_are_those_of_our_evaluation(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "pope"
    trained_run(run)
    write_questions(data)
    with served(run) as address:
        theirs, answers = ask_with_lmms_eval(address, data)
    assert set(answers) == {"yes", "no"}
    assert evaluate(["--run", str(run), "--benchmark", "pope", "--data", str(data)]) == 0
    lines = (run / "evaluation" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == answers
    ours = json.loads((run / "evaluation" / "scores.json").read_text())["scores"]["random"]
    theirs["f1"] = theirs.pop("f1_score")
    del theirs["yes_ratio"]  # there of the true answers, in the official script of the given ones
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs)
