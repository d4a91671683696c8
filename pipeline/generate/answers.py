"""Prompts to replies, in one batch: text and conditions in one pass, then the media.

Shapes: b samples, t tokens, g media, l and w positions and width of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from etl.storage.schema import PLACEHOLDER_PATTERN, PLACEHOLDERS, Sample, SampleError, escape
from model.batch_invariance import ALIGNED, align_weights, batch_invariant
from model.multimodal_lm import MultimodalLM
from model.output_branch import OutputBranch, signal_ids
from model.sampling import cut_at, seed_of
from model.signal_decoding import Condition, decode
from model.spec.generators import SoundDiffusion
from pipeline.data.collate import collate
from pipeline.data.encode import Example, SampleEncoder, without_answer
from pipeline.evaluate.device import FittingBatches
from pipeline.evaluate.generate_answers import StopText, stop_texts
from pipeline.generate.replies import GeneratedMedium, GenerationSettings, Reply

OnStep = Callable[[int, int], None]


class Replier:
    """Replies to samples in batches.

    Args:
        model: with output branches, decoders included.
        tokenizer: the backbone's.
        encoder: of the run's prompts.
        settings: of the replies.
        batch: the most media that are generated together.

    Attributes:
        model: in evaluation mode.
        ends: the texts that end an answer.
        text_of: turns the ids of an answer into its text.
    """

    def __init__(
        self,
        model: MultimodalLM,
        tokenizer: PreTrainedTokenizerBase,
        encoder: SampleEncoder,
        settings: GenerationSettings,
        *,
        batch: int = 1,
    ) -> None:
        align_weights(model)
        self.model = model.eval()
        self._tokenizer, self._encoder, self._settings = tokenizer, encoder, settings
        self._branches = {
            branch.spec.modality: branch for branch in model.output_branches().values()
        }
        self._negatives: dict[str, Tensor] = {}
        self._fitting = {kind: FittingBatches(batch) for kind in ("text", *self._branches)}
        self.ends = stop_texts(encoder, settings)
        self.text_of = AnswerText(tokenizer, model, self.ends, longest=settings.max_new_tokens)

    def reply(
        self,
        samples: Sequence[Sample],
        *,
        asks_for_media: bool | None = None,
        streamer: BaseStreamer | None = None,
        on_step: OnStep | None = None,
    ) -> list[Reply]:
        """Reply to samples: the last turn of the assistant is made anew, after those before it.

        Args:
            samples: each ends with a turn of the assistant, which the model does not see.
            asks_for_media: whether media are asked for, of which a `plain` prompt depends; None:
                where the assistant's last turn holds some.
            streamer: gets the tokens of a single sample's reply as they are generated.
            on_step: called after each step of denoising with the steps done, and all, of the media
                that are generated together.

        Returns:
            The replies to each sample, as many as the settings say; one to a sample that cannot be
            a prompt has the reason alone. Those after the first have ids of their own.
        """
        samples = [
            replace(sample, id=numbered(sample.id, number))
            for sample in samples
            for number in range(self._settings.n)
        ]
        encoded = [
            encode_request(self._encoder, sample, self._settings, asks_for_media)
            for sample in samples
        ]
        asked = [
            (sample, one)
            for sample, one in zip(samples, encoded, strict=True)
            if isinstance(one, Example)
        ]
        with torch.no_grad(), batch_invariant(self.model):
            answers = self._fitting["text"].map(partial(self._decode, streamer=streamer), asked)
            flat = [
                (sample.id, number, medium)
                for (sample, _), (_, media) in zip(asked, answers, strict=True)
                for number, medium in enumerate(media)
            ]
            generated = self.generate_media(flat, self._settings, on_step)
        replies = iter(
            Reply(
                id=sample.id,
                text=text,
                media=tuple(generated[sample.id, number] for number in range(len(media))),
            )
            for (sample, _), (text, media) in zip(asked, answers, strict=True)
        )
        return [
            next(replies) if isinstance(one, Example) else Reply(id=sample.id, skip_reason=str(one))
            for sample, one in zip(samples, encoded, strict=True)
        ]

    def _decode(
        self, asked: Sequence[tuple[Sample, Example]], *, streamer: BaseStreamer | None
    ) -> list[tuple[str, list[Condition]]]:
        """Return text and media of each reply, in one batch."""
        settings, encoder = self._settings, self._encoder
        pad_id = self._tokenizer.pad_token_id
        device = next(self.model.parameters()).device
        examples = [example for _, example in asked]
        batch = collate(examples, pad_id=pad_id, side="left", multiple=ALIGNED).to(device)
        decoded = decode(
            self.model,
            batch,
            max_new_tokens=settings.max_new_tokens,
            pad_id=pad_id,
            end_ids=encoder.stop_ids,
            sampling=settings,
            seeds=[seed_of(settings.seed, sample.id, "text") for sample, _ in asked],
            streamer=streamer,
            stop=[StopText(self._tokenizer, *self.ends)] if self.ends else [],
        )
        texts = [self.text_of(numbers).strip() for numbers in decoded.ids_bt.tolist()]
        media: list[list[Condition]] = [[] for _ in asked]
        for medium in decoded.media:
            media[medium.row].append(medium)
        # After the text that ends an answer there may be one more medium.
        kept = [len(PLACEHOLDER_PATTERN.findall(text)) for text in texts]
        return [(text, found[:n]) for text, found, n in zip(texts, media, kept, strict=True)]

    def load_negatives(self) -> None:
        """Compute the conditions from which guidance leads away, unless they are known.

        They may depend on trained weights; generating a medium from its condition does not.
        """
        for kind, branch in self._branches.items():
            if kind not in self._negatives:
                self._negatives[kind] = branch.negative_condition()

    def generate_media(
        self,
        media: Sequence[tuple[str, int, Condition]],
        settings: GenerationSettings,
        on_step: OnStep | None = None,
    ) -> dict[tuple[str, int], GeneratedMedium]:
        """Return the media by sample and number; those of one kind are generated together.

        Args:
            media: ids of samples, numbers of media in their replies, and conditions.
            settings: of the media.
            on_step: see `reply`.
        """
        if media:
            self.load_negatives()
        generated: dict[tuple[str, int], GeneratedMedium] = {}
        for kind, branch in self._branches.items():
            own = [each for each in media if each[2].modality == kind]
            fitting = self._fitting[kind]
            generate = partial(self._generate_together, kind, branch, settings, on_step)
            for first in range(0, len(own), fitting.size):
                part = own[first : first + fitting.size]
                found = fitting.map(generate, part)
                generated |= {each[:2]: medium for each, medium in zip(part, found, strict=True)}
        return generated

    def _generate_together(
        self,
        kind: str,
        branch: OutputBranch,
        settings: GenerationSettings,
        on_step: OnStep | None,
        media: Sequence[tuple[str, int, Condition]],
    ) -> list[GeneratedMedium]:
        spec = branch.spec.generator
        seeds = [seed_of(settings.seed, sample, number) for sample, number, _ in media]
        values = branch.generator.sample(
            torch.cat([medium.condition_1lw for _, _, medium in media]),
            seeds=seeds,
            steps=settings.steps or spec.steps,
            guidance_scale=settings.guidance_scale or spec.guidance_scale,
            negative_glw=self._negatives[kind].expand(len(media), -1, -1),
            on_step=on_step,
        )
        rate = spec.sample_rate if isinstance(spec, SoundDiffusion) else None
        return [
            GeneratedMedium(kind=kind, values=each, seed=seed, sample_rate=rate)
            for each, seed in zip(values.cpu(), seeds, strict=True)
        ]


def encode_request(
    encoder: SampleEncoder,
    sample: Sample,
    settings: GenerationSettings,
    asks_for_media: bool | None = None,
) -> Example | SampleError:
    """Return the prompt of a sample without its last answer, or why it has none."""
    answer = sample.turns[-1] if sample.turns else None
    if answer is None or answer.role != "assistant":
        return SampleError(f"sample {sample.id}: the last turn is not the assistant's")
    if asks_for_media is None:
        asks_for_media = PLACEHOLDER_PATTERN.search(answer.text) is not None
    try:
        return encoder.encode_prompt(
            without_answer(sample),
            max_new_tokens=settings.max_new_tokens,
            asks_for_media=asks_for_media,
        )
    except SampleError as error:
        return error


def numbered(sample: str, number: int) -> str:
    """Return the id of one of several replies to a sample; that of the first is the sample's."""
    return f"{sample}-n{number + 1}" if number else sample


