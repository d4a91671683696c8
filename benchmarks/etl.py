"""How fast `etl/laion.py` turns URLs into Arrow shards, against the plain img2dataset command.

    python benchmarks/etl.py [--images N] [--kinds small large] [--sides …] [--repeat N] [--cores N]

Both run as a user would run them, one after the other, on the same list from the same server on
this machine. img2dataset downloads, resizes (to fit 256×256, padded, its default), reads EXIF,
hashes (sha256) and writes webdataset; ours checks, filters, turns by EXIF, hashes (sha256 and
perceptually), resizes (shorter side 256, so more pixels), deduplicates and writes Arrow shards with
a manifest.

`start` is the same command on a list of ten images; `steady` is what is left without it, which is
what counts in jobs of hours. CPU and memory are those of all processes that a command starts (Ray's
own, too), read from /proc: CPU time, and PSS, so that shared pages count once. The server's are not
among them. The pictures have the spectrum, sizes and bits per pixel of photographs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, SimpleQueue
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SIZES = {"small": (500, 375), "large": (1600, 1066)}
SIDE = 256  # what both resize to
PICTURES = 48  # that differ in more than the number drawn on them
_BITS = 16
START = 10
SIDES = ("img2dataset", "native", "ours by img2dataset")
_TICKS = os.sysconf("SC_CLK_TCK")
_MARK = "MMLOOM_BENCHMARK"


def picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Pixels with the spectrum of a photograph: amplitudes fall with frequency."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    fall = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** 1.5
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * rng.random(fall.shape))
        plane = np.fft.irfft2(fall * phases, (height, width))
        planes.append(128 + 48 * plane / plane.std())
    pixels = np.stack(planes, axis=-1)
    pixels = 0.7 * pixels[..., :1] + 0.3 * pixels  # colours go with brightness
    return pixels.clip(0, 255).astype(np.uint8)


def numbered(pixels: NDArray[np.uint8], number: int) -> bytes:
    """A JPEG with a number in dark and light blocks: no two become equal when they shrink."""
    pixels = pixels.copy()
    side = pixels.shape[0] // _BITS
    for bit in range(_BITS):
        pixels[-side:, bit * side : (bit + 1) * side] = 255 * (number >> bit & 1)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model", 1
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85, exif=exif)
    return stream.getvalue()


def render(kind: str, images: int) -> list[bytes]:
    """All pictures of a size, on all cores: the server must only hand them out."""
    bases = [picture(*SIZES[kind], seed) for seed in range(PICTURES)]
    with ThreadPoolExecutor() as pool:  # Pillow encodes without the interpreter's lock
        return list(pool.map(lambda n: numbered(bases[n % PICTURES], n), range(images)))


class Handler(BaseHTTPRequestHandler):
    """Serves `/KIND/NUMBER.jpg`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pictures: ClassVar[dict[str, list[bytes]]] = {}

    def do_GET(self) -> None:
        """Answer."""
        _, kind, name = [*self.path.split("/"), "", ""][:3]
        if kind not in self.pictures:
            self.send_error(404)
            return
        body = self.pictures[kind][int(name.partition(".")[0])]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, *_: object) -> None:
        """Silence."""


class Server(ThreadingHTTPServer):
    """With room for clients that open a connection for every request."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up at their end are no news."""


