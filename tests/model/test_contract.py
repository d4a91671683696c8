"""The contract of docs/components.md, kept by every class of every branch, in every preset at least.

Classes that no preset uses stand in systems made up here.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from model.batch import IGNORED, Batch, Media
from model.build import BACKBONES, ENCODERS, PROJECTORS, build
from model.segments import encode_segments, pool
from model.presets import PRESETS, system
from model.presets.blocks import clip_large_224, monkey
from model.presets.templates import CHATGLM_2, CONTINUATION
from model.spec import InputBranchSpec, Mlp, ModelSpec, SpecError
from model.spec.audio import Hubert
from model.spec.backbones import Glm, Palm
from model.spec.high_resolution import DocPedia
from model.spec.image import EvaClip
from model.spec.projectors import Ldp, QwenResampler
from model.spec.qformer import QFormer
from model.spec.video import UniformerEva
from model.spec.vit import Vit
from model.text import TextIds

SIZES = {"weights": "", "width": 128, "mlp_width": 256, "layers": 2, "heads": 4}
GLM = Glm(**SIZES, template=CHATGLM_2)
PALM = Palm(**SIZES, template=CONTINUATION)
MADE_UP = {
    "glm, LDP": ModelSpec(
        inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Ldp()),), backbone=GLM
    ),
    "palm, LDP v2": ModelSpec(
        inputs=(InputBranchSpec(encoder=Vit(), projector=Ldp(version=2)),), backbone=PALM
    ),
    "Monkey": ModelSpec(
        inputs=(InputBranchSpec(encoder=monkey(), projector=QwenResampler()),),
        backbone=GLM,
    ),
    "DocPedia": ModelSpec(
        inputs=(InputBranchSpec(encoder=DocPedia(), projector=Mlp(norm=True)),), backbone=GLM
    ),
    "HuBERT": ModelSpec(
        inputs=(InputBranchSpec(modality="audio", encoder=Hubert(weights=""), projector=Mlp()),),
        backbone=GLM,
    ),
}
NAMES = (*PRESETS, *MADE_UP)
EVERY = pytest.mark.parametrize("name", NAMES)


def spec_of(name):
    return MADE_UP[name] if name in MADE_UP else system(name).model


@cache
def built(name):
    """Return a tiny model, as a preset's SFT builds it; one that is made up has no adapters."""
    stage = system("digits").tiny().pt if name in MADE_UP else system(name).tiny().sft
    return build(spec_of(name).tiny(), stage, weights="random", seed=0).eval()


def media(branch, count, *, seed=0):
    """Return random media (m, f, *shape) of a branch, and their instructions if they are read."""
    torch.manual_seed(seed)
    values = torch.randn(count, branch.segments, *branch.encoder.shape)
    if not branch.projector.reads_text:
        return values, None
    ids_bl = torch.arange(5).repeat(count, 1)
    return values, TextIds(ids_bl=ids_bl, mask_bl=torch.ones_like(ids_bl))


def batch_with(branch, spec, values, text):
    """Return one row a medium: a token, the medium's places, and six words of which three count."""
    rows, places = len(values), spec.context_tokens(branch)
    ids_bt = torch.arange(3, 10 + places).repeat(rows, 1)
    ids_bt[:, 1 : 1 + places] = 0
    media_mask_bt = torch.zeros_like(ids_bt, dtype=torch.bool)
    media_mask_bt[:, 1 : 1 + places] = True
    labels_bt = torch.full_like(ids_bt, IGNORED)
    labels_bt[:, -3:] = torch.arange(3, 6)
    context_bt = torch.ones_like(media_mask_bt)
    context_bt[:, -3:] = False
    own = Media(
        input_values=values,
        media_mask_bt=media_mask_bt,
        rows_m=torch.arange(rows),
        starts_m=torch.ones(rows, dtype=torch.long),
        text=text,
    )
    batch = Batch(
        ids_bt=ids_bt,
        attention_bt=torch.ones_like(ids_bt),
        labels_bt=labels_bt,
        context_bt=context_bt,
        media={branch.modality: own},
    )
    if not spec.backbone.seq2seq:
        return batch
    return replace(batch, labels_bt=labels_bt[:, -3:], decoder_bs=ids_bt[:, -4:-1])


