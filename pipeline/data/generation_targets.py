"""Media that the model generates: their captions, and the targets of eq. 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from etl.cli import UserError
from etl.storage.schema import PLACEHOLDER_PATTERN, Medium, Sample, SampleError, Turn, words_of
from model.build import CaptionTokenizer, preprocess_target
from model.spec.generators import SoundDiffusion, TextToVideo
from model.spec.output_branches import Generation, OutputBranchSpec
from pipeline.data.features import FeatureReader
from pipeline.data.readers import RawMedium, read_audio, read_image, read_video

CAPTIONS = "captions"
"""The lineage field with a JSON list of the captions of a sample's media (`etl.sources`)."""


@dataclass(frozen=True, kw_only=True)
class GenerationTarget:
    """One medium of an example that the model generates.

    Args:
        kind: `to_image`.
        seed: of the noise and the time step of eq. 5.
        ids: of its caption, padded, in the vocabulary of the generator's text encoder; None where
            the target of eq. 4 is given.
        input_values: the medium, where eq. 5 or the target of eq. 4 is made from it; else None.
        cached_embeds: the target (l, w) of eq. 4; in GRPO the condition of a generated medium.
        cached_latents: the latents of the medium, for eq. 5.
        noise: in GRPO the standard deviation of the noise in the condition, or 0 without.
    """

    kind: str
    seed: int
    ids: tuple[int, ...] | None = None
    input_values: Tensor | None = None
    cached_embeds: Tensor | None = None
    cached_latents: Tensor | None = None
    noise: float | None = None


class GenerationTargetEncoder:
    """Encodes the media that the model generates.

    Args:
        branches: the output branches in use.
        tokenizers: from a caption to the ids of a generator's text encoders, by kind.
        generation: the stage's loss weights: eq. 5 needs the media themselves.
        seed: the run's.
        features: reads targets of eqs. 4 and 5, of the kinds that it has.
    """

    def __init__(
        self,
        branches: Sequence[OutputBranchSpec],
        tokenizers: Mapping[str, CaptionTokenizer],
        *,
        generation: Generation,
        seed: int,
        features: FeatureReader | None = None,
    ) -> None:
        self.branches = {branch.kind: branch for branch in branches}
        self._tokenizers = tokenizers
        self._generation = generation
        self._seed = seed
        self._features = features

    def encode(self, sample: Sample, number: int, kind: str, position: int) -> GenerationTarget:
        """Encode one medium of a sample.

        Args:
            sample: that holds the medium.
            number: of the medium in the sample.
            kind: `to_image`.
            position: of the sample in the run's stream; with seed and number it seeds the noise.

        Raises:
            SampleError: a medium that cannot be decoded.
        """
        text = captions(sample.turns, sample.lineage)[number]
        medium = sample.media[number]
        seed = np.random.SeedSequence((self._seed, position, number)).generate_state(1)[0]
        target = GenerationTarget(kind=kind, seed=int(seed))
        try:
            return self._with_latents(self._with_embeds(target, text, medium), medium)
        except UserError:  # not of the medium, but of a file of features
            raise
        except (OSError, ValueError) as error:
            raise SampleError(
                f"sample {sample.id}: its {medium.kind} cannot be decoded ({error})"
            ) from error

    def _with_embeds(self, target: GenerationTarget, text: str, medium: Medium) -> GenerationTarget:
        """Return a target with what eq. 4 needs: its embedding, or what that is made from."""
        kind, branch = target.kind, self.branches[target.kind]
        embeds_media = branch.generator.embeds_media
        if self._features is not None and kind in self._features.kinds:
            if embeds_media:
                return replace(target, cached_embeds=self._features.target(kind, medium))
            return replace(target, cached_embeds=self._features.caption(kind, text))
        target = replace(target, ids=self._tokenizers[kind](text))
        return replace(target, input_values=read_target(medium, branch)) if embeds_media else target

    def _with_latents(self, target: GenerationTarget, medium: Medium) -> GenerationTarget:
        """Return a target with what eq. 5 needs: its latents, or the medium."""
        branch = self.branches[target.kind]
        if not self._generation.of(branch.modality).denoise:
            return target
        if self._features is not None and branch.latents_kind in self._features.kinds:
            latents = self._features.target(branch.latents_kind, medium)
            return replace(target, cached_latents=latents)
        if target.input_values is not None:
            return target
        return replace(target, input_values=read_target(medium, branch))


class EarlierMedia(GenerationTargetEncoder):
    """Marks where media stand that the assistant generated earlier in a dialogue.

    Args:
        branches: the output branches in use.
    """

    def __init__(self, branches: Sequence[OutputBranchSpec]) -> None:
        super().__init__(branches, {}, generation=Generation(), seed=0)

    def encode(self, sample: Sample, number: int, kind: str, position: int) -> GenerationTarget:
        """Return a target that needs neither caption nor medium."""
        return GenerationTarget(kind=kind, seed=0, ids=None, input_values=None)


def earlier_media(branches: Sequence[OutputBranchSpec]) -> EarlierMedia | None:
    """Return what encodes media of earlier answers; None for a model that generates none."""
    return EarlierMedia(branches) if branches else None


def read_target(medium: Medium, branch: OutputBranchSpec) -> Tensor:
    """Decode a medium and return its generator's target (*shape).

    Raises:
        OSError, ValueError: truncated, of an unknown format, too large, or not of its kind.
    """
    return preprocess_target(branch, _read(medium, branch))


def _read(medium: Medium, branch: OutputBranchSpec) -> RawMedium:
    """Decode a medium as its generator's `preprocess` takes it.

    Raises:
        OSError, ValueError: truncated, of an unknown format, too large, or not of its kind.
    """
    generator = branch.generator
    if isinstance(generator, TextToVideo):
        return read_video(medium.data, generator.frames)
    if isinstance(generator, SoundDiffusion):
        return read_audio(medium.data, generator.sample_rate)
    return read_image(medium.data)


def captions(turns: Sequence[Turn], lineage: Mapping[str, str]) -> list[str]:
    """Return the caption of each medium of a sample, in reading order.

    The caption in the lineage comes first, as in NExT-GPT's data; without one, the text of the
    medium's own turn; without that, the text of the turn before, such as a user's request.
    """
    given = json.loads(lineage.get(CAPTIONS, "[]"))
    found: list[str] = []
    before = ""
    for turn in turns:
        text = " ".join(words_of(turn.text, " ").split())
        for _ in PLACEHOLDER_PATTERN.findall(turn.text):
            own = given[len(found)] if len(found) < len(given) else ""
            found.append(own or text or before)
        before = text or before
    return found


def branch_kinds(
    turns: Sequence[Turn], kinds: Sequence[str], outputs: Sequence[OutputBranchSpec]
) -> list[str]:
    """Return, per medium in reading order, the branch that it takes, as in `Stage.kinds`.

    A medium in an assistant's turn takes the stage's output branch for it (`to_image`) if there is
    one; all others take their input branch.

    Args:
        turns: with a placeholder for each medium.
        kinds: of the media.
        outputs: the output branches of the stage.
    """
    by_modality: dict[str, str] = {branch.modality: branch.kind for branch in outputs}
    roles = [turn.role for turn in turns for _ in PLACEHOLDER_PATTERN.findall(turn.text)]
    return [
        by_modality.get(kind, kind) if role == "assistant" else kind
        for role, kind in zip(roles, kinds, strict=True)
    ]