def serve(kinds: list[str], images: int, ports: SimpleQueue[int]) -> None:
    """Render the pictures, then serve them."""
    Handler.pictures = {kind: render(kind, images) for kind in kinds}
    with Server(("127.0.0.1", 0), Handler) as server:
        ports.put(server.server_port)
        server.serve_forever()


Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command took: seconds, and of all of its processes CPU seconds and peak bytes."""

    seconds: float
    cpu: float
    peak: int


class Watch:
    """Adds up CPU time and memory of all processes that carry a mark in their environment."""

    def __init__(self, mark: str) -> None:
        self._mark = mark.encode()
        self._cpu: dict[int, float] = {}
        self._known: set[int] = set()
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for pid in self._pids():  # Ray's children may live on
            os.kill(pid, signal.SIGKILL)

    @property
    def cpu(self) -> float:
        """Seconds so far."""
        return sum(self._cpu.values())

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(0.2):
            memory = 0
            for pid in self._pids():
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
                    if turn % 3 == 0:
                        memory += pss(pid)
                except OSError:
                    continue  # it has ended
            self.peak = max(self.peak, memory)
            turn += 1

    def _pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                if pid not in self._known and self._mark in (entry / "environ").read_bytes():
                    self._known.add(pid)  # it may overwrite its environment with a title later
            except OSError:
                continue  # it has ended, or is not ours to look at
            if pid in self._known:
                found.append(pid)
        return found


def pss(pid: int) -> int:
    """Bytes of a process, of which shared ones count in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(command: list[str]) -> Cost:
    """Run a command to its end."""
    mark = f"{_MARK}={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    env = {**os.environ, name: value, "NO_ALBUMENTATIONS_UPDATE": "1"}
    env["RAY_worker_niceness"] = "0"  # as their processes have, for machines that are not idle
    begun = time.monotonic()
    with Watch(mark) as watch:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - begun
    if done.returncode:
        raise RuntimeError(f"{command[:3]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Cost(seconds=seconds, cpu=watch.cpu, peak=watch.peak)


def ours(listing: Path, output: Path, *, backend: str, cores: int) -> list[str]:
    """The job's command."""
    return [
        *(sys.executable, "etl/laion.py", "--input", str(listing), "--output", str(output)),
        *("--allow-private-addresses", "--backend", backend, "--image-size", str(SIDE)),
        *("--workers", str(cores), "--rows-per-shard", "1000"),
    ]


def theirs(listing: Path, output: Path, *, cores: int) -> list[str]:
    """img2dataset's own command, as its example for LAION-400M has it, on as many processes."""
    return [
        *(str(BIN / "img2dataset"), "--url_list", str(listing), "--input_format", "parquet"),
        *("--url_col", "URL", "--caption_col", "TEXT", "--output_format", "webdataset"),
        *("--output_folder", str(output), "--processes_count", str(cores)),
        *("--thread_count", "128", "--image_size", str(SIDE), "--number_sample_per_shard", "1000"),
        *("--enable_wandb", "False"),
    ]


def command(side: str, listing: Path, output: Path, *, cores: int) -> list[str]:
    """What a side is run as."""
    if side == "img2dataset":
        return theirs(listing, output, cores=cores)
    backend = "native" if side == "native" else "img2dataset"
    return ours(listing, output, backend=backend, cores=cores)


def write_list(path: Path, base: str, kind: str, images: int) -> None:
    """A LAION-style list."""
    table = {
        "URL": [f"{base}/{kind}/{number}.jpg" for number in range(images)],
        "TEXT": [f"a picture with the number {number}" for number in range(images)],
    }
    pq.write_table(pa.table(table), path)


def compare(
    base: str, kind: str, images: int, *, sides: list[str], repeat: int, cores: int
) -> dict[str, Figures]:
    """The sides on one list, in turns; of several runs the one with the least CPU time."""
    found: dict[str, list[tuple[Cost, Cost]]] = {}
    with tempfile.TemporaryDirectory(prefix="mmloom-") as folder:
        lists = {number: Path(folder) / f"{number}.parquet" for number in (START, images)}
        for number, listing in lists.items():
            write_list(listing, base, kind, number)
        output = Path(folder) / "output"
        for _ in range(repeat):
            for side in sides:
                costs = []
                for number, listing in lists.items():
                    costs.append(measure(command(side, listing, output, cores=cores)))
                    if (kept := count(output)) != number:
                        raise RuntimeError(f"{side} kept {kept} of {number} images")
                    shutil.rmtree(output)
                found.setdefault(side, []).append((costs[0], costs[1]))
    return {
        side: figures(*min(costs, key=lambda both: both[1].cpu), images)
        for side, costs in found.items()
    }


def count(output: Path) -> int:
    """Images that a command kept."""
    manifest = output / "manifest.json"
    if manifest.exists():
        return json.loads(manifest.read_bytes())["rows"]
    return sum(json.loads(path.read_bytes())["successes"] for path in output.glob("*_stats.json"))


def figures(start: Cost, whole: Cost, images: int) -> Figures:
    """What is reported of a command."""
    seconds, cpu = whole.seconds - start.seconds, whole.cpu - start.cpu
    more = images - START
    return {
        "seconds": round(whole.seconds, 2),
        "images_per_second": round(images / whole.seconds, 1),
        "images_per_core_second": round(images / whole.cpu, 1),
        "cpu_ms_per_image": round(1000 * whole.cpu / images, 3),
        "peak_mb": round(whole.peak / 1e6),
        "start_seconds": round(start.seconds, 2),
        "start_cpu_seconds": round(start.cpu, 2),
        "steady_images_per_second": round(more / seconds, 1),
        "steady_cpu_ms_per_image": round(1000 * cpu / more, 3),
    }


def ratios(plain: Figures, native: Figures) -> Figures:
    """How many times better ours is."""
    return {
        "speed": round(native["images_per_second"] / plain["images_per_second"], 2),
        "cpu": round(plain["cpu_ms_per_image"] / native["cpu_ms_per_image"], 2),
        "steady_speed": round(
            native["steady_images_per_second"] / plain["steady_images_per_second"], 2
        ),
        "steady_cpu": round(
            plain["steady_cpu_ms_per_image"] / native["steady_cpu_ms_per_image"], 2
        ),
    }


def main() -> None:
    """Print a table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000, help="of each size")
    parser.add_argument("--kinds", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args()
    ports: SimpleQueue[int] = SimpleQueue()
    server = Process(target=serve, args=(options.kinds, options.images, ports), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{ports.get()}"
    result: dict[str, Any] = {"images": options.images, "cores": options.cores}
    table = Table(title=f"{options.images} images, {options.cores} cores")
    names = ("s", "images/s", "per core·s", "CPU ms", "peak MB", "start s", "start CPU s")
    table.add_column("size")
    table.add_column("side")
    for name in (*names, "steady images/s", "steady CPU ms"):
        table.add_column(name, justify="right")
    for kind in options.kinds:
        sides = compare(
            base,
            kind,
            options.images,
            sides=options.sides,
            repeat=options.repeat,
            cores=options.cores,
        )
        for side, values in sides.items():
            table.add_row(kind, side, *(f"{value:g}" for value in values.values()))
        result[kind] = dict(sides)
        if {"img2dataset", "native"} <= sides.keys():
            result[kind]["ratio"] = ratios(sides["img2dataset"], sides["native"])
    server.terminate()
    console = Console(width=140)
    console.print(table)
    console.file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
