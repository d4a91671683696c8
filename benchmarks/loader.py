"""How fast samples are decoded and collated, compared with webdataset, HF datasets and streaming.

    python benchmarks/loader.py [--images N] [--size WIDTHxHEIGHT] [--side PIXELS] [--rounds N]

All loaders read the same JPEG files with the same captions from their own format on the local disk,
decode them, resize them to `--side` pixels with the same function, and stack batches of 32, in one
process and one thread without workers: the work per sample is compared. Ours runs `micro_batches`,
as training does: it also tokenizes the text and builds the examples, which the others do not.

`the JPEG decoder alone` is the upper bound of any loader: it decodes bytes in memory and does
nothing else. `decoder and encoder's input` also resizes: the work that all loaders share. All
results are compared with both. Times are CPU time of the process, the best of interleaved rounds:
on a shared machine that is steadier than wall time, and no loader waits for the disk. With
`--num-workers` processes, wall time is measured once all workers run, and ours is compared with
PyTorch's loader over files in memory. A library that is not installed is reported and left out:
`pip install webdataset datasets mosaicml-streaming`.
"""


# ruff: noqa: E402 - operators are defined before transformers is imported

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

# Streaming needs torchvision, whose compiled operators may not match torch's build; transformers
# imports it as well where it is installed, for which declared operators are enough.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if find_spec("torchvision") and not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from benchmarks.loader_rivals import CAPTION, RIVALS, Rival
from etl.storage.schema import Medium, Sample, Turn, sha256
from etl.storage.shards import ShardSet, write_folder
from model.build import build_tokenizer, preprocess
from model.presets import system
from pipeline.data.dataset import MultimodalDataset
from pipeline.data.encode import SampleEncoder
from pipeline.data.loader import micro_batches
from pipeline.data.packing import PaddedLayout
from pipeline.data.readers.image import read_image
from pipeline.data.sampler import Bin, SampleRef
from pipeline.data.worker_status import WorkerStatus

BATCH = 32
DECODER, INPUT = "the JPEG decoder alone", "decoder and encoder's input"


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """Return JPEG files: random crops, flips and brightness of two real photographs."""
    rng = random.Random(0)
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for _ in range(count):
        image = rng.choice(originals)
        share = rng.uniform(0.5, 1.0)
        w, h = round(share * image.width), round(share * image.height)
        left, top = rng.randint(0, image.width - w), rng.randint(0, image.height - h)
        crop = image.crop((left, top, left + w, top + h)).resize((width, height))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        brightness = rng.uniform(0.7, 1.3)
        stream = io.BytesIO()
        crop.point([min(255, round(v * brightness)) for v in range(256)] * 3).save(
            stream, "JPEG", quality=90
        )
        files.append(stream.getvalue())
    return files


class Model:
    """The model to load for: LLaVA-1.5's encoder at a given image size, with byte tokens."""

    def __init__(self, side: int) -> None:
        spec = system("llava_1_5_7b").model
        [branch] = spec.inputs
        encoder = replace(branch.encoder, processor=branch.encoder.processor.at(side))
        self.spec = replace(spec, inputs=(replace(branch, encoder=encoder),))
        self.encoder = encoder
        self.tokenizer = build_tokenizer(self.spec, weights="random")

    def input_values(self, data: bytes) -> torch.Tensor:
        """Return the encoder's input of a JPEG file."""
        return preprocess(self.encoder, read_image(data))


def batched(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of `BATCH` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, BATCH)):
        yield batch


def stacked(values: Iterable[torch.Tensor]) -> Iterator[int]:
    """Stack batches; yield the number of samples of each."""
    for batch in batched(values):
        yield len(torch.stack(batch))


# --- upper bounds -----------------------------------------------------------------------------


def decoder(files: Sequence[bytes]) -> Iterator[int]:
    """Decode from memory and do nothing else."""
    for data in files:
        Image.open(io.BytesIO(data)).load()
        yield 1


class InMemory(Dataset[torch.Tensor]):
    """The encoder's inputs of files in memory, for PyTorch's loader."""

    def __init__(self, files: Sequence[bytes], model: Model) -> None:
        self._files, self._model = files, model

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return self._model.input_values(self._files[number])


def with_pytorch_workers(files: Sequence[bytes], model: Model, workers: int) -> Iterator[int]:
    """Read files in memory with PyTorch's loader alone."""
    data = InMemory(files, model)
    loader = DataLoader(data, BATCH, num_workers=workers, multiprocessing_context="spawn")
    yield from map(len, loader)


# --- ours -----------------------------------------------------------------------------------------


def write_ours(folder: Path, files: Sequence[bytes]) -> None:
    """Write shards as the ETL does."""
    write_folder(folder, map(_sample, range(len(files)), files), job="benchmark")


def _sample(number: int, data: bytes) -> Sample:
    medium = Medium(kind="image", data=data, mime="image/jpeg", sha256=sha256(data))
    turns = (Turn(role="user", text="<image>"), Turn(role="assistant", text=CAPTION))
    return Sample(id=f"{number:06d}", source="benchmark", turns=turns, media=(medium,))


