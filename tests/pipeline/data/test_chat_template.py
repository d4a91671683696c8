"""Dialogues in the chat templates of presets and of checkpoints.

`python -m tests.pipeline.data.test_chat_template` rewrites the golden file of the presets' formats.
"""

from pathlib import Path

import pytest

from etl.storage.schema import Turn
from model import byte_tokenizers
from model.presets import PRESETS, system
from model.presets.templates import (
    CHATGLM_3,
    CHATML,
    COGVLM,
    LLAMA_2_CHAT,
    MINIGPT_4,
    VICUNA_V0,
    VICUNA_V1,
)
from model.spec import ChatTemplate, SpecError
from pipeline.data.chat_template import (
    PLAIN,
    ChatRenderer,
    Rendered,
    RenderError,
    assistant_text,
    plain_turns,
)
from pipeline.data.tokenize import chat_renderer
from tests.published_processors import CHATML_TEMPLATE, LLAMA_3_TEMPLATE, LLAVA_TEMPLATE

GOLDEN = Path(__file__).parent / "golden" / "prompts.txt"
TOKENIZER = byte_tokenizers.plain()


_VICUNA = "lm-sys/FastChat, fastchat/conversation.py, vicuna_v1.1"
_MINIGPT = "Vision-CAIR/MiniGPT-4, train_configs/minigpt4_stage2_finetune.yaml and conversation.py"
_BLIP = "Li et al. 2023, section 4.2; salesforce/LAVIS, lavis/models/blip2_models"
_DIGITS = "etl/digits/checkpoints/language.py"
SOURCES = {
    **dict.fromkeys((name for name in PRESETS if name.startswith("digits")), _DIGITS),
    **dict.fromkeys(
        ("flamingo_3b", "flamingo_9b", "flamingo_80b"), "Alayrac et al. 2022, figure 8"
    ),
    **dict.fromkeys(("blip_2", "blip_2_flan_t5_xxl"), _BLIP),
    "llava": "haotian-liu/LLaVA, llava/train/train.py, preprocess",
    "minigpt_4": _MINIGPT,
    "mplug_owl": "X-PLUG/mPLUG-Owl, README.md and pipeline/data_utils/xgpt3_dataset.py",
    "x_llm": "phellonchen/X-LLM, xllm/datasets/datasets/vsd_instruction.py",
    "videochat": "OpenGVLab/Ask-Anything, video_chat/dataset/it_dataset.py, process_qa",
    "instructblip": "salesforce/LAVIS, blip2_vicuna_instruct.py",
    "instructblip_flan_t5_xl": "salesforce/LAVIS, blip2_t5_instruct.py",
    "pandagpt": "yxuansu/PandaGPT, code/model/openllama.py, build_one_instance",
    "pali_x": "not published; the question after the picture (Chen et al. 2023)",
    "video_llama": "DAMO-NLP-SG/Video-LLaMA, video_instruct_dataset.py, preprocess",
    "video_chatgpt": "mbzuai-oryx/Video-ChatGPT, video_conversation.py, conv_video_chatgpt_v1",
    "shikra": "shikras/shikra, mllm/conversation/base_conversation.py, vicuna_v1.1",
    "dlp": f"as BLIP-2: {_BLIP}",
    "bubogpt": "magic-research/bubogpt, train_configs/mmgpt4_stage2_mm.yaml",
    "chatspot": f"not published; Vicuna's: {_VICUNA}",
    "qwen_vl": "QwenLM/Qwen-VL, finetune.py, preprocess",
    "next_gpt": "NExT-GPT/NExT-GPT, NExT-GPT-Lagacy/code/model/common/utils.py",
    "minigpt_5": f"eric-ai-lab/MiniGPT-5, config/minigpt4.yaml; {_MINIGPT}",
    **dict.fromkeys(
        ("llava_1_5_7b", "llava_1_5_13b"), "haotian-liu/LLaVA, conversation.py, conv_vicuna_v1"
    ),
    "minigpt_v2": "Vision-CAIR/MiniGPT-4, conversation.py, CONV_VISION_minigptv2",
    "cogvlm": "THUDM/CogVLM, utils/utils/language.py, chat_history_to_prompt",
    "dress": f"not published; Vicuna's: {_VICUNA}",
    "x_instructblip": "salesforce/LAVIS, blip2_vicuna_xinstruct.py",
    "codi_2": "microsoft/i-Code, CoDi-2/core/models/mmllama/openllama.py, build_one_instance",
    **dict.fromkeys(("vila_7b", "vila_13b"), "NVlabs/VILA, llava/conversation.py, conv_vicuna_v1"),
}
"""Preset → where its format is published, as read on 2026-11-29."""


