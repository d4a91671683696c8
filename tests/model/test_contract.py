"""The contract of docs/components.md, for every component class, in every preset at least.

Classes that no preset uses are tested in systems made up here; new ones are found by themselves.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from model.batch import IGNORED, Batch, Media
from model.build import BACKBONES, ENCODERS, PROJECTORS, build
from model.presets import PRESETS, system
from model.presets.blocks import clip_large_224, monkey
from model.presets.templates import CHATGLM_2, CONTINUATION
from model.segments import encode_segments, pool
from model.spec import InputBranchSpec, Mlp, ModelSpec, SpecError
from model.spec.backbones import Glm, Palm
from model.spec.hf_backbones import HfCausal, HfSeq2Seq
from model.spec.high_resolution import DocPedia
from model.spec.image import EvaClip
from model.spec.image_processor import squash
from model.spec.projectors import Ldp, QwenResampler
from model.spec.qformer import QFormer
from model.spec.video import UniformerEva
from model.spec.vit import Vit
from model.text import TextIds
from tests.model.examples import default_spec, encoder_specs

SIZES = {"weights": "", "width": 128, "mlp_width": 256, "layers": 2, "heads": 4}
GLM = Glm(**SIZES, template=CHATGLM_2)
PALM = Palm(**SIZES, template=CONTINUATION)
QWEN_3 = HfCausal(
    weights="",
    config={
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    supports_packing=True,
)
MT5 = HfSeq2Seq(
    weights="",
    config={
        "model_type": "mt5",
        "vocab_size": 250_112,
        "d_model": 128,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    },
)
MADE_UP = {
    "glm, LDP": ModelSpec(
        inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Ldp()),), backbone=GLM
    ),
    "palm, LDP v2": ModelSpec(
        inputs=(InputBranchSpec(encoder=Vit(), projector=Ldp(version=2)),), backbone=PALM
    ),
    "hf_causal": ModelSpec(
        inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Mlp()),), backbone=QWEN_3
    ),
    "hf_seq2seq": ModelSpec(
        inputs=(InputBranchSpec(encoder=clip_large_224(), projector=Mlp()),), backbone=MT5
    ),
    "Monkey": ModelSpec(
        inputs=(InputBranchSpec(encoder=monkey(), projector=QwenResampler()),),
        backbone=GLM,
    ),
    "DocPedia": ModelSpec(
        inputs=(InputBranchSpec(encoder=DocPedia(), projector=Mlp(norm=True)),), backbone=GLM
    ),
}


def classes(models):
    """Return the classes of encoders, projectors and backbones in models."""
    branches = [branch for model in models for branch in model.inputs]
    return (
        {type(branch.encoder) for branch in branches}
        | {type(branch.projector) for branch in branches}
        | {type(model.backbone) for model in models}
    )


TESTED = classes([*(system(name).model for name in PRESETS), *MADE_UP.values()])
for cls, encoder in encoder_specs().items():
    if cls not in TESTED:
        branch = InputBranchSpec(modality=encoder.media[0], encoder=encoder, projector=Mlp())
        MADE_UP[cls.__name__] = ModelSpec(inputs=(branch,), backbone=GLM)
for cls in PROJECTORS:
    if cls not in TESTED:
        branch = InputBranchSpec(encoder=clip_large_224(), projector=default_spec(cls))
        MADE_UP[cls.__name__] = ModelSpec(inputs=(branch,), backbone=GLM)
for cls in BACKBONES:
    if cls not in TESTED:
        branch = InputBranchSpec(encoder=clip_large_224(), projector=Mlp())
        backbone = cls(**SIZES, template=CONTINUATION)
        MADE_UP[cls.__name__] = ModelSpec(inputs=(branch,), backbone=backbone)
NAMES = (*PRESETS, *MADE_UP)
EVERY = pytest.mark.parametrize("name", NAMES)


def spec_of(name):
    return MADE_UP[name] if name in MADE_UP else system(name).model


@cache
def built(name):
    """Return a tiny model as a preset's SFT builds it; made-up ones have no adapters."""
    stage = system("digits").tiny().pt if name in MADE_UP else system(name).tiny().sft
    return build(spec_of(name).tiny(), stage, weights="random", seed=0).eval()


def media(branch, count, *, seed=0):
    """Return random media (m, f, *shape) of a branch, and instructions if it reads any."""
    torch.manual_seed(seed)
    values = torch.randn(count, branch.segments, *branch.encoder.shape)
    if not branch.projector.reads_text:
        return values, None
    ids_bl = torch.arange(5).repeat(count, 1)
    return values, TextIds(ids_bl=ids_bl, mask_bl=torch.ones_like(ids_bl))


def batch_with(branch, spec, values, text):
    """Return one row per medium: a token, the medium, and six words, three of them targets."""
    rows, tokens = len(values), spec.context_tokens(branch)
    ids_bt = torch.arange(3, 10 + tokens).repeat(rows, 1)
    ids_bt[:, 1 : 1 + tokens] = 0
    media_mask_bt = torch.zeros_like(ids_bt, dtype=torch.bool)
    media_mask_bt[:, 1 : 1 + tokens] = True
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
def test_features_and_tokens_have_the_shapes_of_the_spec(name):
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
        assert (tokens[0] - tokens[1]).abs().max() > 1e-4, "tokens do not depend on the medium"


@EVERY
@torch.no_grad()
def test_a_dummy_of_each_kind_is_run_and_changes_nothing(name):
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
def test_logits_depend_on_the_media(name):
    model = built(name)
    spec = model.spec
    for branch in spec.inputs:
        batch = batch_with(branch, spec, *media(branch, 2))
        logits, targets = model.compute_logits(batch, model.media_tokens(batch))
        assert logits.shape == (6, spec.backbone.vocabulary)
        assert targets.tolist() == [3, 4, 5, 3, 4, 5]
        assert logits.isfinite().all()
        if spec.fusion.splices:  # gated cross-attention starts with closed gates
            assert (logits[:3] - logits[3:]).abs().max() > 1e-5


def test_every_class_is_tested_here():
    assert {*ENCODERS, *PROJECTORS, *BACKBONES} == classes([spec_of(name) for name in NAMES])


@pytest.mark.parametrize(
    ("name", "encoder", "tokens"),
    [
        ("llava", replace(clip_large_224(), processor=squash(448)), 1024),
        ("blip_2", EvaClip(processor=squash(448)), 32),
        ("llava", DocPedia(), 1600),
        ("qwen_vl", monkey(), 7 * 256),
    ],
    ids=["CLIP at 448", "EVA-CLIP at 448", "DocPedia", "Monkey"],
)
def test_a_higher_resolution_only_needs_another_encoder(name, encoder, tokens):
    spec = system(name).model
    higher = replace(spec, inputs=(replace(spec.inputs[0], encoder=encoder),))
    assert higher.inputs[0].tokens == tokens


def test_features_of_a_whole_video_are_one_segment_and_cannot_be_pooled():
    branch = InputBranchSpec(
        modality="video", encoder=UniformerEva(), projector=QFormer(joint=True), frames=8
    )
    assert branch.pooled_shape == (1, 8 * 257 + 1)
    with pytest.raises(SpecError, match="'uniformer_eva' returns all frames as one segment"):
        replace(branch, pool="mean")