@EVERY
@torch.no_grad()
def test_features_and_tokens_have_the_shapes_that_the_spec_says(name):
    model = built(name)
    spec = model.spec
    for branch in spec.inputs:
        values, text = media(branch, 2)
        encoder = model.encoder(branch.modality)
        features = encode_segments(encoder, values, jointly=branch.encoder.encodes_jointly)
        assert features.shape == (2, *branch.feature_shape)
        assert pool(features, branch.pool).shape == (2, *branch.pooled_shape, branch.encoder.width)
        tokens = model.project(branch.modality, model.encode(branch.modality, values), text)
        assert tokens.shape == (2, branch.tokens, spec.projected_width)
        assert tokens.isfinite().all()
        assert (tokens[0] - tokens[1]).abs().max() > 1e-4, "one medium is as the other"


@EVERY
@torch.no_grad()
def test_a_blank_medium_of_each_kind_takes_part_and_changes_nothing(name):
    model = built(name)
    kinds = model.spec.modalities
    branch = model.spec.inputs[0]
    batch = batch_with(branch, model.spec, *media(branch, 1))
    plain, _ = model.compute_logits(batch, model.media_tokens(batch))
    dummies = model.media_tokens(batch, used=kinds)
    assert tuple(dummies) == kinds
    assert all(dummies[kind].shape[0] == (kind == branch.modality) for kind in kinds)
    torch.testing.assert_close(model.compute_logits(batch, dummies)[0], plain)


@EVERY
@torch.no_grad()
def test_the_backbone_answers_by_what_it_is_shown(name):
    model = built(name)
    spec = model.spec
    for branch in spec.inputs:
        batch = batch_with(branch, spec, *media(branch, 2))
        logits, targets = model.compute_logits(batch, model.media_tokens(batch))
        assert logits.shape == (6, spec.backbone.vocabulary)
        assert targets.tolist() == [3, 4, 5, 3, 4, 5]
        assert logits.isfinite().all()
        if spec.fusion.splices:  # gated cross-attention begins with its gates closed
            assert (logits[:3] - logits[3:]).abs().max() > 1e-5


def test_every_class_of_every_slot_is_here():
    models = [spec_of(name) for name in NAMES]
    branches = [branch for model in models for branch in model.inputs]
    assert {type(branch.encoder) for branch in branches} == set(ENCODERS)
    assert {type(branch.projector) for branch in branches} == set(PROJECTORS)
    assert {type(model.backbone) for model in models} == set(BACKBONES)


@pytest.mark.parametrize(
    ("name", "encoder", "tokens"),
    [
        ("llava", replace(clip_large_224(), image_size=448), 1024),
        ("blip_2", EvaClip(image_size=448), 32),
        ("llava", DocPedia(), 1600),
        ("qwen_vl", monkey(), 7 * 256),
    ],
    ids=["CLIP at 448", "EVA-CLIP at 448", "DocPedia", "Monkey"],
)
def test_a_higher_resolution_is_one_line(name, encoder, tokens):
    spec = system(name).model
    higher = replace(spec, inputs=(replace(spec.inputs[0], encoder=encoder),))
    assert higher.inputs[0].tokens == tokens


def test_an_encoder_of_whole_videos_hands_on_one_part_and_cannot_be_pooled():
    branch = InputBranchSpec(
        modality="video", encoder=UniformerEva(), projector=QFormer(joint=True), frames=8
    )
    assert branch.pooled_shape == (1, 8 * 257 + 1)
    with pytest.raises(SpecError, match="'uniformer_eva' hands its frames on as one"):
        replace(branch, pool="mean")
