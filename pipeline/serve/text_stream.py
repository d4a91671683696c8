"""The text of an answer while its tokens come: what is complete is passed on at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from etl.storage.schema import escape

_INCOMPLETE = "\ufffd"
"""How a tokenizer decodes some of the bytes of a character."""


class TextStream:
    r"""Turns the ids of one answer into its text, piece by piece, up to a text that ends it.

    The pieces together are what `pipeline ask` prints: without whitespace around them.

    Args:
        tokenizer: the backbone's.
        stops: texts of which any ends the answer, and is not part of it.
        placeholders: first signal token of each kind of generated media → its placeholder. With
            any, a placeholder that the model wrote as text is escaped (`\<image>`).

    Attributes:
        text: what was passed on so far.
        stopped: whether one of `stops` has come.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str] = (),
        placeholders: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._placeholders = dict(placeholders or {})
        # Tokens are decoded after those before them: alone, a tokenizer drops a first space.
        self._window: list[int] = []
        self._decoded = 0
        self._pending = ""
        self.text = ""
        self.stopped = False

    def put(self, number: int) -> str:
        """Take the next id; returns the new text, if any is complete."""
        if self.stopped:
            return ""
        if number in self._placeholders:
            piece = self._words(final=True) + self._placeholders[number]
            self._window, self._decoded = [], 0
            return self._pass_on(piece)
        self._window.append(number)
        return self._pass_on(self._words())

    def end(self) -> str:
        """Return the rest of the text."""
        if self.stopped:
            return ""
        return self._pass_on(self._words(final=True), final=True)

    def _words(self, *, final: bool = False) -> str:
        """Return the text of the window's new tokens, once it is of whole characters."""
        before, after = self._decode(self._window[: self._decoded]), self._decode(self._window)
        new = after[len(before) :]
        if not new or (after.endswith(_INCOMPLETE) and not final):
            return ""
        self._window = self._window[self._decoded :]
        self._decoded = len(self._window)
        return escape(new) if self._placeholders else new

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _pass_on(self, piece: str, *, final: bool = False) -> str:
        """Return of the pending text what neither ends the answer nor may turn out to."""
        self._pending += piece
        if not self.text:
            self._pending = self._pending.lstrip()
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped, final = True, True
            self._pending = self._pending[: min(found)]
        kept = 0 if final else max(self._begun(), default=0)
        ready = self._pending[: len(self._pending) - kept]
        ready = ready.rstrip()
        self._pending = self._pending[len(ready) :]
        self.text += ready
        return ready

    def _begun(self) -> list[int]:
        """Return, for each text that would end the answer, how much of it the text ends with."""
        return [
            next((n for n in range(len(stop) - 1, 0, -1) if self._pending.endswith(stop[:n])), 0)
            for stop in self._stops
        ]
