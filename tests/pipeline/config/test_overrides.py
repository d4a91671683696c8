"""Overrides of preset fields on the command line, and combinations that are refused."""

import pytest

from etl.cli import UserError
from model.presets import system
from model.spec import Mlp, SpecError
from model.spec.qformer import QFormer
from pipeline.config.overrides import override


def test_one_option_swaps_a_component():
    preset = override(
        system("llava_1_5_7b"), ['model.inputs.image.projector={"kind": "qformer", "queries": 8}']
    )
    assert preset.model.inputs[0].projector == QFormer(queries=8)
    assert preset.model.inputs[0].tokens == 8


def test_a_branch_is_given_by_its_index_or_modality():
    by_name = override(system("llava_1_5_7b"), ["model.inputs.image.projector.depth=3"])
    by_number = override(system("llava_1_5_7b"), ["model.inputs.0.projector.depth=3"])
    assert by_name == by_number
    assert by_name.model.inputs[0].projector == Mlp(depth=3)


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        ("digits", "model.backbone.layer=8", "no such field; did you mean 'layers'?"),
        ("digits", "model.inputs.video.frames=2", "no such field; want one of image, 0"),
        ("digits", "model.backbone.layers=many", "layers: 'many', want int"),
        ("digits", "model.backbone.layers", "want PATH=VALUE"),
        ("digits", 'model.inputs.image.projector={"kind": "mpl"}', "kind: 'mpl', want one of"),
        ("digits", 'model.inputs.image.projector={"kind": "mlp"', "is not JSON .Expecting ','"),
    ],
)
def test_mistakes_are_reported_in_one_line(preset, setting, message):
    with pytest.raises(UserError, match=message) as error:
        override(system(preset), [setting])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        (
            "digits",
            'model.inputs.image.encoder={"kind": "point_bert", "weights": ""}',
            "input branch 'image': the encoder 'point_bert' encodes points, not image",
        ),
        (
            "blip_2_flan_t5_xxl",
            'model.fusion={"kind": "gated_cross_attention", "heads": 8}',
            "requires a causal backbone, 't5' is seq2seq",
        ),
        (
            "blip_2",
            'model.fusion={"kind": "visual_expert"}',
            "requires a backbone of kind 'llama'",
        ),
        ("blip_2_flan_t5_xxl", 'sft.peft={"kind": "prefix"}', "'t5' is seq2seq"),
        (
            "digits",
            "model.inputs.image.frames=4",
            "input branch 'image': frames is for videos only",
        ),
        ("digits", "model.inputs.image.pool=mean", "pool needs a medium of several segments"),
        ("flamingo_3b", "model.inputs.video.projector.latents=8", "its spec differs"),
    ],
)
def test_impossible_combinations_are_refused_before_anything_is_built(preset, setting, message):
    with pytest.raises(SpecError, match=message) as error:
        override(system(preset), [setting])
    assert "\n" not in str(error.value)