def turns(*texts: str, system: str | None = None, first: str = "user") -> list[Turn]:
    """Return turns of both speakers in alternation."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    dialogue = [Turn(role=roles[number % 2], text=text) for number, text in enumerate(texts)]
    return dialogue if system is None else [Turn(role="system", text=system), *dialogue]


def renderer(template: ChatTemplate | str) -> ChatRenderer:
    return ChatRenderer(template, TOKENIZER, kinds=["image"], source="FOLDER")


def marked(rendered: Rendered) -> str:
    """Return a rendered text with its answers in brackets."""
    text = rendered.text
    for start, end in reversed(rendered.answers):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text


def render(template: ChatTemplate | str, dialogue: list[Turn]) -> str:
    return marked(renderer(template).render(dialogue))


def golden() -> str:
    """Return a dialogue in the format of each preset, without texts around its media."""
    sections = []
    for name in PRESETS:
        model = system(name).model
        kind = model.inputs[0].modality
        dialogue = turns(f"<{kind}>\nWhat is it?", "A cat.", "Sure?", "Yes.")
        found = chat_renderer(model, TOKENIZER)
        prompt = found.render_prompt(dialogue[:3]).text
        assert found.render(dialogue).text.startswith(prompt)
        sections.append(f"=== {name}: {SOURCES[name]}\n{marked(found.render(dialogue))}\n")
    return "".join(sections)


def test_the_formats_of_all_presets_equal_the_golden_file() -> None:
    assert golden() == GOLDEN.read_text()


def test_a_system_prompt_may_be_inside_the_first_turn() -> None:
    assert render(LLAMA_2_CHAT, turns("a?", "b", "c?", "d", system="Be brief.")) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\na? [/INST]⟦ b </s>⟧<s>[INST] c? [/INST]⟦ d </s>⟧"
    )
    with pytest.raises(RenderError, match="belongs to a first turn of the user"):
        render(LLAMA_2_CHAT, turns("b", "c?", "d", system="Be brief.", first="assistant"))


def test_a_sample_s_own_system_prompt_replaces_the_template_s_and_keeps_its_blank() -> None:
    assert render(VICUNA_V1, turns("a?", "b", system="Rhyme.")) == (
        "Rhyme. USER: a? ASSISTANT:⟦ b</s>⟧"
    )
    assert render(VICUNA_V1, turns("a?", "b", system="")) == "USER: a? ASSISTANT:⟦ b</s>⟧"


def test_a_system_turn_in_mid_dialogue_is_refused() -> None:
    dialogue = turns("a?", "b") + turns("c?", "d", system="Be brief.")
    with pytest.raises(RenderError, match="refuses it: it has a system turn that is not the first"):
        render(VICUNA_V1, dialogue)


def test_a_dialogue_may_begin_with_the_assistant() -> None:
    assert render(VICUNA_V1, turns("Hello.", "a?", "b", system="", first="assistant")) == (
        "ASSISTANT:⟦ Hello.</s>⟧USER: a? ASSISTANT:⟦ b</s>⟧"
    )


def test_an_end_that_begins_the_next_turn_is_written_once() -> None:
    assert render(MINIGPT_4, turns("<image>\na?", "b", "c?", "d")) == (
        "###Human: <image> a? ###Assistant:⟦ b###⟧Human: c? ###Assistant:⟦ d###⟧"
    )
    assert render(VICUNA_V0, turns("a?", "b", "c?", "d", system="")) == (
        "### Human: a?\n### Assistant:⟦ b\n###⟧ Human: c?\n### Assistant:⟦ d\n###⟧"
    )
    assert render(CHATGLM_3, turns("a?", "b", "c?", "d")) == (
        "<|user|>\n a?<|assistant|>\n⟦ b<|user|>⟧\n c?<|assistant|>\n⟦ d<|user|>⟧"
    )
    prompt = renderer(MINIGPT_4).render_prompt(turns("a?", "b", "c?")).text
    assert prompt == "###Human: a? ###Assistant: b###Human: c? ###Assistant:"


def test_an_end_may_follow_the_last_answer_only() -> None:
    assert render(COGVLM, turns("<image>\na?", "b", "c?", "d")) == (
        "<image> [INST] a? [/INST]⟦ b⟧ [INST] c? [/INST]⟦ d</s>⟧"
    )


def test_an_empty_answer_is_as_in_the_published_format() -> None:
    empty = turns("a?", "", "c?", "d", system="")
    assert render(VICUNA_V1, empty) == "USER: a? ASSISTANT:USER: c? ASSISTANT:⟦ d</s>⟧"
    assert render(CHATML, empty) == (
        "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|>⟧\n"
        "<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n⟦d<|im_end|>⟧"
    )


def test_rounds_may_be_numbered_from_one_and_from_zero() -> None:
    numbered = ChatTemplate(user="[{round}/{round0}] {text}\n", assistant="A: {text}", after="\n\n")
    assert render(numbered, turns("a?", "b", "c?", "d")) == (
        "[1/0] a?\nA:⟦ b</s>⟧\n\n[2/1] c?\nA:⟦ d</s>⟧"
    )


def test_media_stay_in_their_places_unless_they_come_first() -> None:
    inline = "Compare <image> and <image>."
    assert render(VICUNA_V1, turns(inline, "b", system="")) == (
        "USER: Compare <image> and <image>. ASSISTANT:⟦ b</s>⟧"
    )
    assert render(VICUNA_V1, turns(f"<image><image>\n{inline}", "b", system="")) == (
        "USER: <image>\n<image>\nCompare <image> and <image>. ASSISTANT:⟦ b</s>⟧"
    )


@pytest.mark.parametrize("template", [VICUNA_V1, LLAVA_TEMPLATE, LLAMA_3_TEMPLATE])
def test_special_tokens_and_placeholders_of_a_text_are_literal(
    template: ChatTemplate | str,
) -> None:
    dialogue = turns(r"<image> Is </s> an end, and \<image> a picture?", "b <s>", system="x")
    for rendered in (
        renderer(template).render(dialogue),
        renderer(template).render_prompt([*dialogue, Turn(role="user", text="c?")]),
    ):
        found = {rendered.text[start:][:3] for start in rendered.literal}
        assert found == {"</s", "<im", "<s>"}
        assert len(rendered.literal) == 3
        assert rendered.text.count("<image>") == 2
        assert not any("\ufdd0" <= letter <= "\ufdef" for letter in rendered.text)
    with pytest.raises(RenderError, match="noncharacter"):
        renderer(template).render(turns("\ufdd0", "b"))


def test_a_checkpoint_s_template_may_take_lists_of_parts() -> None:
    assert render(LLAVA_TEMPLATE, turns("<image>\nWhat?", "A cat.", "Sure?", "Yes.")) == (
        "USER: <image>\nWhat? ASSISTANT: ⟦A cat. ⟧USER: Sure? ASSISTANT: ⟦Yes. ⟧"
    )


def test_answers_are_found_by_rendering_the_prompts_for_them() -> None:
    assert render(CHATML_TEMPLATE, turns("<image>\nWhat?", "A cat.", "Sure?", "")) == (
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n⟦A cat.⟧<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦⟧<|im_end|>\n"
    )  # the byte tokenizer has no <|im_end|>
    thinking = CHATML_TEMPLATE.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if loop.last and message['role'] == 'assistant' %}<think>{% endif %}",
    )
    assert render(thinking, turns("a?", "b", "c?", "d")).endswith(
        "assistant\n⟦b⟧<|im_end|>\n<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>d⟧<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            CHATML_TEMPLATE.replace("add_generation_prompt", "add_generation_prompt and false"),
            "has no prompt for an answer",
        ),
        (
            CHATML_TEMPLATE.replace("assistant\n' }}{% endif", "assistant\nSure: ' }}{% endif"),
            "hides where an answer starts: the prompt for it ends with",
        ),
        (
            LLAMA_3_TEMPLATE.replace("messages %}{% for", "messages[-1:] %}{% for"),
            "leaves out a turn of the user",
        ),
        ("{{ messages[0].content.missing() }}", "refuses it: 'list object' has no attribute"),
        ("{% for m in messages %}", "refuses it: Unexpected end of template"),
    ],
)
def test_a_template_that_hides_answers_is_refused_with_the_reason(
    template: str, reason: str
) -> None:
    with pytest.raises(SpecError, match="the chat template of FOLDER cannot be used") as caught:
        renderer(template)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plain_prompt_keeps_placeholders_and_answers() -> None:
    dialogue = plain_turns(turns("<image>\nDescribe it.", "a red 3.", system="Be brief."))
    assert render(PLAIN, dialogue) == "<image>⟦a red 3.</s>⟧"
    asked = turns("a red 3", "<image>")
    assert render(PLAIN, plain_turns(asked, ["<image>"])) == "a red 3⟦<image></s>⟧"


def test_the_assistant_s_text_reads_without_escapes() -> None:
    assert assistant_text(turns("<image>", r"a <image> is \<image>")) == "a is <image>"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden())
