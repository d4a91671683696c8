"""`python -m pipeline serve`: trained runs behind an OpenAI-compatible endpoint, and a page."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import uvicorn

from etl.cli import UserError, parse
from pipeline.serve.completions import EndpointLimits
from pipeline.serve.endpoint import build_app
from pipeline.serve.engine import Engine, EngineLimits
from pipeline.serve.models import load_models
from pipeline.serve.requests import RequestLimits
from pipeline.serve.urls import url_fetcher

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "MMLOOM_TOKEN"
PAGE_ENVIRONMENT = ".venv-page"
"""Where `make page` installs Gradio, whose pins are not ours (pillow < 13)."""
_FETCH_SECONDS = 30.0
_SHUTDOWN_SECONDS = 5
_SPARE_CONNECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Serve trained runs, or exported folders, over OpenAI's chat completions.

    A request chooses among several by the name of the folder. Runs of one base share its weights.
    """

    run: tuple[Path, ...]
    """Run folders of trained stages, or exported folders."""
    host: str = "127.0.0.1"
    """The address to listen on; any other than loopback needs a token."""
    port: int = 8000
    """The port; 0 takes any that is free."""
    token_file: Path | None = None
    """A file with the token that requests have to bear. Default: the variable MMLOOM_TOKEN."""
    batch: int = 32
    """Answers that are decoded together."""
    waiting: int = 128
    """Answers that wait for a place; more are refused (429)."""
    cache_tokens: int = 65_536
    """Tokens of prompts and answers in memory at a time, padding included."""
    checkpoint: str = "newest"
    """Of each run: `newest`, `best` (by the loss of its validations), or the step of one."""
    max_new_tokens: int = 256
    """Longest answer where a request does not say."""
    max_body_mb: int = 32
    """Largest body of a request."""
    page: Literal["auto", "never"] = "auto"
    """`auto`: also serve a page to chat in a browser, where Gradio is installed: in this
    environment, in that of --page-python, or in the one that `make page` sets up."""
    page_port: int = 7860
    """The page's port."""
    page_python: Path | None = None
    """The Python of an environment with Gradio."""
    timeout: float = 300.0
    """Seconds from a request to the end of its answer."""
    fetch_urls: bool = False
    """Fetch http and https URLs in requests, by the ETL's safe HTTP; by default they are refused,
    and media come as data: URIs."""
    allow_private_addresses: bool = False
    """With --fetch-urls: also from private and loopback addresses."""
    threads: int = 1
    """Of the CPU. With one, on the CPU, no bit of an answer depends on what else is in the batch;
    with more it is faster, and last bits may."""

    def __post_init__(self) -> None:
        if not self.run:
            raise UserError("--run: want at least one run folder, or exported folder")
        for name in (
            "batch",
            "waiting",
            "cache_tokens",
            "max_new_tokens",
            "max_body_mb",
            "threads",
        ):
            if getattr(self, name) < 1:
                text = f"{getattr(self, name)}, want at least 1"
                raise UserError(f"--{name.replace('_', '-')}: {text}")
        if self.timeout <= 0:
            raise UserError(f"--timeout: {self.timeout}, want a number of seconds above 0")
        if self.allow_private_addresses and not self.fetch_urls:
            raise UserError("--allow-private-addresses: goes with --fetch-urls")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def token(self) -> str | None:
        """Return the token, if requests need one.

        Raises:
            UserError: none, although other machines can connect, or one that cannot be read.
        """
        token = os.environ.get(TOKEN_VARIABLE, "")
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"--token-file: {self.token_file} cannot be read ({error})"
                ) from None
            if not token:
                raise UserError(f"--token-file: {self.token_file} is empty, want a token")
        if not token and not self.on_loopback:
            raise UserError(
                f"--host: {self.host} is open to other machines; want a token that requests "
                f"have to bear, in --token-file FILE or the variable {TOKEN_VARIABLE}"
            )
        return token or None


