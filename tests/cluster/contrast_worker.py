"""One rank that compares its share of four pairs with all of them; `test_init` runs it."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from model.text import TextIds
from pipeline.train.losses import compute_losses
from tests.model.pretraining.test_image_text import TERMS, pairs, small_model, some_pairs


def main(folder: Path, ranks: int) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    features, text = some_pairs(4)
    own = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    share = TextIds(ids_bl=text.ids_bl[own], mask_bl=text.mask_bl[own])
    model = small_model()
    losses = compute_losses(TERMS, model(pairs(features[own], share)))
    # ITM's wrong pairs are drawn by each rank for itself.
    sums = {"itc": losses["itc"].total / 4, "itg": losses["itg"].total / 36}
    sum(sums.values()).backward()
    found = {name: total.detach() for name, total in sums.items()}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            found[name] = weight.grad
    torch.save(found, folder / f"{rank}-of-{ranks}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
