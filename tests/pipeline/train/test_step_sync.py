"""What the ranks agree on: which media a pass uses, and of which any has to be encoded."""

import torch

from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.data.collate import pack
from pipeline.data.encode import Example, MediumInput
from pipeline.data.loader import MicroBatch
from pipeline.train.losses import TextObjective
from pipeline.train.step_sync import sync_step

KINDS = ("image", "video", "audio")


def item(*media: tuple[str, bool]) -> MicroBatch:
    """Return a micro-batch with media of these kinds, whose features are known or not."""
    placed = tuple(
        MediumInput(
            kind=kind,
            start=0,
            first=0,
            values=None if known else torch.zeros(1, 2),
            features=torch.zeros(1, 3, 4) if known else None,
        )
        for kind, known in media
    )
    row = Example(ids=[1, 2], labels=[1, 2], kinds=["", ""], media=placed)
    return MicroBatch(batch=pack([row]), samples=1)


def test_known_media_are_used_and_not_encoded(alone: None) -> None:
    items = [
        item(("image", True), ("audio", False)),
        item(("image", True), ("image", False), ("audio", True)),
        item(),
    ]
    writing = SaveStatus(busy=1)
    sync = sync_step(items, KINDS, TextObjective(), stop=False, writing=writing, device="cpu")
    assert sync.used == (("image", "audio"), ("image", "audio"), ())
    assert sync.encoded == (("audio",), ("image",), ())
    assert sync.samples == 3
    assert sync.writing == writing
    assert not sync.lost