class AnswerText:
    """Turns the ids of an answer into its text, with a placeholder for each medium.

    Args:
        tokenizer: the backbone's.
        model: whose signal tokens follow the vocabulary.
        ends: texts, each of which ends an answer.
        longest: number of ids after which there are no more words.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: MultimodalLM,
        ends: Sequence[str],
        *,
        longest: int,
    ) -> None:
        self._tokenizer, self._ends, self._longest = tokenizer, ends, longest
        self._vocabulary = model.spec.backbone.vocabulary
        branches = [branch.spec for branch in model.output_branches().values()]
        ids = signal_ids(branches, self._vocabulary)
        self._placeholders = {numbers[0]: PLACEHOLDERS[kind] for kind, numbers in ids.items()}

    def __call__(self, numbers: Sequence[int]) -> str:
        """Return the text of the ids of an answer."""
        words: list[int] = []
        text, written = "", 0
        for place, number in enumerate((*numbers, None)):
            if number is not None and number < self._vocabulary:
                words += [number] if place < self._longest else []
            elif number is None or number in self._placeholders:
                # Decoded from the beginning: a tokenizer drops the space before a text.
                whole: str = self._tokenizer.decode(words, skip_special_tokens=True)
                new = cut_at(whole[written:], self._ends)
                ended = len(new) < len(whole) - written
                text, written = text + escape(new), len(whole)
                if ended:
                    return text
                text += self._placeholders.get(number, "") if number is not None else ""
        return text
