"""Rows to one micro-batch: padded to the longest, or packed end to end.

Shapes: b rows, t positions, s positions of a seq2seq decoder, m media of a kind that go in, g of a
kind that come out, l text positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.batch import IGNORED, Batch, GenerationTargets, Media
from model.text import TextIds
from pipeline.data.encode import Example, MediumInput


def collate(rows: Sequence[Example], *, pad_id: int, side: Literal["left", "right"]) -> Batch:
    """Pad rows to the longest of them: on the right to train, on the left to generate."""
    length = max(len(row.ids) for row in rows)
    shape = (len(rows), length)
    ids_bt = torch.full(shape, pad_id)
    labels_bt = torch.full(shape, IGNORED)
    attention_bt = torch.zeros(shape, dtype=torch.long)
    context_bt = torch.zeros(shape, dtype=torch.bool)
    firsts = [0 if side == "right" else length - len(row.ids) for row in rows]
    for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        where = slice(first, first + len(row.ids))
        ids_bt[number, where] = _tensor(row.ids)
        labels_bt[number, where] = _tensor(row.labels)
        attention_bt[number, where] = 1
        context_bt[number, first : first + row.context] = True
    decoder_bs = None
    if any(row.answer is not None for row in rows):
        decoder_bs, labels_bt = _decoder([row.answer or [] for row in rows], pad_id)
    sentences = [row.sentence for row in rows]
    kinds = sorted({medium.kind for row in rows for medium in row.media})
    return Batch(
        ids_bt=ids_bt,
        attention_bt=attention_bt,
        labels_bt=labels_bt,
        context_bt=context_bt,
        media={kind: _media(kind, rows, firsts, length) for kind in kinds},
        generation_targets={
            kind: _drawn(kind, rows, firsts, length) for kind in _kinds_drawn(rows)
        },
        decoder_bs=decoder_bs,
        sentences=_texts(sentences) if any(sentences) else None,
    )


def pack(rows: Sequence[Example]) -> Batch:
    """Lay rows end to end in one sequence, which attention keeps apart by their positions.

    The first token of each is no target: what stands before it is another sample.
    """
    firsts = list(itertools.accumulate((len(row.ids) for row in rows), initial=0))
    length = firsts.pop()
    labels_t = torch.cat([_tensor(row.labels) for row in rows])
    labels_t[torch.tensor(firsts)] = IGNORED
    kinds = sorted({medium.kind for row in rows for medium in row.media})
    return Batch(
        ids_bt=torch.cat([_tensor(row.ids) for row in rows])[None],
        attention_bt=torch.ones(1, length, dtype=torch.long),
        labels_bt=labels_t[None],
        context_bt=torch.zeros(1, length, dtype=torch.bool),
        media={kind: _packed_media(kind, rows, firsts, length) for kind in kinds},
        generation_targets={
            kind: _packed_drawn(kind, rows, firsts, length) for kind in _kinds_drawn(rows)
        },
        positions_bt=torch.cat([torch.arange(len(row.ids)) for row in rows])[None],
    )


def _packed_media(kind: str, rows: Sequence[Example], firsts: Sequence[int], length: int) -> Media:
    """As `_media`, with all rows in one."""
    media = _media(kind, rows, firsts, length)
    return replace(
        media,
        media_mask_bt=media.media_mask_bt.any(0, keepdim=True),
        rows_m=torch.zeros_like(media.rows_m),
    )


def _media(kind: str, rows: Sequence[Example], firsts: Sequence[int], length: int) -> Media:
    placed: list[tuple[int, int, MediumInput]] = [
        (number, first + medium.start, medium)
        for number, (row, first) in enumerate(zip(rows, firsts, strict=True))
        for medium in row.media
        if medium.kind == kind
    ]
    texts = [medium.text for _, _, medium in placed if medium.text is not None]
    values = [medium.input_values for _, _, medium in placed if medium.input_values is not None]
    known_m = [medium.input_values is None for _, _, medium in placed]
    features = [medium.features for _, _, medium in placed if medium.features is not None]
    keys = [medium.key for _, _, medium in placed if medium.input_values is not None and medium.key]
    return Media(
        input_values=torch.stack(values) if values else torch.zeros(0),
        media_mask_bt=_places(kind, rows, firsts, length),
        rows_m=torch.tensor([number for number, _, _ in placed]),
        starts_m=torch.tensor([start for _, start, _ in placed]),
        text=_texts(texts) if texts else None,
        cached_features=torch.stack(features) if features else None,
        cached_m=torch.tensor(known_m) if features else None,
        keys=tuple(keys),
    )


def _places(kind: str, rows: Sequence[Example], firsts: Sequence[int], length: int) -> Tensor:
    """Return where (b, t) the places of a kind of media are."""
    media_mask_bt = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        mask = bytearray([place == kind for place in row.kinds])
        media_mask_bt[number, first : first + len(row.ids)] = torch.frombuffer(
            mask, dtype=torch.bool
        )
    return media_mask_bt


def _kinds_drawn(rows: Sequence[Example]) -> list[str]:
    return sorted({drawing.kind for row in rows for drawing in row.generation_targets})


def _packed_drawn(
    kind: str, rows: Sequence[Example], firsts: Sequence[int], length: int
) -> GenerationTargets:
    """As `_drawn`, with all rows in one."""
    drawn = _drawn(kind, rows, firsts, length)
    return replace(drawn, media_mask_bt=drawn.media_mask_bt.any(0, keepdim=True))


def _drawn(
    kind: str, rows: Sequence[Example], firsts: Sequence[int], length: int
) -> GenerationTargets:
    placed = [drawing for row in rows for drawing in row.generation_targets if drawing.kind == kind]
    ids = [drawing.ids for drawing in placed if drawing.ids is not None]
    values = [drawing.input_values for drawing in placed if drawing.input_values is not None]
    embedded = [drawing.embedded for drawing in placed if drawing.embedded is not None]
    keys = [drawing.key for drawing in placed if drawing.ids is not None and drawing.key]
    return GenerationTargets(
        media_mask_bt=_places(kind, rows, firsts, length),
        seeds_g=torch.tensor([drawing.seed for drawing in placed]),
        ids_xl=torch.tensor(ids) if ids else torch.zeros(0, 0, dtype=torch.long),
        input_values=torch.stack(values) if values else torch.zeros(0),
        cached_embeds=torch.stack(embedded) if embedded else None,
        cached_g=torch.tensor([drawing.ids is None for drawing in placed]) if embedded else None,
        keys=tuple(keys),
    )


def _tensor(values: Sequence[int]) -> Tensor:
    """Return integers as a tensor; through NumPy, which reads a list in a tenth of torch's time."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _texts(texts: Sequence[Sequence[int]]) -> TextIds:
    length = max(1, *map(len, texts))
    ids_bl = torch.zeros(len(texts), length, dtype=torch.long)  # BERT's padding
    mask_bl = torch.zeros(len(texts), length, dtype=torch.long)
    for number, ids in enumerate(texts):
        ids_bl[number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask_bl[number, : len(ids)] = 1
    return TextIds(ids_bl=ids_bl, mask_bl=mask_bl)


def _decoder(answers: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return a decoder's input and labels (b, s); as T5 has it, padding starts an answer."""
    length = max(1, *map(len, answers))
    decoder_bs = torch.full((len(answers), length), pad_id)
    labels_bs = torch.full((len(answers), length), IGNORED)
    for number, ids in enumerate(answers):
        decoder_bs[number, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.long)
        labels_bs[number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    return decoder_bs, labels_bs


def dummy_example(pad_id: int, *, seq2seq: bool) -> Example:
    """Return a row that stands for no sample: one token that is no target."""
    return Example(ids=[pad_id], labels=[IGNORED], kinds=[""], answer=[] if seq2seq else None)
