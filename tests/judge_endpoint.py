"""A small OpenAI-compatible server for tests of judges."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeEndpoint:
    """Answers each request by `reply`, given its text, and keeps the requests.

    A kept request has the path and the Authorization header (`key`) beside its fields. `together`
    is passed before each answer: a barrier of several shows that as many are asked at once.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[str], str] = lambda text: f"Score: {len(text)}"
        self.status = 200
        self.together = threading.Barrier(1)
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                more = {"path": self.path, "key": self.headers["Authorization"]}
                endpoint.requests.append(request | more)
                endpoint.together.wait(30)
                content = request["messages"][-1]["content"]
                text = content if isinstance(content, str) else content[-1]["text"]
                message = {"role": "assistant", "content": endpoint.reply(text)}
                body = json.dumps({"choices": [{"message": message}]}).encode()
                self.send_response(endpoint.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def judge_endpoint() -> Iterator[JudgeEndpoint]:
    """Serve one until the end of the block."""
    endpoint = JudgeEndpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        thread.join()
        endpoint.server.server_close()
