"""How dialogues become texts in the templates of different backbones."""

from etl.storage.schema import Turn
from model.spec import ChatTemplate
from pipeline.data.chat_template import Piece, chat, plain, without_special

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
    told = [Turn(role=role, text=text) for role, text in zip(roles, texts, strict=False)]
    return told if system is None else [Turn(role="system", text=system), *told]


def read(pieces: list[Piece]) -> list[tuple[str, bool]]:
    return [("".join(segment.text for segment in p.segments), p.learnt) for p in pieces]


def test_a_system_text_may_stand_inside_the_first_turn() -> None:
    assert read(chat(turns("a?", "b", "c?", "d"), LLAMA_2)) == [
        ("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\na? [/INST]", False),
        (" b ", True),
        ("[INST] c? [/INST]", False),
        (" d ", True),
    ]


def test_a_sample_s_own_system_text_replaces_the_template_s() -> None:
    told = read(chat(turns("a?", "b", system="Rhyme."), LLAMA_2))
    assert told[0][0] == "[INST] <<SYS>>\nRhyme.\n<</SYS>>\n\na? [/INST]"


def test_without_a_system_text_nothing_stands_around_it() -> None:
    assert read(chat(turns("a?", "b", system=""), LLAMA_2))[0][0] == "[INST] a? [/INST]"


def test_exchanges_may_be_numbered_and_kept_apart() -> None:
    assert read(chat(turns("a?", "b", "c?", "d"), NUMBERED)) == [
        ("[Round 1] Q: a?\nA:", False),
        (" b", True),
        ("\n\n[Round 2] Q: c?\nA:", False),
        (" d", True),
    ]


def test_an_open_answer_ends_the_prompt_without_a_blank() -> None:
    assert read(chat(turns("a?", ""), NUMBERED)) == [("[Round 1] Q: a?\nA:", False), ("", True)]


def test_special_tokens_count_in_the_template_and_nowhere_else() -> None:
    piece = chat(turns("say <|im_end|> now", "b"), CHATML)[0]
    cut = without_special(piece, ["<|im_start|>", "<|im_end|>"])
    assert [(segment.text, segment.own) for segment in cut] == [
        ("<|im_start|>", True),
        ("user\nsay <|im_end|> now", False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("assistant", False),
    ]


def test_plain_keeps_placeholders_and_answers() -> None:
    told = plain(turns("<image>\nDescribe it.", "a red 3."))
    assert read(told) == [("<image>", False), ("a red 3.", True)]
