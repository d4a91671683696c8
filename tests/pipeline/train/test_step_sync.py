"""What the ranks agree on: the kinds of media of a micro-batch, and which of them to encode."""

import torch

from model.presets import system
from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.data.collate import pack
from pipeline.data.encode import Example, MediumInput
from pipeline.data.loader import MicroBatch
from pipeline.train.losses import loss_terms
from pipeline.train.step_sync import sync_step

KINDS = ("image", "video", "audio")


def item(*media: tuple[str, bool]) -> MicroBatch:
    """Return a micro-batch with media of these kinds, whose features are cached or not."""
    inputs = tuple(
        MediumInput(
            kind=kind,
            start=0,
            first=0,
            input_values=None if cached else torch.zeros(1, 2),
            features=torch.zeros(1, 3, 4) if cached else None,
        )
        for kind, cached in media
    )
    example = Example(ids=[1, 2], labels=[1, 2], kinds=["", ""], media=inputs)
    return MicroBatch(batch=pack([example]), samples=1)


def test_cached_media_are_used_and_not_encoded(alone: None) -> None:
    items = [
        item(("image", True), ("audio", False)),
        item(("image", True), ("image", False), ("audio", True)),
        item(),
    ]
    status = SaveStatus(busy=1)
    preset = system("digits")
    losses = loss_terms(preset.model, preset.pt)
    sync = sync_step(items, KINDS, losses, stop=False, save_status=status, device="cpu")
    assert sync.used == (("image", "audio"), ("image", "audio"), ())
    assert sync.encoded == (("audio",), ("image",), ())
    assert sync.samples == 3
    assert sync.counts == {"text": 3}
    assert sync.save_status == status
    assert not sync.unreadable
