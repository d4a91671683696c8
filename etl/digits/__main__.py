"""`python -m etl.digits --output DIR --serve PORT`: writes the digits world's lists, serves it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress

from etl.cli import UserError, main, parse
from etl.digits.alignment_lists import write_alignment
from etl.digits.corpora import write_corpora
from etl.digits.faults import WorldSize
from etl.digits.generation_lists import write_generation
from etl.digits.lists import media_count, write_lists, write_media
from etl.digits.records import VERSION
from etl.digits.server import HOST, MediaServer
from etl.digits.shards import write_shards
from etl.digits.subjects import NAMES, sample_factories
from etl.storage.atomic import atomic_file, write_json

_DEFAULT_PORT = 8797
_log = logging.getLogger("etl.digits")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the digits world: images, and lists of their URLs in the formats of published corpora.

    With --serve, then serve the images on 127.0.0.1 until SIGTERM or SIGINT; DIR/address contains
    the server's address once everything is ready. With --shards, write neither lists nor images,
    but the output of an ETL job: DIR/SUBJECT/captions, dialogues and questions.
    """

    output: Path
    """Folder for media/, laion.parquet, dialogues.json, questions.json and planted.json."""
    serve: int | None = None
    """Port to serve on; 0 reuses the last run's port, or else picks a free one."""
    captions: int = 6000
    """Valid image-caption pairs; faulty rows are added to these."""
    dialogues: int = 6000
    """Images with several questions and answers each."""
    questions: int = 1200
    """Single questions on images of held-out handwriting."""
    others: int = 0
    """Valid rows of each of webvid.csv, wavcaps.json, triplets.jsonl and mmc4.jsonl, besides
    planted faults; 2 or more, or 0 for none of these lists."""
    requests: int = 0
    """Requests for generated media, of each of six tasks, with a sixth as many held out: writes
    generation_captions.json, requests.json and held_out_requests.json; 0 for none."""
    preferences: int = 0
    """Preferences with critiques about each of pictures and sounds, and as many easy dialogues:
    writes preferences.json, easy_dialogues.json, sound_captions.json, present_and_absent.json and
    validation.json; 0 for none."""
    seed: int = 0
    """Seed of all random numbers."""
    shards: tuple[str, ...] = ()
    """Subjects to write as Arrow shards: image, video, audio, points, image_audio, two_images."""

    def __post_init__(self) -> None:
        sizes = ("captions", "dialogues", "questions", "others", "requests", "preferences")
        for name in (*sizes, "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: want 0 or more")
        if self.others == 1:
            raise UserError("--others 1: want 0, or 2 or more")
        for name in self.shards:
            if name not in NAMES:
                raise UserError(f"--shards {name}: want some of {', '.join(NAMES)}")
        if self.shards and self.serve is not None:
            raise UserError("--shards and --serve: shards are not served; give one of them")
        if self.serve is not None and not 0 <= self.serve < 1 << 16:
            raise UserError(f"--serve {self.serve}: want a port from 0 to 65535")

    @property
    def size(self) -> WorldSize:
        """How much to write."""
        return WorldSize(
            captions=self.captions,
            dialogues=self.dialogues,
            questions=self.questions,
            seed=self.seed,
            others=self.others,
            requests=self.requests,
            preferences=self.preferences,
        )


def run(args: Sequence[str]) -> None:
    """Run the command with command-line arguments."""
    options = parse(Options, prog="python -m etl.digits", args=args)
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"--output {options.output}: not a folder")
    if options.shards:
        _write_shards(options)
        return
    address = options.output / "address"
    address.unlink(missing_ok=True)  # clients must not read the address of a dead server
    if options.serve is None:
        _write(options, f"http://{HOST}:{_DEFAULT_PORT}")
        return
    server = _bind(options)
    with server, _stop_event() as stop:
        _write(options, server.base_url)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with atomic_file(address) as stream:
            stream.write(f"{server.base_url}\n".encode())
        _log.info("serving %s at %s", options.output / "media", server.base_url)
        stop.wait()
        server.shutdown()
        address.unlink(missing_ok=True)


def _write_shards(options: Options) -> None:
    counts = {"captions": options.captions, "dialogues": options.dialogues}
    with Progress() as progress:
        for name in options.shards:
            purposes = sample_factories(name)
            total = sum(counts.get(purpose, options.questions) for purpose in purposes)
            task = progress.add_task(name, total=total)
            write_shards(
                options.output / name,
                name,
                options.size,
                functools.partial(progress.advance, task),
            )
            progress.update(task, completed=total)


@contextlib.contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; restores the previous handlers afterwards."""
    stop = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bind(options: Options) -> MediaServer:
    """Bind before anything is rendered, so that a port in use is reported at once."""
    folder = options.output / "media"
    ports = [options.serve or 0]
    if options.serve == 0:
        # The same port gives the same URLs, so jobs on an earlier run's lists can resume.
        ports = [*_last_port(options.output), 0]
    for port in ports:
        try:
            return MediaServer(folder, port)
        except OSError as error:
            failure = error
    raise UserError(f"--serve {options.serve}: cannot listen on {HOST} ({failure.strerror})")


def _last_port(folder: Path) -> list[int]:
    try:
        return [int(json.loads((folder / "lists.json").read_bytes())["base_url"].split(":")[-1])]
    except (OSError, ValueError, KeyError):
        return []


def _write(options: Options, base_url: str) -> None:
    marker = options.output / "lists.json"
    current = {"version": VERSION, "base_url": base_url, **asdict(options.size)}
    if marker.is_file() and json.loads(marker.read_bytes()) == current:
        _log.info("%s already holds these lists", options.output)
        return
    marker.unlink(missing_ok=True)
    with Progress() as progress:
        task = progress.add_task("digits world", total=media_count(options.size))
        write_media(options.output, options.size, lambda: progress.advance(task))
        progress.update(task, completed=media_count(options.size))
    write_lists(options.output, options.size, base_url)
    if options.others:
        write_corpora(options.output, options.size, base_url)
    if options.requests:
        write_generation(options.output, options.seed, options.requests, base_url)
    if options.preferences:
        write_alignment(options.output, options.seed, options.preferences, base_url)
    write_json(marker, current)


if __name__ == "__main__":
    main(run)
