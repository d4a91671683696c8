"""What the ranks agree on: the kinds of media of a micro-batch."""

import torch

from model.presets import system
from pipeline.checkpoint.async_writer import SaveStatus
from pipeline.data.collate import pack
from pipeline.data.dataset import CutSample
from pipeline.data.encode import Example, MediumInput
from pipeline.data.loader import MicroBatch
from pipeline.train.losses import loss_terms
from pipeline.train.step_sync import sync_step

KINDS = ("image", "video", "audio")


def item(*kinds: str) -> MicroBatch:
    """Return a micro-batch with media of these kinds: features of images, values of others."""
    inputs = tuple(
        MediumInput(
            kind=kind,
            start=0,
            first=0,
            input_values=None if kind == "image" else torch.zeros(1, 2),
            features=torch.zeros(1, 3, 4) if kind == "image" else None,
        )
        for kind in kinds
    )
    example = Example(ids=[1, 2], labels=[1, 2], kinds=["", ""], media=inputs)
    cut = tuple(CutSample(id=kind, reason="long") for kind in kinds if kind == "audio")
    return MicroBatch(batch=pack([example]), samples=1, cut=cut)


def test_a_kind_is_used_whether_as_features_or_as_values(alone: None) -> None:
    items = [item("image", "audio"), item("image", "image"), item()]
    status = SaveStatus(busy=1)
    preset = system("digits")
    losses = loss_terms(preset.model, preset.pt)
    sync = sync_step(items, KINDS, losses, stop=False, save_status=status, device="cpu")
    assert sync.used == (("image", "audio"), ("image",), ())
    assert (sync.samples, sync.bad, sync.cut) == (3, 0, 1)
    assert sync.counts == {"text": 3}
    assert sync.save_status == status
    assert not sync.unreadable
