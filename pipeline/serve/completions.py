"""Chat completions over HTTP: from the bytes of a request to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from etl.cli import UserError
from etl.storage.schema import SampleError
from model.sampling import seed_of
from pipeline.data.encode import Example
from pipeline.generate.replies import GenerationSettings
from pipeline.serve.engine import Engine, QueueFullError
from pipeline.serve.jobs import Done, Event, Failed, Job, JobSettings, Piece, TokenLogprobs
from pipeline.serve.metrics import Metrics
from pipeline.serve.models import ServedModel
from pipeline.serve.requests import (
    ChatRequest,
    Fetch,
    RequestError,
    RequestLimits,
    parse_request,
)
from pipeline.serve.responses import Completion, error_object, error_response, media_parts

_GONE = 499
"""Status, in the metrics, of a request whose client went away (as nginx counts it)."""


@dataclass(frozen=True, kw_only=True)
class EndpointLimits:
    """What the endpoint takes.

    Args:
        body: bytes of a request.
        requests: that are worked on at a time; more are refused.
        seconds: from a request's first byte to the end of its answer.
        encoders: requests whose media are decoded at a time.
        request: what a request may ask for.
    """

    body: int = 32 << 20
    requests: int = 160
    seconds: float = 300.0
    encoders: int = 2
    request: RequestLimits = field(default_factory=RequestLimits)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A request whose prompt is encoded, and the settings of each choice."""

    chat: ChatRequest
    example: Example
    settings: Sequence[JobSettings]


