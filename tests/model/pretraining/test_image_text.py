"""BLIP-2's stage 1: LAVIS's three losses and gradients, independently of the ranks."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from model.batch import IGNORED, Batch, Media
from model.input_projectors import pformer, qformer
from model.pretraining import image_text
from model.pretraining.contrastive import sample_hard_negatives
from model.spec import ProjectorShape
from model.spec.init import ImageTextInit
from model.spec.pformer import PFormer
from model.spec.qformer import QFormer
from model.text import TextIds
from pipeline.train.losses import compute_losses, count_losses, image_text_terms

RECORDED = Path(__file__).parents[1] / "recorded" / "blip2_stage1.safetensors"
SPEC = ImageTextInit(bert="", width=16, max_text=10)
FORMER = replace(QFormer(dropout=0.0, text_branch=True).tiny(), vocabulary=48, max_positions=64)
SHAPE = ProjectorShape(segments=1, tokens=5, width_in=24, width_out=40)


@dataclass(frozen=True, kw_only=True)
class GivenSpec:
    """The spec of an input branch whose media are features."""

    modality: str = "image"
    segments: int = 1
    shape: tuple[int, ...] = (5, 24)
    encodes_jointly: bool = False
    feature_shape: tuple[int, int, int] = (1, 5, 24)

    @property
    def encoder(self):
        return self


class Given(nn.Module):
    """An encoder that returns its input."""

    def forward(self, values):
        return values


def small_model(reference=None):
    torch.manual_seed(0)
    modules = {"encoder": Given(), "projector": qformer.build(FORMER, SHAPE)}
    return image_text.ImageTextModel(SPEC, GivenSpec(), modules, reference)


def pairs(features, text, *, dummy=False):
    """Return a batch of features and captions; with `dummy` the last row has none."""
    rows = len(features) + dummy
    ids = torch.zeros(rows, text.ids_bl.shape[1], dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[: len(features)], mask[: len(features)] = text.ids_bl, text.mask_bl
    zeros = torch.zeros(rows, 1, dtype=torch.long)
    rows_m = torch.arange(len(features))
    image = Media(
        input_values=features[:, None],
        media_mask_bt=zeros.bool(),
        rows_m=rows_m,
        starts_m=torch.zeros_like(rows_m),
    )
    return Batch(
        ids_bt=zeros,
        attention_bt=zeros,
        labels_bt=zeros,
        context_bt=zeros.bool(),
        media={"image": image},
        sentences=TextIds(ids_bl=ids, mask_bl=mask),
    )


TERMS = image_text_terms(SPEC)


def means(outputs):
    losses = compute_losses(TERMS, outputs)
    return {name: loss.total / loss.count for name, loss in losses.items()}


HEADS = {
    "temp": "temperature.value",
    "vision_proj": "images.linear",
    "text_proj": "texts.linear",
    "itm_head": "match",
    "Qformer.cls.predictions.transform.dense": "words.dense",
    "Qformer.cls.predictions.transform.LayerNorm": "words.norm",
    "Qformer.cls.predictions": "words.decoder",
}


def test_losses_and_gradients_equal_those_of_lavis(monkeypatch):
    recorded = load_file(RECORDED)
    state = {n.removeprefix("weights."): t for n, t in recorded.items() if "weights." in n}
    model = small_model()
    found = model.projector.qformer.load_state_dict(
        qformer.convert_state_dict(state, model.projector.spec), strict=True
    )
    assert not found.missing_keys
    heads = {"words.decoder.weight": state["Qformer.bert.embeddings.word_embeddings.weight"]}
    for theirs, ours in HEADS.items():
        for kind in ("", ".weight", ".bias"):
            if f"{theirs}{kind}" in state:
                heads[f"{ours}{kind}"] = state[f"{theirs}{kind}"].reshape(
                    1 if theirs == "temp" else state[f"{theirs}{kind}"].shape
                )
    model.heads.load_state_dict(heads)
    drawn = iter([recorded["drawn_images"], recorded["drawn_texts"]])
    found_all = torch.ones(4, dtype=torch.bool)
    monkeypatch.setattr(image_text, "sample_hard_negatives", lambda *args: (next(drawn), found_all))
    text = TextIds(ids_bl=recorded["ids"], mask_bl=recorded["mask"])
    losses = means(model(pairs(recorded["features"], text)))
    for name in ("itc", "itm", "itg"):
        torch.testing.assert_close(losses[name], recorded[name], atol=1e-6, rtol=1e-5)
    sum(losses.values()).backward()
    own = {
        "query_tokens": model.projector.qformer.queries.tokens,
        "temp": model.heads.temperature.value,
        "vision_proj.weight": model.heads.images.linear.weight,
        "itm_head.weight": model.heads.match.weight,
        "Qformer.bert.embeddings.word_embeddings.weight": (
            model.projector.qformer.words.word_embeddings.weight
        ),
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight": (
            model.projector.qformer.bert.encoder.layer[0].crossattention.attention.key.weight
        ),
    }
    for name, weight in own.items():
        expected = recorded[f"gradient.{name}"].reshape(weight.shape)
        torch.testing.assert_close(weight.grad, expected, atol=1e-5, rtol=1e-4)


def some_pairs(rows):
    draw = torch.Generator().manual_seed(3)
    text = TextIds(
        ids_bl=torch.randint(4, 47, (rows, 10), generator=draw),
        mask_bl=torch.ones(rows, 10, dtype=torch.long),
    )
    return torch.randn(rows, 5, 24, generator=draw), text


def test_dummy_rows_change_no_loss():
    model = small_model()
    features, text = some_pairs(2)
    plain, filled = model(pairs(features, text)), model(pairs(features, text, dummy=True))
    for name, loss in means(plain).items():
        torch.testing.assert_close(means(filled)[name], loss)


def test_cached_features_give_the_same_losses():
    model = small_model()
    batch = pairs(*some_pairs(2), dummy=True)
    image = batch.media["image"]
    given = replace(image, input_values=None, features=image.input_values)  # as of this encoder
    expected = means(model(batch))
    model.feature_kinds = {"image"}
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    for name, loss in means(model(replace(batch, media={"image": given}))).items():
        torch.testing.assert_close(loss, expected[name])
    model(replace(batch, media={}, sentences=None))
    assert not calls


def test_counts_before_the_forward_pass_equal_those_of_the_losses():
    batch = pairs(*some_pairs(3), dummy=True)
    losses = compute_losses(TERMS, small_model()(batch))
    assert {name: loss.count for name, loss in losses.items()} == count_losses(TERMS, batch)
    assert count_losses(TERMS, batch) == {"itc": 3, "itm": 9, "itg": 27}


def test_a_batch_without_pairs_has_no_losses_but_gradients():
    empty = replace(pairs(*some_pairs(2)), media={}, sentences=None)
    losses = compute_losses(TERMS, small_model()(empty))
    assert {name: (loss.total.item(), loss.count) for name, loss in losses.items()} == {
        "itc": (0.0, 0),
        "itm": (0.0, 0),
        "itg": (0.0, 0),
    }
    sum(loss.total for loss in losses.values()).backward()


def test_a_single_pair_has_no_negatives():
    outputs = small_model()(pairs(*some_pairs(1)))
    assert outputs.matches_x.tolist() == [1, IGNORED, IGNORED]


def test_negatives_are_neither_positives_nor_dummy_rows():
    similarity = torch.zeros(3, 6)
    similarity[0, 4] = 50.0
    valid = torch.tensor([True, True, True, False, True, False])
    for seed in range(20):
        torch.manual_seed(seed)
        drawn, found = sample_hard_negatives(similarity, torch.arange(3), valid)
        assert found.all()
        assert drawn[0] == 4
        assert drawn[1] in (0, 2, 4)
        assert drawn[2] in (0, 1, 4)


def test_projected_tokens_are_trained_towards_the_reference():
    reference = pformer.build(PFormer().tiny(), prompts=4, width_out=40)
    outputs = small_model(reference)(pairs(*some_pairs(3), dummy=True))
    assert outputs.tokens_xku.shape == outputs.prompts_xku.shape == (3, 4, 40)
    assert not outputs.prompts_xku.requires_grad
