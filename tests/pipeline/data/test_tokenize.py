"""Dialogues to ids and targets, with tokenizers of the published kinds."""

import pickle
import re
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import SampleError, Turn
from model import byte_tokenizers
from model.batch import IGNORED
from model.presets import system
from model.presets.templates import CHATML, OPT_QA, T5_QA, VICUNA_V1, X_INSTRUCTBLIP
from model.spec import ChatTemplate, ModelSpec, SpecError
from model.spec.generators import AudioLdm, StableDiffusion
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.text_encoding import TextEncoder, added_ids
from pipeline.data.tokenize import (
    SampleTokenizer,
    TokenizedSample,
    check_max_tokens,
    other_template,
)
from tests import published_tokenizers
from tests.published_processors import CHATML_TEMPLATE, LLAVA_TEMPLATE, llama_3

TINY = system("llava_1_5_7b").tiny().model
SMOLLM = published_tokenizers.chatml(bos_token="<|im_start|>")
LLAMAS = [published_tokenizers.llama(legacy=legacy) for legacy in (True, False)]
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DIALOGUE = ("<image>\nWhat is in the picture?", "A red cat.", "Which digit?", "7")


def turns(*texts: str) -> list[Turn]:
    return [
        Turn(role=("user", "assistant")[number % 2], text=text) for number, text in enumerate(texts)
    ]


def spec_with(template: ChatTemplate | None, model: ModelSpec = TINY) -> ModelSpec:
    return replace(model, backbone=replace(model.backbone, template=template))


def tokenizer_of(
    template: ChatTemplate | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: str = "chat",
    model: ModelSpec = TINY,
) -> SampleTokenizer:
    return SampleTokenizer(spec_with(template, model), tokenizer, prompt=prompt, max_tokens=500)


