"""The collator: examples to one micro-batch, padded to the longest or packed end to end.

Shapes: b sequences, t positions, s positions of a seq2seq decoder, m input media of a kind, g media
of a kind to be generated, l text positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.batch import IGNORED, Batch, GenerationTargets, Media, Sequences
from model.text import TextIds
from pipeline.data.encode import Example, MediumInput


def collate(
    examples: Sequence[Example], *, pad_id: int, side: Literal["left", "right"], multiple: int = 1
) -> Batch:
    """Pad examples to the longest of them: on the right to train, on the left to generate.

    Args:
        examples: of the batch.
        pad_id: the padding token.
        side: of the padding.
        multiple: of which the common length is one.
    """
    length = max(len(example.ids) for example in examples)
    length = -(-length // multiple) * multiple
    shape = (len(examples), length)
    ids_bt = torch.full(shape, pad_id)
    labels_bt = torch.full(shape, IGNORED)
    attention_bt = torch.zeros(shape, dtype=torch.long)
    context_bt = torch.zeros(shape, dtype=torch.bool)
    offsets = [0 if side == "right" else length - len(example.ids) for example in examples]
    for row, (example, offset) in enumerate(zip(examples, offsets, strict=True)):
        tokens = slice(offset, offset + len(example.ids))
        ids_bt[row, tokens] = _tensor(example.ids)
        labels_bt[row, tokens] = _tensor(example.labels)
        attention_bt[row, tokens] = 1
        context_bt[row, offset : offset + example.context] = True
    decoder_bs = None
    if any(example.answer is not None for example in examples):
        decoder_bs, labels_bt = _decoder([example.answer or [] for example in examples], pad_id)
    sentences = [example.sentence for example in examples]
    return Batch(
        ids_bt=ids_bt,
        attention_bt=attention_bt,
        labels_bt=labels_bt,
        context_bt=context_bt,
        media={kind: _media(kind, examples, offsets, length) for kind in _input_kinds(examples)},
        generation_targets={
            kind: _generation_targets(kind, examples, offsets, length)
            for kind in _target_kinds(examples)
        },
        decoder_bs=decoder_bs,
        sentences=_texts(sentences) if any(sentences) else None,
    )


def pack(examples: Sequence[Example]) -> Batch:
    """Concatenate examples into one sequence; position ids keep them apart in attention.

    So are the sequences of an example that has several. The first token of each is not a target:
    the token before it is of another one.
    """
    offsets = list(itertools.accumulate((len(example.ids) for example in examples), initial=0))
    length = offsets.pop()
    labels_t = torch.cat([_tensor(example.labels) for example in examples])
    starts = [
        offset + start
        for offset, example in zip(offsets, examples, strict=True)
        for start in example.sequence_starts
    ]
    labels_t[torch.tensor(starts)] = IGNORED
    context_bt = torch.zeros(1, length, dtype=torch.bool)
    for example, offset in zip(examples, offsets, strict=True):
        context_bt[0, offset : offset + example.context] = True
    return Batch(
        ids_bt=torch.cat([_tensor(example.ids) for example in examples])[None],
        attention_bt=torch.ones(1, length, dtype=torch.long),
        labels_bt=labels_t[None],
        context_bt=context_bt,
        media={
            kind: _packed_media(kind, examples, offsets, length) for kind in _input_kinds(examples)
        },
        generation_targets={
            kind: _packed_generation_targets(kind, examples, offsets, length)
            for kind in _target_kinds(examples)
        },
        positions_bt=torch.cat(
            [torch.arange(end - start) for start, end in itertools.pairwise([*starts, length])]
        )[None],
        sequences=_sequences(examples) if any(example.roles for example in examples) else None,
    )


def _sequences(examples: Sequence[Example]) -> Sequences:
    """Return what the sequences of packed examples are to their samples."""
    samples = [n for n, example in enumerate(examples) for _ in example.roles]
    roles = [role for example in examples for role in example.roles]
    return Sequences(samples_q=torch.tensor(samples), roles_q=torch.tensor(roles))


def dummy_example(pad_id: int, *, seq2seq: bool, roles: tuple[int, ...] = ()) -> Example:
    """Return an example of no sample: one token that is not a target."""
    return Example(
        ids=[pad_id], labels=[IGNORED], kinds=[""], answer=[] if seq2seq else None, roles=roles
    )


def _input_kinds(examples: Sequence[Example]) -> list[str]:
    return sorted({medium.kind for example in examples for medium in example.media})


def _target_kinds(examples: Sequence[Example]) -> list[str]:
    return sorted({target.kind for example in examples for target in example.generation_targets})


def _packed_media(
    kind: str, examples: Sequence[Example], offsets: Sequence[int], length: int
) -> Media:
    """Return the same as `_media`, for one sequence of all examples."""
    media = _media(kind, examples, offsets, length)
    return replace(
        media,
        media_mask_bt=media.media_mask_bt.any(0, keepdim=True),
        rows_m=torch.zeros_like(media.rows_m),
    )


def _media(kind: str, examples: Sequence[Example], offsets: Sequence[int], length: int) -> Media:
    found: list[tuple[int, int, MediumInput]] = [
        (row, offset + medium.start, medium)
        for row, (example, offset) in enumerate(zip(examples, offsets, strict=True))
        for medium in example.media
        if medium.kind == kind
    ]
    media = [medium for _, _, medium in found]
    texts = [medium.text for medium in media if medium.text is not None]
    values = [medium.input_values for medium in media if medium.input_values is not None]
    features = [medium.features for medium in media if medium.features is not None]
    return Media(
        input_values=torch.stack(values) if values else None,
        media_mask_bt=_media_mask(kind, examples, offsets, length),
        rows_m=torch.tensor([row for row, _, _ in found]),
        starts_m=torch.tensor([start for _, start, _ in found]),
        text=_texts(texts) if texts else None,
        features=torch.stack(features) if features else None,
        order_e=_media_order(kind, examples),
    )


def _media_order(kind: str, examples: Sequence[Example]) -> Tensor | None:
    """Return the index of the medium of each occurrence; None where each medium occurs once."""
    if all(example.media_order is None for example in examples):
        return None
    order: list[int] = []
    first = 0
    for example in examples:
        own = [number for number, medium in enumerate(example.media) if medium.kind == kind]
        occurrences = example.media_order or tuple(range(len(example.media)))
        order += [first + own.index(number) for number in occurrences if number in own]
        first += len(own)
    return torch.tensor(order)


def _media_mask(
    kind: str, examples: Sequence[Example], offsets: Sequence[int], length: int
) -> Tensor:
    """Return the mask (b, t) of the positions of a kind of media."""
    media_mask_bt = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, (example, offset) in enumerate(zip(examples, offsets, strict=True)):
        mask = bytearray([token_kind == kind for token_kind in example.kinds])
        media_mask_bt[row, offset : offset + len(example.ids)] = torch.frombuffer(
            mask, dtype=torch.bool
        )
    return media_mask_bt


def _packed_generation_targets(
    kind: str, examples: Sequence[Example], offsets: Sequence[int], length: int
) -> GenerationTargets:
    """Return the same as `_generation_targets`, for one sequence of all examples."""
    targets = _generation_targets(kind, examples, offsets, length)
    return replace(targets, media_mask_bt=targets.media_mask_bt.any(0, keepdim=True))


def _generation_targets(
    kind: str, examples: Sequence[Example], offsets: Sequence[int], length: int
) -> GenerationTargets:
    targets = [
        target
        for example in examples
        for target in example.generation_targets
        if target.kind == kind
    ]
    ids = [target.ids for target in targets if target.ids is not None]
    values = [target.input_values for target in targets if target.input_values is not None]
    embeds = [target.cached_embeds for target in targets if target.cached_embeds is not None]
    latents = [target.cached_latents for target in targets if target.cached_latents is not None]
    noises = [target.noise for target in targets if target.noise is not None]
    return GenerationTargets(
        media_mask_bt=_media_mask(kind, examples, offsets, length),
        seeds_g=torch.tensor([target.seed for target in targets]),
        ids_gl=torch.tensor(ids) if ids else None,
        input_values=torch.stack(values) if values else torch.zeros(0),
        cached_embeds=torch.stack(embeds) if embeds else None,
        cached_latents=torch.stack(latents) if latents else None,
        noise_g=torch.tensor(noises) if noises else None,
    )


def _decoder(answers: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return a decoder's input and labels (b, s); as in T5, the padding token starts an answer."""
    length = max(1, *map(len, answers))
    decoder_bs = torch.full((len(answers), length), pad_id)
    labels_bs = torch.full((len(answers), length), IGNORED)
    for row, ids in enumerate(answers):
        decoder_bs[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.long)
        labels_bs[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return decoder_bs, labels_bs


def _tensor(values: Sequence[int]) -> Tensor:
    """Return integers as a tensor; NumPy reads a list ten times faster than torch does."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _texts(texts: Sequence[Sequence[int]]) -> TextIds:
    length = max(1, *map(len, texts))
    ids_bl = torch.zeros(len(texts), length, dtype=torch.long)  # BERT's padding token
    mask_bl = torch.zeros(len(texts), length, dtype=torch.long)
    for row, ids in enumerate(texts):
        ids_bl[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask_bl[row, : len(ids)] = 1
    return TextIds(ids_bl=ids_bl, mask_bl=mask_bl)