class ChatCompletions:
    """The ASGI application of /v1/chat/completions.

    Args:
        engine: answers.
        limits: of the endpoint.
        fetch: gets the bytes of a URL; None refuses URLs.

    Attributes:
        metrics: of all requests.
    """

    def __init__(self, engine: Engine, limits: EndpointLimits, fetch: Fetch | None) -> None:
        self._engine, self._limits, self._fetch = engine, limits, fetch
        self._encoders: anyio.CapacityLimiter | None = None
        self._requests = 0
        self.metrics = Metrics(engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.monotonic()
        name, status = "", 500
        self._requests += 1
        try:
            if self._requests > self._limits.requests:
                raise QueueFullError
            deadline = asyncio.get_running_loop().time() + self._limits.seconds
            async with asyncio.timeout_at(deadline):
                prepared = await self._prepared(Request(scope, receive))
            name = prepared.chat.model
            answer = _Answer(self._engine, prepared, deadline)
            completion = Completion(name, len(prepared.example.ids))
            watched = asyncio.create_task(_until_gone(receive, answer))
            try:
                send_it = self._stream if prepared.chat.stream else self._whole
                status = await send_it(answer, completion, send, began)
            finally:
                watched.cancel()
                answer.cancel()
        except ClientDisconnect:
            status = _GONE
        except (RequestError, QueueFullError, TimeoutError) as error:
            response = refusal(error, self._limits)
            status = response.status_code
            await response(scope, receive, send)
        finally:
            self._requests -= 1
            self.metrics.requests.labels(name, status).inc()

    async def _prepared(self, request: Request) -> _Prepared:
        """Read a body, and parse it and encode its prompt in a thread."""
        body = await read_body(request, self._limits.body)
        if self._encoders is None:  # it belongs to an event loop
            self._encoders = anyio.CapacityLimiter(self._limits.encoders)
        return await anyio.to_thread.run_sync(
            self._prepare, body, limiter=self._encoders, abandon_on_cancel=True
        )

    def _prepare(self, body: bytes) -> _Prepared:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON ({error})") from None
        models, limits = self._engine.models, self._limits.request
        chat = parse_request(value, models=[*models], limits=limits, fetch=self._fetch)
        served = models[chat.model]
        try:
            example = served.encoder.encode_prompt(
                chat.sample, asks_for_media=served.generates_media
            )
        except SampleError as error:
            text = str(error).removeprefix("sample asked: ")
            raise RequestError(text, param="messages") from None
        settings = GenerationSettings(
            seed=chat.seed,
            temperature=chat.temperature,
            top_p=chat.top_p,
            top_k=chat.top_k,
            repetition_penalty=chat.repetition_penalty,
            max_new_tokens=self._longest(served, chat, example),
            steps=chat.steps,
            guidance_scale=chat.guidance_scale,
        )
        first = JobSettings(generation=settings, stops=chat.stops, logprobs=chat.logprobs)
        seeds = [seed_of(settings.seed, "choice", number) for number in range(1, chat.choices)]
        others = [replace(first, generation=replace(settings, seed=seed)) for seed in seeds]
        return _Prepared(chat=chat, example=example, settings=(first, *others))

    def _longest(self, served: ServedModel, chat: ChatRequest, example: Example) -> int:
        """Return the longest answer in tokens."""
        default, positions = self._limits.request.max_new_tokens, served.encoder.max_positions
        if positions is None:
            return chat.max_tokens or default
        left = positions - len(example.ids)
        if left < (chat.max_tokens or 1):
            raise RequestError(
                f"the prompt has {len(example.ids)} tokens, and the model {positions} positions: "
                f"want a shorter prompt, or max_tokens of at most {max(0, left)}",
                param="messages",
                code="context_length_exceeded",
            )
        return chat.max_tokens or min(left, default)

    async def _whole(
        self, answer: _Answer, completion: Completion, send: Send, began: float
    ) -> int:
        """Send the complete answer as one object; returns the status."""
        tokens: dict[int, list[TokenLogprobs]] = {}
        async for index, event in answer.events():
            if isinstance(event, Failed):
                response = error_response(event.message, status=500)
                break
            if isinstance(event, Piece):
                self._note_first(answer, began)
                tokens.setdefault(index, []).extend(event.logprobs)
        else:
            self.metrics.seconds.labels(answer.chat.model).observe(time.monotonic() - began)
            asked = answer.chat.logprobs is not None
            logprobs = [tokens.get(n, []) for n in range(len(answer.ends))] if asked else None
            response = JSONResponse(completion.whole(answer.in_order(), logprobs))
        await response({"type": "http"}, _nothing, send)
        return response.status_code

    async def _stream(
        self, answer: _Answer, completion: Completion, send: Send, began: float
    ) -> int:
        """Send the answer while it is generated, as server-sent events; returns the status."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(answer.chat.choices):
            await _send_event(send, completion.chunk(index, {"role": "assistant", "content": ""}))
        status = 200
        try:
            async for index, event in answer.events():
                if isinstance(event, Failed):
                    await _send_event(send, error_object(event.message, status=500))
                    status = 500
                    break
                if isinstance(event, Piece):
                    self._note_first(answer, began)
                    delta = {"content": event.text}
                    chunk = completion.chunk(index, delta, logprobs=event.logprobs)
                else:
                    media = {"media": media_parts(event.media)} if event.media else {}
                    chunk = completion.chunk(index, media, reason=event.reason)
                await _send_event(send, chunk)
            else:
                self.metrics.seconds.labels(answer.chat.model).observe(time.monotonic() - began)
                if answer.chat.usage:
                    await _send_event(send, completion.usage_chunk(answer.in_order()))
                await send(_body(b"data: [DONE]\n\n", more=True))
        except TimeoutError:
            text = f"not complete after {self._limits.seconds:g} seconds"
            await _send_event(send, error_object(text, status=408))
            status = 408
        await send(_body(b"", more=False))
        return status

    def _note_first(self, answer: _Answer, began: float) -> None:
        if not answer.begun:
            answer.begun = True
            seconds = time.monotonic() - began
            self.metrics.first_token.labels(answer.chat.model).observe(seconds)


def refusal(error: Exception, limits: EndpointLimits) -> Response:
    """Return the response to a request that cannot be answered."""
    if isinstance(error, RequestError):
        return error_response(str(error), status=error.status, param=error.param, code=error.code)
    if isinstance(error, QueueFullError):
        text = "too many requests at a time; try again"
        return error_response(text, status=429, code="rate_limit_exceeded")
    return error_response(f"not complete after {limits.seconds:g} seconds", status=408)


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: it is larger than `most` bytes, or not JSON by its type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no web page may send to another host unasked
        raise RequestError("want Content-Type: application/json", status=415)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            text = f"a body of more than {most} bytes"
            raise RequestError(text, status=413)
        chunks.append(chunk)
    return b"".join(chunks)


class _Answer:
    """All choices of a request while the engine works on them.

    Args:
        engine: works on them from now on.
        prepared: the request.
        deadline: of the event loop's clock.

    Attributes:
        chat: the request.
        begun: whether there was any text.
        ends: of the choices that are complete.

    Raises:
        QueueFullError: too many requests wait.
        RequestError: one that can never be run.
    """

    def __init__(self, engine: Engine, prepared: _Prepared, deadline: float) -> None:
        self.chat, self._deadline = prepared.chat, deadline
        self.begun = False
        self.ends: dict[int, Done] = {}
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._jobs = [
            self._job(index, prepared, settings) for index, settings in enumerate(prepared.settings)
        ]
        try:
            engine.submit(self._jobs)
        except UserError as error:
            raise RequestError(str(error), param="messages") from None

    def _job(self, index: int, prepared: _Prepared, settings: JobSettings) -> Job:
        def on_event(event: Event) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return Job(
            model=prepared.chat.model,
            example=prepared.example,
            settings=settings,
            on_event=on_event,
        )

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events of all choices, each with the choice's index.

        Raises:
            ClientDisconnect: the client went away.
            TimeoutError: the deadline has passed.
        """
        while len(self.ends) < len(self._jobs):
            async with asyncio.timeout_at(self._deadline):
                found = await self._events.get()
            if found is None:
                raise ClientDisconnect
            index, event = found
            if isinstance(event, Done):
                self.ends[index] = event
            yield index, event

    def in_order(self) -> list[Done]:
        """Return the ends of all choices."""
        return [self.ends[index] for index in sorted(self.ends)]

    def gone(self) -> None:
        """Take note that the client went away."""
        self.cancel()
        self._events.put_nowait(None)

    def cancel(self) -> None:
        """Free the places of choices that are not complete."""
        for job in self._jobs:
            job.cancel()


async def _until_gone(receive: Receive, answer: _Answer) -> None:
    """Wait until a client goes away, whose body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.gone()


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def _send_event(send: Send, value: Mapping[str, Any]) -> None:
    await send(_body(b"data: " + json.dumps(value).encode() + b"\n\n", more=True))


def _body(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
