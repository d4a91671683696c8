"""Every preset is consistent: name, sizes, and trainable patterns of its stages.

`python -m tests.model.test_presets` rewrites the golden file. `benchmarks/params.py` and the tests
of `plan` build every preset at full size.
"""

import json
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest

from model.build import build_on_meta
from model.freeze import set_trainable
from model.presets import PRESETS, system
from model.pretraining.build import build_init
from model.spec import ClipVision, Llama, SpecError, System
from pipeline.config.decode import decode

GOLDEN = Path(__file__).parent / "golden" / "presets.json"


def resolved():
    """Return every published system's spec as plain JSON values."""
    published = [name for name in PRESETS if not name.startswith("digits")]
    return json.loads(json.dumps({name: asdict(system(name)) for name in published}))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_consistent(name):
    whole = system(name)
    assert whole.name == name
    assert whole.paper.startswith("arXiv:")
    assert PRESETS[name]() == whole, "a preset is a pure function"
    media = sum(whole.model.context_tokens(branch) for branch in whole.model.inputs)
    for stage in (*whole.init, whole.pt, whole.sft):
        assert stage.global_batch % stage.micro_batch == 0
    for stage in (whole.pt, whole.sft):
        assert media < stage.max_tokens <= whole.model.backbone.max_positions


@pytest.mark.parametrize("name", PRESETS)
def test_trainable_patterns_match_parameters(name):
    tiny = system(name).tiny()
    for stage in (tiny.pt, tiny.sft):
        model = build_on_meta(tiny.model, stage)
        trained = set_trainable(model, stage.trainable)
        assert trained
        # Something is frozen, except in CogVLM's fine-tuning.
        everything = len(trained) == len(list(model.parameters()))
        assert everything == (name == "cogvlm" and stage is tiny.sft)


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name]().init])
def test_trainable_patterns_of_init_stages_match_parameters(name):
    tiny = system(name).tiny()
    for stage in tiny.init:
        set_trainable(build_init(tiny.model, stage, weights="random"), stage.trainable)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_round_trip_through_json(name):
    whole = system(name)
    assert decode(System, json.loads(json.dumps(asdict(whole))), name) == whole


def test_presets_equal_the_golden_file():
    kept = json.loads(GOLDEN.read_text())
    fresh = resolved()
    assert list(fresh) == list(kept)
    for name in fresh:
        assert fresh[name] == kept[name], name


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_consistent(name):
    model = system(name).model
    backbone = model.backbone
    if not backbone.seq2seq:
        assert backbone.width % backbone.heads == 0
    if isinstance(backbone, Llama):
        assert backbone.heads % backbone.kv_heads == 0
    for encoder in (branch.encoder for branch in model.inputs):
        if isinstance(encoder, ClipVision):
            assert encoder.width % encoder.heads == 0
            assert encoder.image_size % encoder.patch_size == 0
            assert -encoder.layers <= encoder.feature_layer < 0


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("flamingo_80b", {"image": 64, "video": 64}),
        ("blip_2", {"image": 32}),
        ("mplug_owl", {"image": 65, "video": 65}),
        ("videochat", {"video": 96, "image": 96}),
        ("video_llama", {"video": 32, "image": 32, "audio": 8}),
        ("video_chatgpt", {"video": 100 + 256}),
        ("shikra", {"image": 256}),
        ("pandagpt", dict.fromkeys(("image", "video", "audio", "depth", "thermal", "imu"), 1)),
        ("qwen_vl", {"image": 256}),
        ("llava_1_5_7b", {"image": 576}),
        ("minigpt_v2", {"image": 256}),
        ("cogvlm", {"image": 1225 + 2}),
        ("x_instructblip", {"image": 32, "video": 5 * 32, "audio": 2 * 32, "points": 32}),
    ],
)
def test_a_medium_has_the_published_number_of_tokens(name, tokens):
    assert {branch.modality: branch.tokens for branch in system(name).model.inputs} == tokens


def test_llava_has_the_published_learning_rates():
    whole = system("llava_1_5_7b")
    assert (whole.pt.learning_rate, whole.pt.global_batch) == (1e-3, 256)
    assert (whole.sft.peft.learning_rate, whole.sft.learning_rate) == (2e-4, 2e-5)
    assert (whole.sft.peft.rank, whole.sft.peft.alpha) == (128, 256)


def test_an_unknown_preset_suggests_the_nearest_name():
    with pytest.raises(SpecError, match=r"unknown preset 'digit': did you mean 'digits'\?"):
        system("digit")
    with pytest.raises(SpecError, match="want one of digits, digits_video, "):
        system("qqq")


def test_an_unknown_stage_or_modality_is_an_error():
    whole = system("digits")
    with pytest.raises(SpecError, match=r"unknown stage 'stf': did you mean 'sft'"):
        whole.stage("stf")
    with pytest.raises(SpecError, match=r"unknown modality 'images': did you mean 'image'"):
        whole.model.input_branch("images")


def test_specs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        system("digits").model.backbone.width = 1


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(resolved(), indent=1, ensure_ascii=False) + "\n")


def test_rlhf_of_a_preset_without_one_goes_on_from_its_sft():
    """DPO of the same adapters at a tenth of their rate; nothing else is trained."""
    preset = system("llava_1_5_7b")
    assert preset.rlhf is None
    rlhf = preset.stage("rlhf")
    assert (rlhf.trainable, rlhf.objective.kind) == (("backbone.*lora_*.default.*",), "dpo")
    assert rlhf.learning_rate == pytest.approx(
        (preset.sft.peft.learning_rate if preset.sft.peft else preset.sft.learning_rate) / 10
    )
    assert rlhf.max_tokens == preset.sft.max_tokens
    assert preset.with_rlhf().with_rlhf() == preset.with_rlhf()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft": None}, "peft: want lora or qlora"),
        ({"trainable": ("inputs.*",)}, "the adapters alone"),
        ({"packing": "off"}, "packing: want auto"),
        ({"z_loss": 1e-4}, "no z-loss"),
    ],
)
def test_rlhf_trains_adapters_alone(changes, reason):
    with pytest.raises(SpecError, match=reason):
        replace(system("digits").stage("rlhf"), **changes)


def test_rlhf_is_refused_where_samples_cannot_be_packed():
    with pytest.raises(SpecError, match="packed into one sequence"):
        system("blip_2_flan_t5_xxl").stage("rlhf")
