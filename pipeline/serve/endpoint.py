"""The OpenAI-compatible endpoint: chat completions, models, health and metrics.

Everything that a client could exhaust has a limit: bytes of a body, requests at a time, seconds of
one. A client that goes away frees its place in the batch.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from etl.storage.shards import write_folder
from pipeline.serve.completions import ChatCompletions, EndpointLimits, read_body, refusal
from pipeline.serve.engine import Engine
from pipeline.serve.metrics import CONTENT_TYPE
from pipeline.serve.models import ServedModel
from pipeline.serve.requests import Fetch, RequestError, RequestLimits, parse_dialogue
from pipeline.serve.responses import error_response

_OPEN = ("/health",)
"""Paths that need no token."""


def build_app(
    engine: Engine,
    *,
    limits: EndpointLimits | None = None,
    token: str | None = None,
    fetch: Fetch | None = None,
    hosts: Sequence[str] = ("*",),
) -> Starlette:
    """Return the ASGI application.

    Args:
        engine: answers the requests.
        limits: of the endpoint.
        token: that requests have to bear; None needs none.
        fetch: gets the bytes of a URL; None refuses URLs.
        hosts: values of the Host header that are answered.
    """
    limits = limits or EndpointLimits()
    chat = ChatCompletions(engine, limits, fetch)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    if token is not None:
        middleware.append(Middleware(BearerToken, token=token))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(_: Request) -> Response:
        return Response(chat.metrics.text(), media_type=CONTENT_TYPE)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*map(_model, engine.models.values())]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in engine.models:
            raise HTTPException(404, f"model {name!r} is not served")
        return JSONResponse(_model(engine.models[name]))

    async def dialogue(request: Request) -> Response:
        try:
            async with asyncio.timeout(limits.seconds):
                body = await read_body(request, limits.body)
                return await anyio.to_thread.run_sync(_zipped, body, limits.request, fetch)
        except (RequestError, TimeoutError) as error:
            return refusal(error, limits)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/dialogues", dialogue, methods=["POST"]),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
    )


def _zipped(body: bytes, limits: RequestLimits, fetch: Fetch | None) -> Response:
    """Return a dialogue as a folder of shards, in a ZIP."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({error})") from None
    sample = parse_dialogue(value, limits=limits, fetch=fetch)
    stream = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "dialogue", iter([sample]), job="chat", rows_per_shard=1)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(Path(folder).rglob("*")):
                archive.write(file, file.relative_to(folder))
    return Response(stream.getvalue(), media_type="application/zip")


def _model(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "mmloom",
        "inputs": [*served.spec.modalities],
        "outputs": [each.spec.modality for each in served.module.output_branches().values()],
    }


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.detail, status=error.status_code)


async def _server_error(_: Request, error: Exception) -> Response:
    return error_response(f"an error of the server ({type(error).__name__})", status=500)


class BearerToken:
    """Middleware that refuses requests without a token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._header = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it bears the token."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._header):
                response = error_response(
                    "want the header `Authorization: Bearer TOKEN` with this server's token",
                    status=401,
                    code="invalid_api_key",
                )
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
