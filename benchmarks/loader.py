"""How fast samples are decoded and collated, against webdataset, HF datasets and streaming.

    python benchmarks/loader.py [--images N] [--size WIDTHxHEIGHT] [--side PIXELS] [--rounds N]

All read the same JPEG files with the same captions from their own format on this machine's disk,
decode them, bring them to the encoder's square of `--side` pixels by the same function, and stack
batches of 32; one process, one thread, no worker: what is compared is the work per sample. Ours
goes through `micro_batches`, as training does: it tokenises the text and lays out the rows, which
the others are spared.

`decoder` is what no loader can pass: the JPEG's pixels from bytes in memory, and nothing else.
`decoder and encoder's input` resizes and normalises them, too: the work that all loaders share, and
what they are held against. Times are of the process's CPU, the best of the rounds, which take
turns: on a shared machine that is steadier than the clock, and nothing here waits for a disk.
A rival that is not installed is named and left out: `pip install webdataset datasets
mosaicml-streaming`.
"""

# ruff: noqa: E402 - transformers is imported after what it may import is made ready

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[1]))

# Streaming wants torchvision, whose compiled operators may not fit torch's build; transformers
# imports it, too, where it is installed, and is content with operators that have no code.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if find_spec("torchvision") and not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from etl.schema import Medium, Sample, Turn, sha256
from etl.shards import ShardSet, write_folder
from model.build import build_tokenizer, prepare
from model.presets import system
from pipeline.data.deal import Rows
from pipeline.data.encode import SampleEncoder
from pipeline.data.loader import Samples, micro_batches
from pipeline.data.readers.image import read_image
from pipeline.data.schedule import Bin, Place

BATCH = 32
CAPTION = "A photograph of something, taken somewhere, as a caption of ordinary length might say"
RIVALS = {"webdataset": "webdataset", "datasets": "HF datasets", "streaming": "mosaicml-streaming"}


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """Return JPEG files: crops of two real photographs, turned over and brightened at random."""
    rng = random.Random(0)
    originals = [Image.fromarray(picture) for picture in load_sample_images().images]
    files = []
    for _ in range(count):
        picture = rng.choice(originals)
        share = rng.uniform(0.5, 1.0)
        w, h = round(share * picture.width), round(share * picture.height)
        left, top = rng.randint(0, picture.width - w), rng.randint(0, picture.height - h)
        crop = picture.crop((left, top, left + w, top + h)).resize((width, height))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        light = rng.uniform(0.7, 1.3)
        stream = io.BytesIO()
        crop.point([min(255, round(v * light)) for v in range(256)] * 3).save(
            stream, "JPEG", quality=90
        )
        files.append(stream.getvalue())
    return files


class Prepared:
    """The model whose input is prepared: LLaVA-1.5's encoder at a side, with byte tokens."""

    def __init__(self, side: int) -> None:
        whole = system("llava_1_5_7b").model
        [slot] = whole.inputs
        encoder = replace(slot.encoder, image_size=side)
        self.spec = replace(whole, inputs=(replace(slot, encoder=encoder),))
        self.encoder = encoder
        self.tokenizer = build_tokenizer(self.spec, weights="random")

    def values(self, data: bytes) -> torch.Tensor:
        """Return the encoder's input of a JPEG file."""
        return prepare(self.encoder, read_image(data))


