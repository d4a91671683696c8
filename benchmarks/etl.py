"""How fast `etl/laion.py` turns URLs into Arrow shards, compared with the img2dataset command.

    python benchmarks/etl.py [--images N] [--kinds small large] [--sides …] [--repeat N] [--cores N]

Both run as a user would run them, one after the other, on the same list of URLs from the same local
server. img2dataset downloads, resizes (to fit 256×256, padded, its default), reads EXIF, hashes
(sha256) and writes webdataset; ours checks, filters, rotates by EXIF, hashes (sha256 and perceptual
hash), resizes (shorter side 256, so more pixels), deduplicates and writes Arrow shards with a
manifest.

`native` runs in local processes, `native on Ray` starts a Ray for the job. `first` is the time from
the command to its first request of an image. `start` is the same command on a list of ten images;
`steady` is the difference to it, which matters for jobs of hours. CPU and memory are those of all
processes that a command starts (Ray's included), read from /proc: CPU time, and PSS, so that shared
pages count once. The server is excluded. The images have the
spectrum, sizes and bits per pixel of photographs.
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
from multiprocessing import Process, SimpleQueue, Value
from multiprocessing.sharedctypes import Synchronized
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
SIDE = 256  # image size of both commands
BASE_IMAGES = 48  # distinct ones; the others differ in the number drawn on them
_BITS = 16
START = 10
SIDES = ("img2dataset", "native", "native on Ray", "ours by img2dataset")
_TICKS = os.sysconf("SC_CLK_TCK")
_MARKER = "MMLOOM_BENCHMARK"


def synthetic_photo(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Return pixels with the spectrum of a photograph: amplitudes fall with frequency."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** 1.5
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * rng.random(falloff.shape))
        plane = np.fft.irfft2(falloff * phases, (height, width))
        planes.append(128 + 48 * plane / plane.std())
    pixels = np.stack(planes, axis=-1)
    pixels = 0.7 * pixels[..., :1] + 0.3 * pixels  # channels are correlated
    return pixels.clip(0, 255).astype(np.uint8)


def numbered_jpeg(pixels: NDArray[np.uint8], number: int) -> bytes:
    """Return a JPEG with a number in dark and light blocks: all differ even after resizing."""
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
    """Return all images of a size, rendered in advance so that the server only sends them."""
    bases = [synthetic_photo(*SIZES[kind], seed) for seed in range(BASE_IMAGES)]
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
        return list(pool.map(lambda n: numbered_jpeg(bases[n % BASE_IMAGES], n), range(images)))


class Handler(BaseHTTPRequestHandler):
    """Serves `/KIND/NUMBER.jpg`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    images: ClassVar[dict[str, list[bytes]]] = {}
    first: ClassVar[Synchronized[float]]  # when the first image of a run was requested; 0 before

    def do_GET(self) -> None:
        """Send an image."""
        _, kind, name = [*self.path.split("/"), "", ""][:3]
        if kind not in self.images:
            self.send_error(404)
            return
        self.first.value = self.first.value or time.monotonic()
        body = self.images[kind][int(name.partition(".")[0])]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A server for clients that open a connection for every request."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close their connection."""


def serve(
    kinds: list[str], images: int, ports: SimpleQueue[int], first: Synchronized[float]
) -> None:
    """Render the images, then serve them; `first` is that of `Handler`."""
    Handler.first = first
    Handler.images = {kind: render(kind, images) for kind in kinds}
    with Server(("127.0.0.1", 0), Handler) as server:
        ports.put(server.server_port)
        server.serve_forever()


Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a command, and CPU seconds and peak bytes of all of its processes.

    `first` are the seconds until it requested an image.
    """

    seconds: float
    first: float
    cpu: float
    peak: int


class ProcessMonitor:
    """Adds up CPU time and memory of all processes with a marker in their environment."""

    def __init__(self, marker: str) -> None:
        self._marker = marker.encode()
        self._cpu: dict[int, float] = {}
        self._pids_seen: set[int] = set()
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ProcessMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for pid in self._pids():  # Ray's children may survive
            os.kill(pid, signal.SIGKILL)

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(self._cpu.values())

    def _run(self) -> None:
        round_ = 0
        while not self._stop.wait(0.2):
            memory = 0
            for pid in self._pids():
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
                    if round_ % 3 == 0:
                        memory += pss(pid)
                except OSError:
                    continue  # it has exited
            self.peak = max(self.peak, memory)
            round_ += 1

    def _pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                if pid not in self._pids_seen and self._marker in (entry / "environ").read_bytes():
                    self._pids_seen.add(pid)  # its title may overwrite its environment later
            except OSError:
                continue  # it has exited, or we may not read it
            if pid in self._pids_seen:
                found.append(pid)
        return found


def pss(pid: int) -> int:
    """Return a process's proportional set size in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(command: list[str], first: Synchronized[float]) -> Cost:
    """Run a command and measure its cost; `first` is that of `Handler`."""
    first.value = 0.0
    name, value = _MARKER, secrets.token_hex(8)
    env = {**os.environ, name: value, "NO_ALBUMENTATIONS_UPDATE": "1"}
    env["RAY_worker_niceness"] = "0"  # as img2dataset's processes, for machines that are not idle
    started = time.monotonic()
    with ProcessMonitor(f"{name}={value}") as monitor:
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{command[:3]} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    waited = first.value - started
    return Cost(seconds=seconds, first=waited, cpu=monitor.cpu, peak=monitor.peak)


