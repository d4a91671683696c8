"""The Q-Former: transformers' numbers in each of its modes, and BLIP-2's mask."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

from model.input_projectors import qformer
from model.spec import ProjectorShape
from model.spec.qformer import QFormer
from model.text import TextIds

SHAPE = ProjectorShape(segments=1, tokens=5, width_in=32, width_out=48)
TINY = QFormer(dropout=0.0).tiny()
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def small_config(cls, spec):
    return cls(
        vision_config=SMALL | {"intermediate_size": 32, "image_size": 16, "patch_size": 8},
        qformer_config=SMALL
        | {"intermediate_size": 64, "vocab_size": spec.vocabulary, "encoder_hidden_size": 32}
        | ({"use_qformer_text_input": spec.has_text} if cls is Blip2Config else {}),
        text_config={
            "model_type": "opt",
            "vocab_size": 64,
            "hidden_size": 48,
            "ffn_dim": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 48,
        },
        num_query_tokens=spec.queries,
        image_text_hidden_size=16,
    )


def theirs(cls, config, seed=0):
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases and queries start at zero and could hide errors
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def ours(spec, state, shape=SHAPE):
    projector = qformer.build(spec, shape).eval()
    projector.qformer.load_state_dict(qformer.convert_state_dict(state, spec))
    if "language_projection.weight" in state:
        head = {name: state[f"language_projection.{name}"] for name in ("weight", "bias")}
        projector.head.load_state_dict(head)
    return projector


def some_text(rows=2):
    torch.manual_seed(7)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])[:rows]
    return TextIds(ids_bl=torch.randint(3, 380, mask.shape) * mask, mask_bl=mask)


@torch.no_grad()
def test_tokens_equal_those_of_transformers_blip2():
    model = theirs(Blip2ForConditionalGeneration, small_config(Blip2Config, TINY))
    pixels = torch.randn(2, 3, 16, 16)
    features = model.vision_model(pixels).last_hidden_state
    found = ours(TINY, model.state_dict())(features[:, None])
    expected = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_instruction_aware_tokens_equal_those_of_transformers_instructblip():
    spec = replace(TINY, instruction=True)
    config = small_config(InstructBlipConfig, spec)
    model = theirs(InstructBlipForConditionalGeneration, config)
    pixels, text = torch.randn(2, 3, 16, 16), some_text()
    features = model.vision_model(pixels).last_hidden_state
    found = ours(spec, model.state_dict())(features[:, None], text)
    expected = model.get_image_features(
        pixels, qformer_input_ids=text.ids_bl, qformer_attention_mask=text.mask_bl
    ).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_modes_of_stage_1_equal_transformers_retrieval_model():
    spec = replace(TINY, text_branch=True)
    model = theirs(Blip2ForImageTextRetrieval, small_config(Blip2Config, spec))
    pixels, text = torch.randn(2, 3, 16, 16), some_text()
    features = model.vision_model(pixels).last_hidden_state
    projector = ours(spec, model.state_dict()).qformer
    words = {"input_ids": text.ids_bl, "attention_mask": text.mask_bl}

    matching = model(pixels, **words, use_image_text_matching_head=True).logits_per_image
    queries, _ = projector.joint(features, text)
    torch.testing.assert_close(model.itm_head(queries).mean(1), matching, atol=1e-6, rtol=1e-5)

    contrast = model(pixels, **words)
    images = torch.nn.functional.normalize(model.vision_projection(projector(features)), dim=-1)
    texts = model.text_projection(projector.read_text(text)[:, 0])
    texts = torch.nn.functional.normalize(texts, dim=-1)
    torch.testing.assert_close(images, contrast.image_embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(texts, contrast.text_embeds, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_under_the_causal_mask_nothing_attends_to_later_text_and_queries_to_none():
    spec = replace(TINY, text_branch=True)
    torch.manual_seed(0)
    module = qformer.build(spec, SHAPE).eval().qformer
    features, text = torch.randn(2, 5, 32), some_text()
    queries, words = module.joint(features, text, causal=True)
    torch.testing.assert_close(queries, module(features))
    changed = TextIds(ids_bl=text.ids_bl.clone(), mask_bl=text.mask_bl)
    changed.ids_bl[0, 3] += 1
    _, moved = module.joint(features, changed, causal=True)
    same = (moved == words).all(-1)
    assert same[0].tolist() == [True] * 3 + [False] * 3
    assert same[1].all()
    _, other = module.joint(features + 1, text, causal=True)
    assert not torch.equal(other, words)


def test_the_causal_mask_is_unilms():
    mask = qformer.joint_mask(torch.tensor([[1, 1, 0]]), 2, torch.float32, causal=True)
    sees = (mask[0, 0] == 0).int().tolist()
    assert sees == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]


@torch.no_grad()
def test_each_segment_is_projected_separately_and_reads_the_text():
    spec, shape = replace(TINY, instruction=True), replace(SHAPE, segments=3)
    projector = qformer.build(spec, shape).eval()
    features, text = torch.randn(2, 3, 5, 32), some_text()
    found = projector(features, text)
    assert found.shape == (2, spec.tokens(shape), 48)
    alone = torch.cat([projector(features[:, part : part + 1], text) for part in range(3)], dim=1)
    torch.testing.assert_close(found, alone)


@torch.no_grad()
def test_joint_queries_attend_to_all_segments_at_once():
    spec, shape = replace(TINY, joint=True, extra_queries=2), replace(SHAPE, segments=3)
    projector = qformer.build(spec, shape).eval()
    features = torch.randn(2, 3, 5, 32)
    found = projector(features)
    assert found.shape == (2, spec.tokens(shape), 48) == (2, 6, 48)
    torch.testing.assert_close(found, projector(features.reshape(2, 1, 15, 32)))


@torch.no_grad()
def test_features_are_normed_if_the_spec_says_so():
    projector = qformer.build(replace(TINY, norm_features=True), SHAPE).eval()
    features = torch.randn(2, 1, 5, 32)
    torch.testing.assert_close(projector(features), projector(3 * features + 1))


def test_an_instruction_aware_projector_requires_the_instruction():
    with pytest.raises(ValueError, match="needs the instruction"):
        qformer.build(replace(TINY, instruction=True), SHAPE)(torch.randn(1, 1, 5, 32))


@pytest.mark.parametrize(("text", "norm"), [(False, False), (True, True)])
def test_lavis_names_are_converted(text, norm):
    spec = replace(TINY, text_branch=text, norm_features=norm)
    own = qformer.build(spec, SHAPE).qformer.state_dict()
    state = {lavis_name(name): tensor for name, tensor in own.items()}
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(4)
    state["Qformer.cls.predictions.bias"] = torch.zeros(4)
    if not norm:
        state["ln_vision.weight"] = torch.zeros(4)
    if not text:
        state["Qformer.bert.embeddings.word_embeddings.weight"] = torch.zeros(4)
        state["Qformer.bert.encoder.layer.0.intermediate.dense.weight"] = torch.zeros(4)
        state["Qformer.bert.encoder.layer.0.output.LayerNorm.bias"] = torch.zeros(4)
    found = qformer.convert_state_dict(state, spec)
    assert found.keys() == own.keys()
    assert all(found[name] is own[name] for name in own)


def lavis_name(name):
    if name == "queries.tokens":
        return "query_tokens"
    if name.startswith("norm."):
        return name.replace("norm.", "ln_vision.")
    name = name.replace("words.", "embeddings.").replace(
        ".attention.attention.", ".attention.self."
    )
    name = name.replace("crossattention.attention.", "crossattention.self.")
    name = name.replace("bert.layernorm.", "bert.embeddings.LayerNorm.").removeprefix("bert.")
    return f"Qformer.bert.{name}"


def test_published_weights_are_loaded_and_extra_queries_are_new(tmp_path):
    spec = replace(TINY, extra_queries=2)
    donor = qformer.build(TINY, SHAPE).qformer.state_dict()
    file = tmp_path / "stage1.pth"
    torch.save({"model": {lavis_name(name): tensor for name, tensor in donor.items()}}, file)
    projector = qformer.build(replace(spec, weights=str(file)), SHAPE, weights="pretrained")
    loaded = projector.qformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in donor.items())
    assert loaded["extra_queries.tokens"].std() > 0


def test_the_sizes_are_blip2s():
    """188M with both branches (Li et al. 2023, §3.1, including the heads of stage 1).

    107M trainable in front of OPT-2.7B (table 2), the text branch left out.
    """
    with torch.device("meta"):
        both = qformer.build(
            QFormer(text_branch=True),
            ProjectorShape(segments=1, tokens=257, width_in=1408, width_out=2560),
        )
        read = qformer.build(
            QFormer(), ProjectorShape(segments=1, tokens=257, width_in=1408, width_out=2560)
        )
    assert sum(weight.numel() for weight in both.qformer.parameters()) == pytest.approx(
        188e6, rel=0.015
    )
    assert sum(weight.numel() for weight in read.parameters()) == pytest.approx(107e6, rel=0.005)


def test_new_weights_are_initialised_as_in_bert():
    spec = replace(QFormer(), layers=1, vocabulary=10)
    module = qformer.build(spec, ProjectorShape(segments=1, tokens=2, width_in=1024, width_out=64))
    for name, weight in module.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name.lower():
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
