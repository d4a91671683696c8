"""Questions for GRPO: prompts that the model itself answers, and what judges the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from etl.storage.schema import Sample, SampleError, Turn
from model.spec import SpecError
from model.spec.output_branches import OutputBranchSpec
from model.spec.rlhf import Grpo
from pipeline.data.encode import Example, SampleEncoder, without_answer
from pipeline.data.preferences import Role
from pipeline.data.tokenize import SampleLength, SampleTokenizer, media_of


@dataclass(frozen=True, kw_only=True)
class RolloutPrompt(Example):
    """A prompt; no token of it is a target.

    Args:
        sample: with the true answer as its last turn.
        position: of the sample in the run's stream, which seeds its answers.
    """

    sample: Sample
    position: int


class RolloutTokenizer:
    """Counts the tokens of prompts and their answers, without reading media.

    Args:
        tokenizer: of one dialogue.
        objective: how many answers of what length there are.
        outputs: the output branches, whose media answers may hold.
    """

    columns: tuple[str, ...] = SampleTokenizer.columns

    def __init__(
        self,
        tokenizer: SampleTokenizer,
        objective: Grpo,
        outputs: Sequence[OutputBranchSpec] = (),
    ) -> None:
        self._tokenizer, self._objective = tokenizer, objective
        self._generated = [branch.modality for branch in outputs]
        # A medium that begins within the limit is completed.
        more = max((branch.signals for branch in outputs), default=1) - 1
        self._longest = objective.max_new_tokens + more

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens of which any ends an answer.

        Raises:
            SpecError: in the chat template, a text of several tokens does.
        """
        if self._tokenizer.stop_text:
            raise SpecError(
                f"rlhf: grpo: answers end with {self._tokenizer.stop_text!r}, want one token"
            )
        return self._tokenizer.stop_ids

    @property
    def key(self) -> str:
        """The sha256 of all that determines the lengths."""
        own = [self._tokenizer.key, "grpo", self._objective.group, self._longest]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def length(self, sample_id: str, turns: Sequence[Turn], kinds: Sequence[str]) -> SampleLength:
        """Return the greatest length of all answers together, with the prompt before each."""
        group = self._objective.group
        try:
            if not turns or turns[-1].role != "assistant":
                raise SampleError(f"sample {sample_id}: the last turn is not the assistant's")
            held = media_of(turns[-1:])
            for kind in held:
                if kind not in self._generated:
                    able = ", ".join(self._generated) or "text alone"
                    raise SampleError(
                        f"sample {sample_id}: its answer holds {kind}, the model generates {able}"
                    )
            prompt = self._tokenizer.tokenize_prompt(
                sample_id,
                turns[:-1],
                kinds[: len(kinds) - len(held)],
                max_new_tokens=self._longest,
            )
        except SampleError as error:
            return SampleLength(tokens=0, targets=0, skip_reason=str(error))
        return SampleLength(
            tokens=group * (len(prompt.ids) + self._longest),
            targets=group * self._longest,
            branch_kinds=tuple(prompt.branch_kinds),
        )


class RolloutEncoder:
    """Encodes the prompts of samples.

    Args:
        encoder: of one dialogue; it decodes the media.
        objective: limits the length of answers.
    """

    seq2seq = False
    dummy_roles = (int(Role.NONE),)

    def __init__(self, encoder: SampleEncoder, objective: Grpo) -> None:
        self._encoder, self._limit = encoder, objective.max_new_tokens

    def tokenize(self, _: Sample) -> None:
        """Do nothing: `encode` tokenizes."""

    def encode(self, sample: Sample, _: None = None, *, position: int = 0) -> RolloutPrompt:
        """Encode everything before the last answer; raises SampleError as `encode_prompt` does."""
        example = self._encoder.encode_prompt(without_answer(sample), max_new_tokens=self._limit)
        own = {field.name: getattr(example, field.name) for field in fields(Example)}
        return RolloutPrompt(**own | {"roles": self.dummy_roles}, sample=sample, position=position)