def ours(listing: Path, output: Path, *, backend: str, executor: str, cores: int) -> list[str]:
    """Return our command."""
    return [
        *(sys.executable, "etl/laion.py", "--input", str(listing), "--output", str(output)),
        *("--allow-private-addresses", "--backend", backend, "--image-size", str(SIDE)),
        *("--workers", str(cores), "--rows-per-shard", "1000", "--executor", executor),
    ]


def theirs(listing: Path, output: Path, *, cores: int) -> list[str]:
    """Return img2dataset's command from its LAION-400M example, on as many processes."""
    return [
        *(str(BIN / "img2dataset"), "--url_list", str(listing), "--input_format", "parquet"),
        *("--url_col", "URL", "--caption_col", "TEXT", "--output_format", "webdataset"),
        *("--output_folder", str(output), "--processes_count", str(cores)),
        *("--thread_count", "128", "--image_size", str(SIDE), "--number_sample_per_shard", "1000"),
        *("--enable_wandb", "False"),
    ]


def command(side: str, listing: Path, output: Path, *, cores: int) -> list[str]:
    """Return the command of a side."""
    if side == "img2dataset":
        return theirs(listing, output, cores=cores)
    backend = "native" if side.startswith("native") else "img2dataset"
    executor = "ray" if side.endswith("on Ray") else "local"
    return ours(listing, output, backend=backend, executor=executor, cores=cores)


def write_list(path: Path, base: str, kind: str, images: int) -> None:
    """Write a LAION-style list of URLs."""
    table = {
        "URL": [f"{base}/{kind}/{number}.jpg" for number in range(images)],
        "TEXT": [f"an image with the number {number}" for number in range(images)],
    }
    pq.write_table(pa.table(table), path)


def compare(
    base: str,
    kind: str,
    images: int,
    *,
    first: Synchronized[float],
    sides: list[str],
    repeat: int,
    cores: int,
) -> dict[str, Metrics]:
    """Run all sides on one list, interleaved; return for each the run with the least CPU time."""
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
                    words = command(side, listing, output, cores=cores)
                    costs.append(measure(words, first))
                    if (rows := count(output)) != number:
                        raise RuntimeError(f"{side}: {rows} rows, want {number}")
                    shutil.rmtree(output)
                found.setdefault(side, []).append((costs[0], costs[1]))
    return {
        side: metrics(*min(costs, key=lambda both: both[1].cpu), images)
        for side, costs in found.items()
    }


def count(output: Path) -> int:
    """Return the number of images in a command's output."""
    manifest = output / "manifest.json"
    if manifest.exists():
        return json.loads(manifest.read_bytes())["rows"]
    return sum(json.loads(path.read_bytes())["successes"] for path in output.glob("*_stats.json"))


def metrics(start: Cost, total: Cost, images: int) -> Metrics:
    """Return the metrics of a command."""
    seconds, cpu = total.seconds - start.seconds, total.cpu - start.cpu
    more = images - START
    return {
        "seconds": round(total.seconds, 2),
        "images_per_second": round(images / total.seconds, 1),
        "images_per_core_second": round(images / total.cpu, 1),
        "cpu_ms_per_image": round(1000 * total.cpu / images, 3),
        "peak_mb": round(total.peak / 1e6),
        "first_seconds": round(min(start.first, total.first), 2),
        "start_seconds": round(start.seconds, 2),
        "start_cpu_seconds": round(start.cpu, 2),
        "steady_images_per_second": round(more / seconds, 1),
        "steady_cpu_ms_per_image": round(1000 * cpu / more, 3),
    }


def ratios(plain: Metrics, native: Metrics) -> Metrics:
    """Return our speed and CPU time relative to img2dataset's."""
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
    """Print a table and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000, help="of each size")
    parser.add_argument("--kinds", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args()
    ports: SimpleQueue[int] = SimpleQueue()
    first = Value("d", 0.0)
    server = Process(target=serve, args=(options.kinds, options.images, ports, first), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{ports.get()}"
    result: dict[str, Any] = {"images": options.images, "cores": options.cores}
    table = Table(title=f"{options.images} images, {options.cores} cores")
    names = (
        "s",
        "images/s",
        "per core·s",
        "CPU ms",
        "peak MB",
        "first s",
        "start s",
        "start CPU s",
    )
    table.add_column("size")
    table.add_column("side")
    for name in (*names, "steady images/s", "steady CPU ms"):
        table.add_column(name, justify="right")
    for kind in options.kinds:
        sides = compare(
            base,
            kind,
            options.images,
            first=first,
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