def batched(items: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of `BATCH` items, the last one perhaps shorter."""
    source = iter(items)
    while part := tuple(islice(source, BATCH)):
        yield part


def stacked(values: Iterable[torch.Tensor]) -> Iterator[int]:
    """Stack batches; yield how many samples each held."""
    for part in batched(values):
        yield len(torch.stack(part))


# --- what bounds them -----------------------------------------------------------------------------


def decoder(files: Sequence[bytes]) -> Iterator[int]:
    """Decode from memory, and nothing else."""
    for data in files:
        Image.open(io.BytesIO(data)).load()
        yield 1


# --- ours -----------------------------------------------------------------------------------------


def write_ours(folder: Path, files: Sequence[bytes]) -> None:
    """Write shards as the ETL leaves them."""
    write_folder(folder, map(_sample, range(len(files)), files), job="benchmark")


def _sample(number: int, data: bytes) -> Sample:
    medium = Medium(kind="image", data=data, mime="image/jpeg", sha256=sha256(data))
    turns = (Turn(role="user", text="<image>"), Turn(role="assistant", text=CAPTION))
    return Sample(id=f"{number:06d}", source="benchmark", turns=turns, media=(medium,))


class Given:
    """A schedule of given rows, a batch a step."""

    layout = Rows(most=BATCH, order="position")

    def __init__(self, rows: Sequence[int]) -> None:
        self._steps = list(batched(rows))

    @property
    def steps(self) -> int:
        """The number of batches."""
        return len(self._steps)

    def step(self, step: int, ranks: int) -> list[list[Bin]]:
        """Return the only pass of the only rank."""
        return [[[Place(position=row, row=row) for row in self._steps[step]]]]


def ours(folder: Path, rows: Sequence[int], model: Prepared) -> Iterator[int]:
    """Read as training does."""
    encoder = SampleEncoder(model.spec, model.tokenizer, prompt="plain", max_tokens=2048)
    schedule = Given(rows)
    steps = micro_batches(
        Samples(ShardSet([folder], verify=False), encoder),
        schedule,
        steps=range(schedule.steps),
        rank=0,
        ranks=1,
        pad_id=0,
        workers=0,
    )
    for [micro] in steps:
        assert not micro.bad
        yield micro.samples


# --- the others -----------------------------------------------------------------------------------


def write_webdataset(folder: Path, files: Sequence[bytes]) -> None:
    """Write one tar file."""
    folder.mkdir()
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for number, data in enumerate(files):
            for ending, content in (("jpg", data), ("txt", CAPTION.encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def by_webdataset(folder: Path, rows: Sequence[int], model: Prepared) -> Iterator[int]:
    """Read the tar file in its order; there is no other, but a buffer to shuffle in."""
    import webdataset as wds  # noqa: PLC0415

    data = wds.WebDataset(str(folder / "shard-00000.tar"), shardshuffle=False, empty_check=False)
    yield from stacked(model.values(entry["jpg"]) for entry in data)


def write_datasets(folder: Path, files: Sequence[bytes]) -> None:
    """Write an Arrow data set of bytes and text."""
    import datasets  # noqa: PLC0415

    columns = {"jpg": list(files), "txt": [CAPTION] * len(files)}
    features = datasets.Features({"jpg": datasets.Value("binary"), "txt": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def by_datasets(folder: Path, rows: Sequence[int], model: Prepared) -> Iterator[int]:
    """Read rows by their numbers."""
    import datasets  # noqa: PLC0415

    data = datasets.load_from_disk(str(folder))
    yield from stacked(model.values(data[row]["jpg"]) for row in rows)


def write_streaming(folder: Path, files: Sequence[bytes]) -> None:
    """Write MDS shards."""
    from streaming import MDSWriter  # noqa: PLC0415

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}) as writer:
        for data in files:
            writer.write({"jpg": data, "txt": CAPTION})


def by_streaming(folder: Path, rows: Sequence[int], model: Prepared) -> Iterator[int]:
    """Read rows by their numbers."""
    from streaming import LocalDataset  # noqa: PLC0415

    data = LocalDataset(str(folder))
    yield from stacked(model.values(data[row]["jpg"]) for row in rows)


# --- measuring ------------------------------------------------------------------------------------


def timed(run: Iterator[int]) -> float:
    """Return samples per second of this process's CPU."""
    started = time.process_time()
    samples = sum(run)
    return samples / (time.process_time() - started)


def runs(
    folder: Path, files: Sequence[bytes], model: Prepared
) -> dict[str, Callable[[], Iterator[int]]]:
    """Write every format; return what reads it, by name."""
    rows = list(range(len(files)))
    mixed = random.Random(0).sample(rows, len(rows))
    missing = [name for name in RIVALS if find_spec(name) is None]
    for name in missing:
        sys.stderr.write(f"{RIVALS[name]} is left out: not installed\n")
    write_ours(folder / "ours", files)
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "decoder": lambda: decoder(files),
        "decoder and encoder's input": lambda: stacked(map(model.values, files)),
        "ours, in order": lambda: ours(folder / "ours", rows, model),
        "ours, at random": lambda: ours(folder / "ours", mixed, model),
    }
    if "webdataset" not in missing:
        write_webdataset(folder / "wds", files)
        sides["webdataset, in order"] = lambda: by_webdataset(folder / "wds", rows, model)
    if "datasets" not in missing:
        write_datasets(folder / "hf", files)
        sides["HF datasets, in order"] = lambda: by_datasets(folder / "hf", rows, model)
        sides["HF datasets, at random"] = lambda: by_datasets(folder / "hf", mixed, model)
    if "streaming" not in missing:
        write_streaming(folder / "mds", files)
        sides["mosaicml-streaming, in order"] = lambda: by_streaming(folder / "mds", rows, model)
        sides["mosaicml-streaming, at random"] = lambda: by_streaming(folder / "mds", mixed, model)
    return sides


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    width, height = map(int, options.size.split("x"))
    files = photographs(options.images, width, height)
    folder = Path(tempfile.mkdtemp(prefix="mmloom-loader-"))
    try:
        sides = runs(folder, files, Prepared(options.side))
        best = dict.fromkeys(sides, 0.0)
        for _ in range(options.rounds):
            for name, run in sides.items():
                best[name] = max(best[name], timed(run()))
    finally:
        shutil.rmtree(folder)
    bound = best["decoder and encoder's input"]
    size = sum(map(len, files)) / len(files) / 1024
    title = f"{options.images} JPEG files of {options.size}, {size:.0f} KiB, to {options.side}²"
    table = Table("", "samples a CPU second", "of decoder and encoder's input", title=title)
    for name, rate in best.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / bound:.1%}")
    for column in table.columns[1:]:
        column.justify = "right"
    console = Console(width=100)
    console.print(table)
    rates = {name: round(rate, 1) for name, rate in best.items()}
    ratios = {name: round(rate / bound, 3) for name, rate in best.items()}
    result = {
        "images": options.images,
        "size": options.size,
        "side": options.side,
        "samples_per_cpu_second": rates,
        "ratio_to_decoder_and_input": ratios,
        "ratio_at_random_to_in_order": round(best["ours, at random"] / best["ours, in order"], 3),
    }
    console.file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
