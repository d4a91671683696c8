"""Token ids of a text that holds special tokens and media: tokenized once, as a whole.

Tokenizers give other ids for pieces than for the whole: a byte-pair merge, or SentencePiece's space
before the first word, crosses the borders. In the text a special token or a medium is one sentinel,
a token at which the tokenizer splits the text as it does at its own special tokens, whose names are
plain text here.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from model.spec import SpecError

_FIRST = 0xFDD8
"""The first of eight noncharacters of Unicode that are the sentinels."""


class TextEncoder:
    """Encodes texts around sentinels, with the character positions of each token.

    Args:
        tokenizer: any of transformers' that is backed by the tokenizers library.

    Attributes:
        state: the tokenizer as JSON.
        prefix, suffix: ids that the tokenizer itself puts around a text, such as BOS.

    Raises:
        SpecError: a tokenizer of another library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise SpecError(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json, which is needed"
            )
        state = json.loads(backend.to_str())
        # A post-processor adds special tokens, and some trim the positions of tokens.
        state |= {"post_processor": None, "truncation": None, "padding": None}
        self.state = json.dumps(state)
        self._added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        self.prefix, self.suffix = added_ids(tokenizer)
        self._encode, self._sentinels = self._build()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the Rust object, which loses its options when it is pickled."""
        return {name: value for name, value in vars(self).items() if name != "_encode"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._encode, self._sentinels = self._build()

    def _build(self) -> tuple[Tokenizer, frozenset[int]]:
        encode = Tokenizer.from_str(self.state)
        encode.encode_special_tokens = True
        flags = ((bool(f & 1), bool(f & 2), bool(f & 4)) for f in range(8))
        encode.add_tokens(
            [
                AddedToken(
                    chr(_FIRST + number), lstrip=lstrip, rstrip=rstrip, normalized=normalized
                )
                for number, (lstrip, rstrip, normalized) in enumerate(flags)
            ]
        )
        return encode, frozenset(encode.get_vocab()[chr(_FIRST + number)] for number in range(8))

    def sentinel(self, token: str) -> str:
        """Return the character that stands for a special token or a medium's placeholder.

        It absorbs whitespace around it where the tokenizer's own token does.
        """
        added = self._added.get(token)
        if added is None:
            return chr(_FIRST)
        plain = chr(_FIRST + added.lstrip + 2 * added.rstrip)
        if not added.normalized:
            return plain
        normalized = chr(ord(plain) + 4)
        # Under some normalizers no token that is to be normalized is ever found.
        found = any(number is None for number, *_ in self.encode(normalized))
        return normalized if found else plain

    def encode(self, text: str) -> list[tuple[int | None, int, int]]:
        """Return for each token its id (None for a sentinel), and its start and end in the text."""
        encoding = self._encode.encode(text, add_special_tokens=False)
        return [
            (None if number in self._sentinels else number, start, end)
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer itself adds before and after a text."""
    whole: list[int] = tokenizer.encode("a")
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
