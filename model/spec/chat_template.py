"""How the turns of a dialogue become one text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How the turns of a dialogue become one text; `{text}` is a turn's text.

    `{round}` in a user's turn is the number of the exchange, counted from 1. A template's own texts
    may contain special tokens by name (`<|im_start|>`), which the tokenizer parses; in a turn's
    text they are plain text.

    Args:
        system: the default system prompt; a sample's own replaces it.
        around_system: template of a system prompt that is not empty.
        user, assistant: templates of their turns.
        user_after_system: template of the first user's turn after a system prompt, if different:
            LLaMA-2 puts the system prompt inside the first turn.
        end: end of an answer, a target like the answer itself; None for the tokenizer's
            end-of-sequence token.
        after: text between the end of an answer and the next user's turn.
    """

    system: str = ""
    around_system: str = "{text}"
    user: str = "USER: {text} "
    user_after_system: str | None = None
    assistant: str = "ASSISTANT: {text}"
    end: str | None = None
    after: str = ""
