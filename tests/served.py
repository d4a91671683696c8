"""An endpoint that listens on 127.0.0.1, in a thread of the test's process."""

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from etl.digits.records import pair_sample
from pipeline.serve.endpoint import build_app
from pipeline.serve.engine import Engine


@contextmanager
def listening(engine: Engine, **options: object) -> Iterator[str]:
    """Serve an engine; yields the address, without `/v1`."""
    app = build_app(engine, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def picture(number: int = 0) -> bytes:
    """Return the file of a picture of the digits world."""
    return pair_sample(0, number).media[0].data


def data_uri(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


def question(text: str, *images: bytes) -> list[dict[str, object]]:
    """Return the messages of one question about pictures."""
    parts = [*map(image_part, images), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]
