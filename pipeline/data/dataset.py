"""The data set: sample references to encoded examples; unusable samples are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError
from etl.storage.shards import ShardSet
from pipeline.data.encode import Example, SampleEncoder
from pipeline.data.preferences import PreferenceEncoder
from pipeline.data.rollout_prompts import RolloutEncoder
from pipeline.data.sampler import SampleRef
from pipeline.data.worker_status import WorkerStatus


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A skipped sample and why; a line of `bad_samples.jsonl`."""

    position: int
    row: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CutSample:
    """A sample of whose media the encoders take only a part; a line of `cut_samples.jsonl`."""

    id: str
    reason: str


@dataclass(frozen=True)
class UnreadableShard:
    """An unreadable shard or file of features; unlike with a bad sample, the run must end."""

    reason: str


_Tokenized = tuple[Sample, Any]
"""A sample and the result of the encoder's `tokenize`, or a SampleError: why it cannot be used."""


class MultimodalDataset(Dataset[Example | BadSample | UnreadableShard]):
    """The examples by sample reference; media are decoded here, in a data worker if there are any.

    Args:
        shards: the data.
        encoder: of the samples.
        status: shows which sample is being decoded.
        view: returns what is encoded of a sample; None for all of it.
    """

    def __init__(
        self,
        shards: ShardSet,
        encoder: SampleEncoder | PreferenceEncoder | RolloutEncoder,
        status: WorkerStatus | None = None,
        *,
        view: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self._shards = shards
        self._encoder = encoder
        self._view = view
        self._status = status
        self.seq2seq, self.dummy_roles = encoder.seq2seq, encoder.dummy_roles

    def __getitem__(self, ref: SampleRef) -> Example | BadSample | UnreadableShard:
        """Return the example, or why there is none."""
        return self.__getitems__([ref])[0]

    def __getitems__(
        self, refs: Sequence[SampleRef]
    ) -> list[Example | BadSample | UnreadableShard]:
        """Return an example for each reference, or why there is none; PyTorch's loader calls this.

        All texts are tokenized before any medium is decoded: decoding evicts the tokenizer from the
        processor's caches, which makes tokenizing three times slower.
        """
        tokenized = [self._tokenize(ref) for ref in refs]
        items = [self._encode(*pair) for pair in zip(refs, tokenized, strict=True)]
        self._set_status("")
        return items

    def _tokenize(self, ref: SampleRef) -> _Tokenized | UnreadableShard:
        self._set_status(f"row {ref.row}")
        try:
            sample = self._shards[ref.row]
        except UserError as error:
            return UnreadableShard(str(error))
        if self._view is not None:
            sample = self._view(sample)
        if ref.skip_reason is not None:
            return sample, SampleError(ref.skip_reason)
        try:
            return sample, self._encoder.tokenize(sample)
        except SampleError as error:
            return sample, error

    def _encode(
        self, ref: SampleRef, item: _Tokenized | UnreadableShard
    ) -> Example | BadSample | UnreadableShard:
        if isinstance(item, UnreadableShard):
            return item
        sample, tokenized = item
        self._set_status(f"{sample.id} (row {ref.row})")
        try:
            if isinstance(tokenized, SampleError):
                raise tokenized
            example = self._encoder.encode(sample, tokenized, position=ref.position)
        except SampleError as error:
            return BadSample(position=ref.position, row=ref.row, id=sample.id, reason=str(error))
        except UserError as error:
            return UnreadableShard(str(error))
        return replace(example, id=sample.id, source=self._shards.folder(ref.row))

    def _set_status(self, text: str) -> None:
        if self._status is not None:
            self._status.write(text)