class FixedSampler:
    """A batch sampler of given rows, one batch per step."""

    layout = PaddedLayout(max_samples=BATCH, order="position")

    def __init__(self, rows: Sequence[int]) -> None:
        self._steps = list(batched(rows))

    @property
    def steps(self) -> int:
        """The number of batches."""
        return len(self._steps)

    def step(self, step: int, ranks: int) -> list[list[Bin]]:
        """Return the only micro-step of the only rank."""
        return [[[SampleRef(position=row, row=row) for row in self._steps[step]]]]


def ours(folder: Path, rows: Sequence[int], model: Model, workers: int = 0) -> Iterator[int]:
    """Load as training does."""
    encoder = SampleEncoder(model.spec, model.tokenizer, prompt="plain", max_tokens=2048)
    shards = ShardSet([folder], verify=False)
    sampler = FixedSampler(rows)
    steps = micro_batches(
        MultimodalDataset(shards, encoder, WorkerStatus(workers)),
        sampler,
        steps=range(sampler.steps),
        rank=0,
        ranks=1,
        pad_id=0,
        num_workers=workers,
    )
    for [micro] in steps:
        assert not micro.bad
        yield micro.samples


# --- measurement ----------------------------------------------------------------------------------


def cpu_rate(run: Iterator[int]) -> float:
    """Return samples per second of this process's CPU time."""
    started = time.process_time()
    samples = sum(run)
    return samples / (time.process_time() - started)


def wall_rate(run: Iterator[int], workers: int) -> float:
    """Return samples per second of wall time, once each worker has returned a batch."""
    for _ in range(workers):
        next(run)
    started = time.perf_counter()
    samples = sum(run)
    return samples / (time.perf_counter() - started)


def sides(
    folder: Path, files: Sequence[bytes], model: Model
) -> dict[str, Callable[[], Iterator[int]]]:
    """Write every format; return the function that reads it, by name."""
    rows = list(range(len(files)))
    orders = {"in order": rows, "at random": random.Random(0).sample(rows, len(rows))}
    write_ours(folder / "ours", files)
    found: dict[str, Callable[[], Iterator[int]]] = {
        DECODER: lambda: decoder(files),
        INPUT: lambda: stacked(map(model.input_values, files)),
    }
    for how, order in orders.items():
        found[f"ours, {how}"] = partial(ours, folder / "ours", order, model)
    for rival in RIVALS:
        if find_spec(rival.module) is None:
            sys.stderr.write(f"{rival.name}: not installed, left out\n")
            continue
        rival.write(folder / rival.module, files)
        for how, order in orders.items():
            if rival.random or order is rows:
                found[f"{rival.name}, {how}"] = partial(_rival, rival, folder, order, model)
    return found


def _rival(rival: Rival, folder: Path, rows: Sequence[int], model: Model) -> Iterator[int]:
    return stacked(map(model.input_values, rival.read(folder / rival.module, rows)))


def measure(options: argparse.Namespace, files: Sequence[bytes], folder: Path) -> dict[str, Any]:
    """Return all rates, and those with workers."""
    model = Model(options.side)
    found = sides(folder, files, model)
    best = dict.fromkeys(found, 0.0)
    for _ in range(options.rounds):
        for name, run in found.items():
            best[name] = max(best[name], cpu_rate(run()))
    rows, workers = [*range(len(files))] * 2, options.num_workers
    with_workers = {
        INPUT: wall_rate(with_pytorch_workers([*files] * 2, model, workers), workers),
        "ours, in order": wall_rate(ours(folder / "ours", rows, model, workers), workers),
    }
    return {"cpu": best, "workers": with_workers}


def show(rates: Mapping[str, float], title: str) -> None:
    """Print rates as a table."""
    table = Table("", "samples/s", title=title)
    bounds = [name for name in (DECODER, INPUT) if name in rates]
    for bound in bounds:
        table.add_column(f"of {bound}")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", *(f"{rate / rates[bound]:.1%}" for bound in bounds))
    for column in table.columns[1:]:
        column.justify = "right"
    Console(width=110).print(table)


def main() -> None:
    """Print tables and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--num-workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    width, height = map(int, options.size.split("x"))
    files = photographs(options.images, width, height)
    with tempfile.TemporaryDirectory(prefix="mmloom-loader-") as folder:
        rates = measure(options, files, Path(folder))
    size = sum(map(len, files)) / len(files) / 1024
    what = f"{options.images} JPEG files of {options.size}, {size:.0f} KiB, to {options.side}²"
    show(rates["cpu"], f"{what}, per CPU second of a process")
    show(rates["workers"], f"{what}, per second of wall time, {options.num_workers} workers")
    cpu = rates["cpu"]
    result = {
        **vars(options),
        "samples_per_cpu_second": cpu,
        "ratio_to_decoder": {name: rate / cpu[DECODER] for name, rate in cpu.items()},
        "ratio_to_decoder_and_input": {name: rate / cpu[INPUT] for name, rate in cpu.items()},
        "ratio_at_random_to_in_order": cpu["ours, at random"] / cpu["ours, in order"],
        "samples_per_second_with_workers": rates["workers"],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
