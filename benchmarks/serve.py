"""Our endpoint against transformers' `generate` behind the same HTTP, at 1, 8 and 32 streams.

    python benchmarks/serve.py [--streams 1 8 32] [--requests N]

Both sides serve the same model (digits' wiring, a backbone of random weights that dominates) from a
process of their own, in turn: ours with continuous batching, the other with one call of `generate`
after another, as a server without a batch has it. Clients ask about a picture each and stream the
answer. Then clients misbehave towards ours: they hang up, and send malformed and oversized bodies.
Prints tables and as the last line one JSON object.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from etl.cli import UserError, main, parse
from etl.digits.records import pair_sample
from model.build import build
from model.freeze import set_trainable
from model.presets import system
from model.spec import Llama
from pipeline.checkpoint.checkpoints import write_weights
from pipeline.config.run_config import RunConfig
from pipeline.data.collate import collate
from pipeline.serve.engine import Engine
from pipeline.serve.jobs import Done, Job, Piece
from pipeline.serve.serve import serve as run_server
from pipeline.serve.text_stream import TextStream

Side = Literal["ours", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare requests per second and time to first token."""

    streams: tuple[int, ...] = (1, 8, 32)
    """Clients that ask at the same time."""
    requests: int = 64
    """Of each side and number of streams; at least two a client."""
    max_tokens: int = 32
    """Length of the answers."""
    width: int = 512
    """Of the backbone."""
    layers: int = 8
    """Of the backbone."""
    threads: int = 2
    """Of either server."""
    serve: Path | None = None
    """Serve this run instead, as one of the sides does; this program calls itself so."""
    side: Side = "ours"
    """With --serve: which."""


class OneAtATime(Engine):
    """Answers one job after another by transformers' `generate`, with a cache of its own each."""

    def _run(self) -> None:
        torch.set_num_threads(self.limits.threads)
        while self._wait():
            with self._changed:
                job = self._waiting.popleft()
            if not job.cancelled:
                self._answer(job)

    @torch.no_grad()
    def _answer(self, job: Job) -> None:
        served = self.models[job.model]
        pad_id = served.tokenizer.pad_token_id
        streamer = _Pieces(TextStream(served.tokenizer), job)
        served.module.generate(
            collate([job.example], pad_id=pad_id, side="left"),
            max_new_tokens=job.settings.generation.max_new_tokens,
            pad_id=pad_id,
            end_ids=served.encoder.stop_ids,
            streamer=streamer,
            stop=[_Cancelled(job)],
        )


class _Pieces(BaseStreamer):
    """Passes on what transformers generates."""

    def __init__(self, stream: TextStream, job: Job) -> None:
        self._stream, self._job = stream, job
        self._tokens = 0

    def put(self, value: Tensor) -> None:
        for number in value.flatten().tolist():
            self._tokens += 1
            if text := self._stream.put(number):
                self._job.on_event(Piece(text=text))

    def end(self) -> None:
        if text := self._stream.end():
            self._job.on_event(Piece(text=text))
        self._job.on_event(Done(reason="length", tokens=self._tokens, text=self._stream.text))


class _Cancelled(StoppingCriteria):
    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.full((len(input_ids),), self._job.cancelled)


def write_run(folder: Path, options: Options) -> None:
    """Write a run whose weights are those of the start."""
    preset = system("digits")
    assert preset.sft is not None
    assert isinstance(preset.model.backbone, Llama)
    sizes = {"width": options.width, "mlp_width": 3 * options.width, "layers": options.layers}
    backbone = replace(preset.model.backbone, **sizes, heads=8, kv_heads=8)
    preset = replace(preset, model=replace(preset.model, backbone=backbone))
    stage = replace(preset.stage("sft"), precision="fp32")
    preset = replace(preset, sft=stage)
    model = build(preset.model, stage, weights="random")
    names = set_trainable(model, stage.trainable)
    trained = {name: weight for name, weight in model.named_parameters() if name in names}
    write_weights(folder, trained, identity={})
    RunConfig(stage="sft", system=preset, weights="random", data=(), output=str(folder)).save(
        folder
    )


def serve(run: Path, side: Side, threads: int) -> None:
    """Serve a run on a free port as one of the sides; prints its address."""
    words = ["--run", run, "--port", 0, "--page", "never", "--threads", threads]
    run_server([str(word) for word in words], Engine if side == "ours" else OneAtATime)


@contextmanager
def started(run: Path, side: Side, threads: int) -> Iterator[tuple[str, int]]:
    """Start a server; yields its address and the process's number."""
    words = ["--serve", run, "--side", side, "--threads", threads]
    command = [sys.executable, __file__, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if ": http://" in line), "")
        if not line:
            raise UserError(f"the server of {side} did not start")
        yield line.strip().partition(": ")[2], process.pid
    finally:
        process.terminate()
        process.wait()


