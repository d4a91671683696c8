"""Stages before MM-PT: what their models are built from, and which weights they pass on."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from model.build import build_on_meta
from model.presets import system
from model.pretraining.build import (
    build_init,
    build_sentence_tokenizer,
    is_stage_only,
    sentence_reader,
)
from model.spec import SpecError
from model.spec.init import ImageTextInit

DLP = system("dlp").tiny()
SENTENCES, IMAGE_TEXT = DLP.init


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a published BERT with the sizes of a tiny Q-Former."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    folder = tmp_path_factory.mktemp("bert")
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_else_is_published(monkeypatch):
    """Load only the BERT: there are no weights of tiny encoders and backbones."""
    monkeypatch.setattr("model.pretraining.build.build_input_branch", _random_parts)


def _random_parts(branch, width, weights, dtype):
    from model.build import build_input_branch  # noqa: PLC0415 -- the name above is replaced

    return build_input_branch(branch, width, "random", dtype)


def test_bert_initialises_both_branches_of_a_qformer(bert):
    stage = replace(IMAGE_TEXT, reference=None, objective=ImageTextInit(bert=str(bert)).tiny())
    stage = replace(stage, objective=replace(stage.objective, bert=str(bert)))
    state = build_init(DLP.model, stage, weights="pretrained").projector.qformer.state_dict()
    given = BertModel.from_pretrained(bert).state_dict()
    layer, own = "encoder.layer.1", "bert.encoder.layer.1"
    for half in ("intermediate", "intermediate_query"):
        assert torch.equal(
            state[f"{own}.{half}.dense.weight"], given[f"{layer}.intermediate.dense.weight"]
        )
    assert torch.equal(
        state[f"{own}.attention.attention.query.weight"],
        given[f"{layer}.attention.self.query.weight"],
    )
    assert torch.equal(
        state["words.word_embeddings.weight"][:300], given["embeddings.word_embeddings.weight"]
    )
    loaded = sum(name.startswith("bert.encoder.layer.1.") for name in state)
    assert loaded == len([name for name in given if layer in name]) + 6


def test_a_bert_of_other_sizes_is_a_one_line_error(bert):
    wide = replace(DLP.model.inputs[0].projector, width=64)
    model = replace(DLP.model, inputs=(replace(DLP.model.inputs[0], projector=wide),))
    objective = replace(IMAGE_TEXT.objective, bert=str(bert))
    stage = replace(IMAGE_TEXT, reference=None, objective=objective)
    with pytest.raises(SpecError, match=r"is \(.*32.*\), expected \(.*64"):
        build_init(model, stage, weights="pretrained")


def test_an_input_branch_without_a_qformer_is_refused():
    stage = replace(IMAGE_TEXT, reference=None)
    with pytest.raises(SpecError, match="has a projector 'mlp', must be "):
        build_init(system("digits").model.tiny(), stage, weights="random")


def test_mm_pt_has_all_weights_that_are_not_stage_only():
    names = [n for n, _ in build_init(DLP.model, IMAGE_TEXT, weights="random").named_parameters()]
    own = {name for name, _ in build_on_meta(DLP.model, DLP.pt).named_parameters()}
    apart = {name for name in names if is_stage_only(DLP.model, IMAGE_TEXT, name)}
    assert set(names) - apart <= own
    assert not apart & own
    branch = DLP.model.inputs[0]
    aware = replace(branch, projector=replace(branch.projector, instruction=True))
    kept = {
        name
        for name in names
        if not is_stage_only(replace(DLP.model, inputs=(aware,)), IMAGE_TEXT, name)
    }
    assert {name for name in apart if not name.startswith("heads.")} <= kept


def test_bytes_are_tokenized_between_cls_and_sep():
    tokenizer = build_sentence_tokenizer("", weights="pretrained")
    ids = tokenizer("ab [MASK]")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert tokenizer.mask_token_id not in ids
    assert len(ids) == len("ab [MASK]") + 2


def test_each_stage_has_the_tokenizer_of_its_sentences():
    lengths = {}
    for name, stage in {"sentences": SENTENCES, "pairs": IMAGE_TEXT, "pt": DLP.pt}.items():
        reader = sentence_reader(DLP.model, stage, weights="random")
        lengths[name] = (len(reader.ids("a" * 100)), reader.kind, reader.pairs)
    assert lengths == {
        "sentences": (64, "image", True),
        "pairs": (64, "image", True),
        "pt": (64, "image", False),
    }
    assert sentence_reader(DLP.model, DLP.sft, weights="random") is None
