"""Media that the backbone is to say: what is told of them, and what its generators compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from etl.storage.schema import PLACEHOLDER_PATTERN, Medium, Sample, SampleError, Turn
from model.build import preprocess_target
from model.spec.output_branches import OutputBranchSpec
from pipeline.data.features import FeatureReader
from pipeline.data.readers import read_image

CAPTIONS = "captions"
"""In a sample's lineage: a JSON list of what is told of each of its media (`etl.sources`)."""


@dataclass(frozen=True, kw_only=True)
class GenerationTarget:
    """One medium of a row that comes out.

    Args:
        kind: `to_image`.
        seed: of what eq. 5 draws.
        ids: of what is told of it, padded, in the generator's vocabulary; None where its embedding
            is known.
        values: the medium for eq. 5; None where that is not wanted.
        embedded: what the generator's text encoder makes of the text (l, w), if that is known.
        key: what that is to be kept under; empty where it is not kept.
    """

    kind: str
    seed: int
    ids: tuple[int, ...] | None
    input_values: Tensor | None
    embedded: Tensor | None = None
    key: bytes = b""


class GenerationTargetEncoder:
    """Encodes media that come out.

    Args:
        slots: the ways out that a stage uses.
        tokenizers: by kind, of the generators' text encoders.
        denoises: whether eq. 5 is wanted, which needs the media themselves.
        seed: the run's.
        known: which texts' embeddings are known.
    """

    def __init__(
        self,
        slots: Sequence[OutputBranchSpec],
        tokenizers: Mapping[str, PreTrainedTokenizerBase],
        *,
        denoises: bool,
        seed: int,
        known: FeatureReader,
    ) -> None:
        self.slots = {slot.kind: slot for slot in slots}
        self._tokenizers = tokenizers
        self._denoises = denoises
        self._seed = seed
        self._known = known

    def placed(self, sample: Sample, number: int, kind: str, position: int) -> GenerationTarget:
        """Return a sample's medium as what is to be drawn.

        Args:
            sample: whose medium.
            number: of the medium in the sample.
            kind: `to_image`.
            position: of the sample in the run's stream: with seed and number, it decides the noise.

        Raises:
            SampleError: a medium that cannot be decoded.
        """
        text = captions(sample.turns, sample.lineage)[number]
        found = self._known.find_text(kind, text)
        known = found is not None and found.features is not None
        slot = self.slots[kind]
        seed = np.random.SeedSequence((self._seed, position, number)).generate_state(1)[0]
        return GenerationTarget(
            kind=kind,
            seed=int(seed),
            ids=None if known else caption_ids(self._tokenizers[kind], slot, text),
            input_values=self._values(sample, sample.media[number], slot)
            if self._denoises
            else None,
            embedded=found.features if found else None,
            key=found.key if found else b"",
        )

    def _values(self, sample: Sample, medium: Medium, slot: OutputBranchSpec) -> Tensor:
        try:
            return preprocess_target(slot, read_image(medium.data))
        except (OSError, ValueError) as error:
            raise SampleError(
                f"sample {sample.id}: its {medium.kind} cannot be decoded ({error})"
            ) from error


def caption_ids(
    tokenizer: PreTrainedTokenizerBase, slot: OutputBranchSpec, text: str
) -> tuple[int, ...]:
    """Return a text's ids, cut or padded to what the generator's text encoder takes."""
    ids: list[int] = tokenizer(
        text, truncation=True, padding="max_length", max_length=slot.generator.text_tokens
    )["input_ids"]
    return tuple(ids)


def captions(turns: Sequence[Turn], lineage: Mapping[str, str]) -> list[str]:
    """Return what is told of each medium of a sample, in reading order.

    That is what its lineage says, as of NExT-GPT's data; else the other words of its turn; else
    those of the turn before: of a pair in which the user asks for a picture, the caption.
    """
    written = json.loads(lineage.get(CAPTIONS, "[]"))
    told: list[str] = []
    before = ""
    for turn in turns:
        said = " ".join(PLACEHOLDER_PATTERN.sub(" ", turn.text).split())
        for _ in PLACEHOLDER_PATTERN.findall(turn.text):
            own = written[len(told)] if len(told) < len(written) else ""
            told.append(own or said or before)
        before = said or before
    return told


def ways(
    turns: Sequence[Turn], kinds: Sequence[str], outputs: Sequence[OutputBranchSpec]
) -> list[str]:
    """Return, per medium in reading order, its kind as of `Stage.kinds`.

    A medium that the assistant says comes out (`to_image`) where the stage has a way out for it;
    all others go in.

    Args:
        turns: with a placeholder for each medium.
        kinds: of the media.
        outputs: the ways out that the stage uses.
    """
    out: dict[str, str] = {slot.modality: slot.kind for slot in outputs}
    speakers = [turn.role for turn in turns for _ in PLACEHOLDER_PATTERN.findall(turn.text)]
    return [
        out.get(kind, kind) if role == "assistant" else kind
        for role, kind in zip(speakers, kinds, strict=True)
    ]