def body(number: int, max_tokens: int) -> dict[str, Any]:
    """Return a request about a picture."""
    data = base64.b64encode(pair_sample(0, number).media[0].data).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
        {"type": "text", "text": f"What is in picture {number}?"},
    ]
    return {
        "model": "toy",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


async def ask(client: httpx.AsyncClient, address: str, content: dict[str, Any]) -> float:
    """Stream an answer to its end; return the seconds to its first text, 0 if it has none.

    Raises:
        UserError: the stream ended before the answer.
    """
    begun, first = time.perf_counter(), 0.0
    done = False
    async with client.stream("POST", f"{address}/chat/completions", json=content) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            done = done or line == "data: [DONE]"
            if not first and line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - begun
    if not done:
        raise UserError(f"{address}: a stream ended before its answer")
    return first


async def load(address: str, streams: int, options: Options) -> dict[str, float]:
    """Have clients ask one request after another; return requests/s and median seconds to text."""
    count = max(options.requests, 2 * streams)
    bodies = iter([body(number, options.max_tokens) for number in range(count)])
    first: list[float] = []

    async def one() -> None:
        for content in bodies:
            first.append(await ask(client, address, content))

    async with httpx.AsyncClient(timeout=600) as client:
        await ask(client, address, body(0, options.max_tokens))  # what is computed once
        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(streams)))
        seconds = time.perf_counter() - begun
    return {
        "requests_per_s": count / seconds,
        "first_text_s": statistics.median(filter(None, first)),
    }


async def misbehave(address: str, pid: int, options: Options) -> dict[str, Any]:
    """Hang up, send malformed and oversized bodies; return what is left running, and memory."""
    before = _mib(pid)
    codes: list[int] = []
    async with httpx.AsyncClient(timeout=600) as client:

        async def hang_up(number: int) -> None:
            content = body(number, 256)
            async with client.stream("POST", f"{address}/chat/completions", json=content) as got:
                async for _ in got.aiter_lines():
                    break

        async def send(data: bytes) -> None:
            headers = {"content-type": "application/json"}
            url = f"{address}/chat/completions"
            try:
                codes.append((await client.post(url, content=data, headers=headers)).status_code)
            except httpx.TransportError:  # the server closes what is too long to read
                codes.append(413)

        await asyncio.gather(*(hang_up(number) for number in range(32)))
        bad = [b"{", b"[]", b'{"model": "toy"}', b'{"model": "toy", "messages": [{}]}', b"\xff"]
        await asyncio.gather(*(send(data) for data in bad * 8))
        await asyncio.gather(*(send(b" " * (40 << 20)) for _ in range(4)))
        well = [ask(client, address, body(number, options.max_tokens)) for number in range(32)]
        answered = len(await asyncio.gather(*well))
        metrics = (await client.get(f"{address.removesuffix('/v1')}/metrics")).text
    running = [line for line in metrics.splitlines() if "running" in line and line[0] != "#"]
    return {
        "answered_after": answered,
        "codes": {str(code): codes.count(code) for code in sorted(set(codes))},
        "running": running[-1].rpartition(" ")[2] if running else None,
        "grown_mib": round(_mib(pid) - before),
    }


def _mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def compare(options: Options, run: Path) -> dict[str, Any]:
    """Return the figures of both sides by number of streams, and of the misbehaviour."""
    sides: dict[str, dict[int, dict[str, float]]] = {}
    names: tuple[Side, ...] = ("transformers", "ours")
    abuse: dict[str, Any] = {}
    for side in names:
        with started(run, side, options.threads) as (address, pid):
            sides[side] = {
                streams: asyncio.run(load(address, streams, options)) for streams in options.streams
            }
            if side == "ours":
                abuse = asyncio.run(misbehave(address, pid, options))
    ratios = {
        streams: sides["ours"][streams]["requests_per_s"]
        / sides["transformers"][streams]["requests_per_s"]
        for streams in options.streams
    }
    return {"sides": sides, "ratio": ratios, "misbehaviour": abuse}


def show(found: dict[str, Any]) -> None:
    """Print the table, and as the last line the JSON object."""
    table = Table("side", "streams", "requests/s", "seconds to the first text", "ratio")
    for side, rows in found["sides"].items():
        for streams, row in rows.items():
            ratio = f"{found['ratio'][streams]:.2f}" if side == "ours" else ""
            rate, first = f"{row['requests_per_s']:.2f}", f"{row['first_text_s']:.2f}"
            table.add_row(side, str(streams), rate, first, ratio)
    Console().print(table)
    print(json.dumps({"serve": found}))


def run(args: Sequence[str]) -> None:
    """Run the benchmark with command-line arguments."""
    options = parse(Options, prog="python benchmarks/serve.py", args=args)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    if options.serve is not None:
        serve(options.serve, options.side, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "toy", options)
        show(compare(options, Path(folder) / "toy"))


if __name__ == "__main__":
    main(run)