def tokens(found: TokenizedSample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens of a text, with one `<image>` for the positions of a picture."""
    names, last = [], ""
    for number, kind in zip(found.ids, found.kinds, strict=True):
        if not kind:
            names.append(tokenizer.convert_ids_to_tokens(number))
        elif kind != last:
            names.append(f"<{kind}>")
        last = kind
    return names


def targets(found: TokenizedSample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return tokenizer.convert_ids_to_tokens([one for one in found.labels if one != IGNORED])


@pytest.mark.parametrize("tokenizer", LLAMAS, ids=["legacy", "new"])
def test_a_dialogue_has_the_ids_of_the_whole_text(tokenizer: PreTrainedTokenizerBase) -> None:
    found = tokenizer_of(VICUNA_V1, tokenizer).tokenize("x", turns(*DIALOGUE), ["image"])
    whole = (
        f"{VICUNA_V1.system} USER: <image>\nWhat is in the picture? ASSISTANT: A red cat.</s>"
        "USER: Which digit? ASSISTANT: 7</s>"
    )
    assert tokens(found, tokenizer) == tokenizer.convert_ids_to_tokens(tokenizer.encode(whole))
    assert "".join(targets(found, tokenizer)) == "▁A▁red▁cat.</s>▁7</s>"


def test_a_line_break_after_a_role_or_an_end_is_no_target() -> None:
    tokenizer = published_tokenizers.chatml()
    found = tokenizer_of(CHATML, tokenizer).tokenize("x", turns(*DIALOGUE), ["image"])
    assert "".join(targets(found, tokenizer)) == "AĠredĠcat.<|im_end|>7<|im_end|>"
    assert tokenizer.decode(found.ids).count("<|im_start|>assistant\n") == 2


def test_only_a_tokenizer_that_adds_bos_begins_with_it() -> None:
    for tokenizer, template, first in (
        (SMOLLM, CHATML, ["<|im_start|>", "sy"]),
        (published_tokenizers.chatml(), CHATML, ["<|im_start|>", "sy"]),
        (LLAMAS[0], replace(VICUNA_V1, system=""), ["<s>", "▁"]),
        (llama_3(), None, ["<|begin_of_text|>", "<|start_header_id|>"]),
    ):
        if template is None:
            tokenizer.chat_template = (
                "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '\n' "
                "+ m['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|start_header_id|>assistant\n' }}{% endif %}"
            )
        found = tokenizer_of(template, tokenizer).tokenize("x", turns(*DIALOGUE), ["image"])
        assert tokens(found, tokenizer)[:2] == first
    assert added_ids(SMOLLM) == ([], [])
    assert added_ids(published_tokenizers.t5()) == ([], [1])


def test_pictures_may_come_before_bos() -> None:
    tokenizer = published_tokenizers.opt()
    found = tokenizer_of(OPT_QA, tokenizer).tokenize("x", turns(*DIALOGUE[:2]), ["image"])
    assert "".join(tokens(found, tokenizer)) == (
        "<image></s>Question:ĠWhatĠisĠinĠtheĠpicture?ĠAnswer:ĠAĠredĠcat.Ċ"
    )
    captions = tokenizer_of(OPT_QA, tokenizer, prompt="plain")
    found = captions.tokenize("x", turns(*DIALOGUE[:2]), ["image"])
    assert "".join(tokens(found, tokenizer)) == "<image></s>AĠredĠcat.</s>"


def test_a_template_may_write_bos_once_more() -> None:
    model = system("x_instructblip").tiny().model
    found = tokenizer_of(X_INSTRUCTBLIP, LLAMAS[1], model=model)
    names = tokens(found.tokenize("x", turns("<image>\n7?", "7"), ["image"]), LLAMAS[1])
    assert "".join(names) == "<s>▁image:▁<image><s>7?▁7</s>"


def test_a_decoder_answers_the_last_turn() -> None:
    tokenizer, model = published_tokenizers.t5(), system("blip_2_flan_t5_xxl").tiny().model
    found = tokenizer_of(T5_QA, tokenizer, model=model).tokenize(
        "x", turns(*DIALOGUE[:2]), ["image"]
    )
    assert found.answer_ids == tokenizer.encode("A red cat.")
    text = [number for number, kind in zip(found.ids, found.kinds, strict=True) if not kind]
    assert text == tokenizer.encode("Question: What is in the picture? Short answer:")
    assert found.kinds[0] == "image"


def test_special_tokens_of_a_text_are_text() -> None:
    tokenizer = published_tokenizers.chatml()
    text = r"say <|im_end|> and \<image> now"
    found = tokenizer_of(CHATML, tokenizer).tokenize("x", turns(text, "<|im_start|>"), [])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found.ids.count(end) == 3
    assert "say <|im_end|> and <image> now" in tokenizer.decode(found.ids)
    assert tokenizer.convert_tokens_to_ids("<image>") not in found.ids
    encoder = pickle.loads(pickle.dumps(TextEncoder(tokenizer)))
    assert all(number != end for number, *_ in encoder.encode("<|im_end|>"))


def test_without_an_end_in_the_template_the_tokenizer_s_is_the_last_target() -> None:
    tokenizer = LLAMAS[1]
    tokenizer.chat_template = LLAVA_TEMPLATE
    found = tokenizer_of(None, tokenizer)
    assert found.stop_ids == (tokenizer.eos_token_id,)
    sample = found.tokenize("x", turns(*DIALOGUE), ["image"])
    assert sample.ids[-1] == sample.labels[-1] == tokenizer.eos_token_id
    assert sample.ids.count(tokenizer.eos_token_id) == 1
    tokenizer.chat_template = None
    with pytest.raises(SpecError, match=r"none, and .* has no chat template"):
        tokenizer_of(None, tokenizer)


def test_a_template_that_is_not_the_checkpoint_s_is_reported() -> None:
    tokenizer = published_tokenizers.chatml()
    tokenizer.chat_template = CHATML_TEMPLATE
    assert other_template(spec_with(None), tokenizer) is None
    assert other_template(spec_with(replace(CHATML, system="")), tokenizer) is None
    line = other_template(spec_with(VICUNA_V1), tokenizer)
    assert line is not None
    assert "there '<|im_start|>user\\nWhere?" in line
    assert f"here {VICUNA_V1.system[:10]!r}"[:-1] in line
    assert "\n" not in line


def test_what_ends_an_answer() -> None:
    tokenizer = published_tokenizers.chatml()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = tokenizer_of(CHATML, tokenizer)
    assert (found.stop_ids, found.stop_text) == ((end,), None)
    minigpt = system("minigpt_4").model.backbone.template
    found = tokenizer_of(minigpt, LLAMAS[0])
    assert (found.stop_ids, found.stop_text) == ((LLAMAS[0].eos_token_id,), "###")
    opt = published_tokenizers.opt()
    found = tokenizer_of(OPT_QA, opt)
    assert found.stop_ids == (opt.convert_tokens_to_ids("Ċ"), opt.eos_token_id)


def test_a_tokenizer_needs_neither_bos_nor_eos_nor_padding() -> None:
    tokenizer = published_tokenizers.gpt2(
        ["<nothing>"], bos_token=None, eos_token=None, unk_token=None
    )
    assert not tokenizer.all_special_tokens
    found = tokenizer_of(replace(VICUNA_V1, system=""), tokenizer)
    assert found.stop_ids == ()
    sample = found.tokenize("x", turns("Sure?", "Yes"), [])
    assert tokenizer.decode(sample.ids) == "USER: Sure? ASSISTANT: Yes"
    empty = tokenizer_of(ChatTemplate(user="{text}", assistant=" {text}"), tokenizer)
    assert len(empty.tokenize_prompt("x", turns(""), []).ids) == 1


def test_more_tokens_than_the_backbone_has_positions_are_one_line() -> None:
    tokenizer = byte_tokenizers.plain()
    with pytest.raises(SpecError, match="max_tokens: 1025, but the backbone has 1024 positions"):
        check_max_tokens(TINY, 1025)
    found = tokenizer_of(replace(VICUNA_V1, system=""), tokenizer)
    found.tokenize_prompt("x", turns("a" * 990), [], max_new_tokens=10)
    with pytest.raises(SampleError, match="sample x: prompt and answer have up to 1025 tokens"):
        found.tokenize_prompt("x", turns("a" * 990), [], max_new_tokens=17)
    t5 = system("blip_2_flan_t5_xxl").model  # has relative positions
    check_max_tokens(t5, 513)


def test_media_before_their_turn_keep_the_order_of_the_sample() -> None:
    tokenizer = published_tokenizers.llama(legacy=False)
    tokenizer.chat_template = LLAVA_TEMPLATE.replace(
        "{% if message['role'] != 'assistant' %}",
        "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
        "{{ '<video>' }}{% endfor %}{% if message['role'] != 'assistant' %}",
    )
    model = system("pandagpt").tiny().model
    model = replace(model, inputs=model.inputs[:2])
    found = tokenizer_of(None, tokenizer, model=model).tokenize(
        "x", turns("<video> and <image> and <image>?", "Yes"), ["video", "image", "image"]
    )
    assert found.branch_kinds == ["video", "image", "image"]
    first = [place for _, place in found.media_starts]
    assert first[1] < first[2] < first[0]
    assert [found.kinds[place] for place in first] == found.branch_kinds


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("template", [VICUNA_V1, "hides answers", "marks answers", "plain"])
def test_media_of_earlier_answers_are_signal_tokens_in_prompts_too(
    template: ChatTemplate | str, modality: str
) -> None:
    """A prompt has the tokens of training, of which none is a target."""
    generator = AudioLdm() if modality == "audio" else StableDiffusion()
    branch = OutputBranchSpec(modality=modality, signals=3, generator=generator)
    tokenizer = published_tokenizers.chatml(bos_token="<|im_start|>")
    tokenizer.chat_template = (
        re.sub("{% (end)?generation %}", "", MARKED_TEMPLATE)
        if template == "hides answers"
        else MARKED_TEMPLATE
    )
    model = spec_with(None if isinstance(template, str) else template)
    one = SampleTokenizer(
        replace(model, outputs=(branch,)),
        tokenizer,
        prompt="plain" if template == "plain" else "chat",
        max_tokens=2000,
        outputs=(branch,),
    )
    generated = f"<{modality}>"
    dialogue = turns("Draw it.", f"So? {generated} Or", "<image>\nSure?", "Yes.", "Why?", "So.")
    whole = one.tokenize("x", dialogue, [modality, "image"])
    prompt = one.tokenize_prompt("x", dialogue[:-1], [modality, "image"])
    length = len(prompt.ids)
    assert 0 < length < len(whole.ids)
    assert (prompt.ids, prompt.kinds) == (whole.ids[:length], whole.kinds[:length])
    assert prompt.kinds.count(f"to_{modality}") == 3
    assert prompt.branch_kinds == whole.branch_kinds == [f"to_{modality}", "image"]
    assert prompt.media_starts == whole.media_starts
    assert set(prompt.labels) == {IGNORED}
    assert whole.num_targets > 3


def test_a_text_before_a_medium_may_look_like_its_placeholder() -> None:
    """Flamingo writes `<image>` before each picture, which cross-attention reads."""
    model = system("flamingo_3b").tiny().model
    found = tokenizer_of(model.backbone.template, byte_tokenizers.plain(), model=model)
    sample = found.tokenize("x", turns("<image>\n7?", "7"), ["image"])
    text = byte_tokenizers.plain().decode(sample.ids)
    assert text == "<s><image>Question: 7? Answer: 7</s>"
    assert sample.media_starts == [(1, 1 + len("<image>"))]
