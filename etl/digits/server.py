"""The web server of the digits world: static files on 127.0.0.1, with a limited thread count."""

from __future__ import annotations

import functools
import logging
import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
_MAX_CONNECTIONS = 128
_log = logging.getLogger(__name__)


class _Handler(SimpleHTTPRequestHandler):
    """Serves files, keeps connections alive, and sends opt-out headers for files in `optout/`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # headers and body are two writes; waiting for an ACK costs 40 ms
    )
    timeout = 30  # seconds that an idle connection may hold its thread

    def end_headers(self) -> None:
        if self.path.startswith("/optout/"):
            self.send_header("X-Robots-Tag", "noai, noimageai")
        super().end_headers()

    def list_directory(self, path: Any) -> None:  # noqa: ANN401 - the library's signature
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - ditto
        _log.debug(format, *args)


class MediaServer(ThreadingHTTPServer):
    """Serves one folder; connections above the limit wait in the listen queue.

    Args:
        folder: what to serve.
        port: the port; 0 picks a free one, see `base_url`.

    Raises:
        OSError: the port is in use.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, folder: Path, port: int) -> None:
        self._free_threads = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__((HOST, port), functools.partial(_Handler, directory=str(folder)))

    @property
    def base_url(self) -> str:
        """The address, without a trailing slash."""
        return f"http://{HOST}:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Wait for a free thread, then handle the request in it."""
        self._free_threads.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Handle one connection, then release its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free_threads.release()
