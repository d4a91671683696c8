"""Systems composed of published parts: their files, and that they train and answer.

In this process and without DeepSpeed; `tests/cluster/test_own_parts.py` runs the commands.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etl.cli import UserError
from etl.storage.shards import ShardSet
from model.build import build_tokenizer
from model.presets.templates import CONTINUATION
from model.spec import Mlp, SpecError, System
from model.spec.hf_backbones import HfCausal
from pipeline.cli import run
from pipeline.config.run_config import REPOSITORY, changed_preset
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.generate_answers import generate_answers
from tests.pipeline.test_presets_train import learn
from tests.worlds import preset_shards

SCRIPT = REPOSITORY / "docs" / "examples" / "make_tiny_parts.py"
SYSTEMS = {
    "siglip2 and qwen3": ("--image", "parts/siglip2", "--llm", "parts/qwen3"),
    "whisper and smollm2": ("--audio", "parts/whisper", "--llm", "parts/smollm2"),
    "dinov2 and gemma3": (
        *("--image", "parts/dinov2", "--video", "parts/dinov2", "--llm", "parts/gemma3"),
        *("--projector", "mlp"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `parts`, as the page's script makes them, and data in `world`."""
    folder = tmp_path_factory.mktemp("own")
    spec = importlib.util.spec_from_file_location("make_tiny_parts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(SCRIPT), str(folder / "parts")])
        module.main()
    preset_shards(folder / "world", rows=8)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def composed(*words: str) -> System:
    Path("own.json").unlink(missing_ok=True)
    assert run(["compose", *words, "--output", "own.json"]) == 0
    return changed_preset("own.json", "full", ())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("words", SYSTEMS.values(), ids=SYSTEMS)
def test_a_composed_system_trains_in_both_stages_and_answers(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    system = composed(*words)
    torch.set_num_threads(1)
    start = None
    for name in ("pt", "sft"):
        stage = system.stage(name).tiny()  # its batches and rates, the parts as they are
        data = [Path("world") / kind / name for kind in (*system.model.modalities, "text")]
        learnt = learn(system.model, stage, data, start, tmp_path / name, "pretrained")
        assert learnt.losses[-1] < learnt.losses[0]
        now = dict(learnt.model.named_parameters())
        moved = {one for one in now if not torch.equal(now[one], learnt.before[one])}
        assert moved == set(learnt.trainable)
        start = learnt.saved
    assert any("lora" in one for one in moved)
    tokenizer = build_tokenizer(system.model, weights="pretrained")
    encoder = SampleEncoder(
        system.model, tokenizer, prompt=stage.prompt, max_tokens=stage.max_tokens
    )
    samples = [ShardSet([data[0]])[row] for row in range(3)]
    answers = generate_answers(learnt.model, tokenizer, encoder, samples, max_new_tokens=4)
    assert [answer.id for answer in answers] == [sample.id for sample in samples]


def test_a_composed_file_is_what_show_prints_and_can_be_edited(
    capsys: pytest.CaptureFixture[str],
) -> None:
    composed(*SYSTEMS["siglip2 and qwen3"])
    capsys.readouterr()
    run(["show", "own.json"])
    assert capsys.readouterr().out == Path("own.json").read_text()
    fields = json.loads(Path("own.json").read_text())
    fields["model"]["inputs"][0]["projector"] = {"kind": "mlp", "depth": 4}
    del fields["sft"]
    Path("edited.json").write_text(json.dumps(fields))
    run(["show", "edited.json", "--set", "pt.epochs=3"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["inputs"][0]["projector"]["depth"] == 4
    assert (shown["pt"]["epochs"], shown["sft"]) == (3, None)


def test_a_part_may_be_given_by_its_kind_and_its_weights_alone() -> None:
    system = composed(*SYSTEMS["siglip2 and qwen3"])
    (branch,), backbone = system.model.inputs, system.model.backbone
    encoder = {"kind": "hf_vision", "weights": branch.encoder.weights}
    llm = {"kind": "hf_causal", "weights": backbone.weights}
    fields = json.loads(Path("own.json").read_text())
    fields["model"]["inputs"][0]["encoder"] = encoder
    fields["model"]["backbone"] = llm | {"supports_packing": False}
    Path("short.json").write_text(json.dumps(fields))
    short = changed_preset("short.json", "full", ())
    assert short.model.inputs == system.model.inputs
    assert short.model.backbone == replace(backbone, supports_packing=False)
    by_options = changed_preset(
        "llava",
        "full",
        [f"model.backbone={json.dumps(llm)}", f"model.inputs.image.encoder={json.dumps(encoder)}"],
    )
    assert by_options.model.backbone == backbone
    assert by_options.model.inputs[0].encoder == branch.encoder


def test_a_base_model_without_a_chat_template_continues_the_question(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(folder / "parts" / "qwen3", tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    system = composed("--image", "parts/siglip2", "--llm", str(base))
    assert system.model.backbone.template == CONTINUATION
    assert "no chat template, so none is used" in capsys.readouterr().out
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(SpecError, match="holds no tokenizer"):
        composed("--image", "parts/siglip2", "--llm", str(base))


def test_paths_are_absolute_so_that_commands_may_run_elsewhere() -> None:
    system = composed(*SYSTEMS["whisper and smollm2"])
    assert system.model.backbone.weights == str(Path("parts/smollm2").resolve())
    assert system.model.inputs[0].encoder.weights == str(Path("parts/whisper").resolve())


def test_parts_of_presets_may_be_used_and_equal_encoders_are_shared() -> None:
    system = composed("--points", "digits_points", "--llm", "parts/qwen3", "--name", "clouds")
    assert system.name == "clouds"
    assert system.model.inputs[0].encoder.kind == "point_bert"
    assert isinstance(system.model.backbone, HfCausal)
    system = composed(*SYSTEMS["dinov2 and gemma3"])
    image, video = system.model.inputs
    assert (video.encoder_of, video.frames) == ("image", 8)
    assert image.projector == video.projector == Mlp()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--llm", "parts/qwen3"), "name at least one encoder, such as --image FOLDER"),
        (("--image", "parts/siglip2", "--llm", "parts/whisper"), "not a language model"),
        (
            ("--image", "parts/siglip2", "--llm", "parts/qwen3", "--projector", "mpl"),
            "--projector.kind: 'mpl', want one of",
        ),
        (("--image", "parts/siglip2", "--llm", "parts/none"), "parts/none"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises((UserError, SpecError)) as error:
        composed(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_was_edited_is_not_overwritten(folder: Path) -> None:
    composed(*SYSTEMS["siglip2 and qwen3"])
    words = ["compose", *SYSTEMS["siglip2 and qwen3"], "--output", "own.json"]
    run(words)  # the same again
    file = folder / "own.json"
    edited = file.read_text().replace('"epochs": 1', '"epochs": 2')
    file.write_text(edited)
    with pytest.raises(UserError, match=r"--output own\.json: exists, and differs; choose another"):
        run(words)
    assert file.read_text() == edited
