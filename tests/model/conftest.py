"""A digits-sized model with random weights, and batches for it."""

from dataclasses import replace

import pytest
import torch

from model.batch import IGNORED, Batch, Media
from model.build import build
from model.presets import system

IMAGE_ID = 383
"""Placeholder id at the positions of a picture, which occurs in no text."""


@pytest.fixture(scope="session")
def digits():
    return system("digits")


@pytest.fixture
def model(digits):
    return build(digits.model, digits.pt, weights="random", seed=0).eval()


@pytest.fixture
def make_batch(digits):
    """Return a function that builds a batch: one picture after the first id, then text."""

    def build(lengths, *, pad_to=None, pictures=True, seed=0):
        draw = torch.Generator().manual_seed(seed)
        patches = digits.model.inputs[0].tokens if pictures else 0
        width = pad_to or max(lengths)
        ids_bt = torch.zeros(len(lengths), width, dtype=torch.long)
        attention_bt = torch.zeros_like(ids_bt)
        media_mask_bt = torch.zeros_like(ids_bt, dtype=torch.bool)
        for row, length in enumerate(lengths):
            ids_bt[row, :length] = torch.randint(3, IMAGE_ID, (length,), generator=draw)
            attention_bt[row, :length] = 1
            media_mask_bt[row, 1 : 1 + patches] = True
        ids_bt[media_mask_bt] = IMAGE_ID
        labels_bt = ids_bt.masked_fill((attention_bt == 0) | media_mask_bt, IGNORED)
        side = digits.model.inputs[0].encoder.image_size
        pixels = torch.randn(len(lengths), 3, side, side, generator=draw)
        batch = Batch(
            ids_bt=ids_bt,
            attention_bt=attention_bt,
            labels_bt=labels_bt,
            context_bt=torch.zeros_like(ids_bt, dtype=torch.bool),
        )
        if not pictures:
            return batch
        rows_m = torch.arange(len(lengths))
        images = Media(
            input_values=pixels[:, None],
            media_mask_bt=media_mask_bt,
            rows_m=rows_m,
            starts_m=torch.ones_like(rows_m),
        )
        return replace(batch, media={"image": images})

    return build
