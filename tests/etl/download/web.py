"""A hostile web server on loopback: the path selects its behaviour; it counts requests."""

import gzip
import http.server
import io
import select
import struct
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image


def photo(
    width: int = 120, height: int = 80, *, seed: int = 0, form: str = "JPEG", **options
) -> bytes:
    """A smooth image, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(stream, form, **options)
    return stream.getvalue()


def pixel_bomb() -> bytes:
    """A PNG of a few kilobytes that declares 30,000 × 30,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def archive() -> bytes:
    """A ZIP file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("payload.txt", "not an image")
    return stream.getvalue()


def gzip_bomb() -> bytes:
    """16 MB of zeros in 16 kB of gzip."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return deflate.compress(bytes(16 << 20)) + deflate.flush()


IMAGE = photo()
BODIES = {
    "valid": IMAGE,
    "page": b"<!doctype html><title>Not an image</title>",
    "truncated": IMAGE[: len(IMAGE) // 2],
    "pixel_bomb": pixel_bomb(),
    "zip_in_image": IMAGE + archive(),
    "script_in_image": IMAGE + b"<script>alert(1)</script>",
    "nothing": b"",
    **dict.fromkeys(("a%20b.jpg", "%C3%A9.jpg", "%E9.jpg"), IMAGE),  # names in UTF-8 and Latin-1
}


GZIP_BOMB = gzip_bomb()


class Handler(http.server.BaseHTTPRequestHandler):
    """One method for each path `do_…`; other paths serve `BODIES`, or 404."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        name = self.path.strip("/").split("?", maxsplit=1)[0].split("/")[0]
        self.server.seen[name] += 1
        if name in BODIES:
            self.answer(200, body=BODIES[name], headers={"Content-Type": "image/jpeg"})
        elif name.startswith("do_"):
            getattr(self, name)()
        else:
            self.answer(404, body=b"gone")

    def answer(self, status: int, *, body: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """Send a byte at a time until the client hangs up or the server stops."""
        while not self.server.stop.wait(0.05):
            try:
                self.wfile.write(b"x")
            except OSError:
                break
        self.close_connection = True

    def do_slow_body(self) -> None:
        self.answer(200, headers={"Content-Length": "900"})
        self.drip()

    def do_slow_headers(self) -> None:
        self.send_response(200)
        self.flush_headers()
        self.drip()

    def do_hang(self) -> None:
        self.answer(200, body=b"\xff\xd8\xff", headers={"Content-Length": "900"})
        self.server.stop.wait(20)
        self.close_connection = True

    def do_loop(self) -> None:
        self.answer(302, headers={"Location": "/do_loop"})

    def do_endless_redirects(self) -> None:
        self.answer(302, headers={"Location": f"/do_endless_redirects?{time.monotonic_ns()}"})

    def do_to_private(self) -> None:
        self.answer(302, headers={"Location": "http://10.255.255.1/secret"})

    def do_to_file(self) -> None:
        self.answer(302, headers={"Location": "file:///etc/hostname"})

    def do_to_valid(self) -> None:
        self.answer(301, headers={"Location": "/valid"})

    def do_short(self) -> None:
        self.answer(200, body=IMAGE[:50], headers={"Content-Length": "5000"})
        self.close_connection = True

    def do_long(self) -> None:
        self.answer(200, body=IMAGE + b"tail", headers={"Content-Length": str(len(IMAGE))})

    def do_announced(self) -> None:
        self.answer(200, headers={"Content-Length": "99999999999"})
        self.close_connection = True

    def do_endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server.stop.is_set():
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                break
        self.close_connection = True

    def do_gzip_bomb(self) -> None:
        self.answer(200, body=GZIP_BOMB, headers={"Content-Encoding": "gzip"})

    def do_gzip(self) -> None:
        packed = zlib.compress(IMAGE)
        self.answer(200, body=packed, headers={"Content-Encoding": "deflate"})

    def do_raw_deflate(self) -> None:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflate.compress(IMAGE) + deflate.flush()
        self.answer(200, body=body, headers={"Content-Encoding": "deflate"})

    def do_encoding(self) -> None:
        """Name what the query says as the encoding; gzip is one."""
        name = self.path.split("?")[1]
        body = gzip.compress(IMAGE) if "gzip" in name else IMAGE
        self.answer(200, body=body, headers={"Content-Encoding": name})

    def do_to_utf8(self) -> None:
        # The library writes Latin-1: these are the bytes of é in UTF-8.
        self.answer(302, headers={"Location": "/\xc3\xa9.jpg"})

    def do_to_latin1(self) -> None:
        self.answer(302, headers={"Location": "/\xe9.jpg"})

    def do_to_blank(self) -> None:
        self.answer(302, headers={"Location": f"{self.server.base}/a b.jpg"})

    def do_gone(self) -> None:
        """A page of an error whose length only its end tells."""
        self.send_response(404)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"4\r\ngone\r\n0\r\n\r\n")

    def do_brotli(self) -> None:
        self.answer(200, body=b"?", headers={"Content-Encoding": "br"})

    def do_opt_out(self) -> None:
        self.answer(200, body=IMAGE, headers={"X-Robots-Tag": "noai, noimageai"})

    def do_busy(self) -> None:
        self.answer(429, headers={"Retry-After": "3600"})

    def do_busy_once(self) -> None:
        first = self.server.seen["do_busy_once"] == 1
        if first:
            self.answer(503, headers={"Retry-After": "0"})
        else:
            self.answer(200, body=IMAGE)

    def do_broken(self) -> None:
        self.answer(500)

    def do_nonsense(self) -> None:
        self.wfile.write(b"\x00\x01\x02 not HTTP at all\r\n\r\n")
        self.close_connection = True

    def do_two_lengths(self) -> None:
        self.send_response(200)
        for length in ("5", "6"):
            self.send_header("Content-Length", length)
        self.end_headers()
        self.close_connection = True

    def do_close_on_next(self) -> None:
        self.answer(200, body=IMAGE)
        select.select([self.connection], [], [], 10)  # until the next request on this connection
        self.close_connection = True

    def do_vanish(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Web(http.server.ThreadingHTTPServer):
    """The server; `seen` counts requests by the first component of their paths."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.stop = threading.Event()
        self.seen: Counter[str] = Counter()
        self.connections = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request, client_address) -> None:
        """Count the connection, then handle it in a thread."""
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up, as these tests make them do."""


@contextmanager
def served() -> Iterator[Web]:
    """A server that runs for the duration of the block."""
    with Web() as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield web
        web.stop.set()
        web.shutdown()
        thread.join()
