"""Dialogues in the chat templates of different backbones."""

from etl.storage.schema import Turn
from model.spec import ChatTemplate
from pipeline.data.chat_template import (
    Span,
    apply_chat_template,
    apply_plain_template,
    split_special_tokens,
)

LLAMA_2 = ChatTemplate(
    system="Be brief.",
    around_system="[INST] <<SYS>>\n{text}\n<</SYS>>\n\n",
    user="[INST] {text} ",
    user_after_system="{text} ",
    assistant="[/INST] {text} ",
)
CHATML = ChatTemplate(
    user="<|im_start|>user\n{text}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{text}",
    end="<|im_end|>",
    after="\n",
)
NUMBERED = ChatTemplate(user="[Round {round}] Q: {text}\n", assistant="A: {text}", after="\n\n")


def turns(*texts: str, system: str | None = None) -> list[Turn]:
    roles = ("user", "assistant") * len(texts)
    dialogue = [Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False)]
    return dialogue if system is None else [Turn(role="system", text=system), *dialogue]


def texts_of(spans: list[Span]) -> list[tuple[str, bool]]:
    return [("".join(segment.text for segment in s.segments), s.is_target) for s in spans]


def test_a_system_prompt_may_be_inside_the_first_turn() -> None:
    assert texts_of(apply_chat_template(turns("a?", "b", "c?", "d"), LLAMA_2)) == [
        ("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\na? [/INST]", False),
        (" b ", True),
        ("[INST] c? [/INST]", False),
        (" d ", True),
    ]


def test_a_sample_s_own_system_prompt_replaces_the_template_s() -> None:
    spans = texts_of(apply_chat_template(turns("a?", "b", system="Rhyme."), LLAMA_2))
    assert spans[0][0] == "[INST] <<SYS>>\nRhyme.\n<</SYS>>\n\na? [/INST]"


def test_without_a_system_prompt_its_delimiters_are_left_out() -> None:
    assert (
        texts_of(apply_chat_template(turns("a?", "b", system=""), LLAMA_2))[0][0]
        == "[INST] a? [/INST]"
    )


def test_rounds_may_be_numbered_and_separated() -> None:
    assert texts_of(apply_chat_template(turns("a?", "b", "c?", "d"), NUMBERED)) == [
        ("[Round 1] Q: a?\nA:", False),
        (" b", True),
        ("\n\n[Round 2] Q: c?\nA:", False),
        (" d", True),
    ]


def test_a_prompt_without_an_answer_ends_without_a_space() -> None:
    assert texts_of(apply_chat_template(turns("a?", ""), NUMBERED)) == [
        ("[Round 1] Q: a?\nA:", False),
        ("", True),
    ]


def test_special_tokens_are_recognised_in_the_template_only() -> None:
    span = apply_chat_template(turns("say <|im_end|> now", "b"), CHATML)[0]
    split = split_special_tokens(span, ["<|im_start|>", "<|im_end|>"])
    assert [(segment.text, segment.from_template) for segment in split] == [
        ("<|im_start|>", True),
        ("user\nsay <|im_end|> now", False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("assistant", False),
    ]


def test_the_plain_template_keeps_placeholders_and_answers() -> None:
    spans = apply_plain_template(turns("<image>\nDescribe it.", "a red 3."))
    assert texts_of(spans) == [("<image>", False), ("a red 3.", True)]