def serve(args: Sequence[str], engine_class: type[Engine] = Engine) -> int:
    """Run the command; returns the exit code.

    Args:
        args: of the command line.
        engine_class: what answers; benchmarks compare it with others.
    """
    options = parse(ServeOptions, prog="python -m pipeline serve", args=args)
    token = options.token()
    # uvicorn raises the signal again once it has stopped: this ends the page, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(options))
        models = load_models(options.run, checkpoint=options.checkpoint)
        limits = EngineLimits(
            batch=options.batch,
            waiting=options.waiting,
            positions=options.cache_tokens,
            threads=options.threads,
        )
        engine = stack.enter_context(engine_class(models, limits))
        body = options.max_body_mb << 20
        fetch = None
        if options.fetch_urls:
            fetch = url_fetcher(
                max_bytes=body,
                seconds=_FETCH_SECONDS,
                allow_private=options.allow_private_addresses,
            )
        endpoint_limits = EndpointLimits(
            body=body,
            requests=options.batch + options.waiting,
            seconds=options.timeout,
            request=RequestLimits(max_new_tokens=options.max_new_tokens),
        )
        app = build_app(
            engine,
            limits=endpoint_limits,
            token=token,
            fetch=fetch,
            # A page of the web whose name resolves to this machine sends another Host.
            hosts=("127.0.0.1", "localhost", options.host) if options.on_loopback else ("*",),
        )
        host, port = listening.getsockname()[:2]
        sys.stdout.write(f"{', '.join(models)}: http://{host}:{port}/v1\n")
        sys.stdout.flush()
        if options.page == "auto":
            stack.enter_context(page_process(options, f"http://{host}:{port}/v1", token))
        _server(app, endpoint_limits).run(sockets=[listening])
    return 0


@contextmanager
def page_process(options: ServeOptions, endpoint: str, token: str | None) -> Iterator[None]:
    """Serve the page, in a process and an environment of its own, for the duration of the block."""
    python = _page_python(options)
    if python is None:
        sys.stdout.write("no page: Gradio is not installed; `make page` sets it up\n")
        yield
        return
    words = ["--endpoint", endpoint, "--host", options.host, "--port", str(options.page_port)]
    words += ["--with-parent"] if options.on_loopback else ["--with-parent", "--login"]
    given = {TOKEN_VARIABLE: token or ""}
    # Isolated (-I): beside the script there are files with names of libraries. The pipe closes
    # however this process ends, and the page ends with it.
    process = subprocess.Popen(
        [str(python), "-I", str(Path(__file__).with_name("page.py")), *words],
        env={**os.environ, **given, "GRADIO_ANALYTICS_ENABLED": "False"},
        stdin=subprocess.PIPE,
    )
    sys.stdout.write(f"page: http://{options.host}:{options.page_port}\n")
    sys.stdout.flush()
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _page_python(options: ServeOptions) -> Path | None:
    """Return the Python of an environment with Gradio, if there is one."""
    if options.page_python is not None:
        if not options.page_python.is_file():
            raise UserError(f"--page-python: {options.page_python}: no such file")
        return options.page_python
    if find_spec("gradio") is not None:
        return Path(sys.executable)
    own = Path(__file__).parents[2] / PAGE_ENVIRONMENT / "bin" / "python"
    return own if own.is_file() else None


def _listen(options: ServeOptions) -> socket.socket:
    """Return a socket that listens; before the models are loaded, which takes a while."""
    try:
        return socket.create_server((options.host, options.port), backlog=512)
    except (OSError, OverflowError) as error:
        where = f"--host {options.host} --port {options.port}"
        raise UserError(f"{where}: cannot listen there ({error})") from None


def _server(app: object, limits: EndpointLimits) -> uvicorn.Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        lifespan="off",
        limit_concurrency=limits.requests + _SPARE_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        server_header=False,
    )
    return uvicorn.Server(config)
