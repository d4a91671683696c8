"""The page: chat in a browser with the models of an endpoint, one or two side by side.

A script that knows the endpoint by its HTTP alone and needs nothing but Gradio, whose pins are not
ours (pillow < 13): it may run in an environment of its own. `python -m pipeline serve` starts it.

    python -P pipeline/serve/page.py --endpoint http://127.0.0.1:8000/v1 --port 7860
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import mimetypes
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import httpx

TOKEN_VARIABLE = "MMLOOM_TOKEN"
USER = "mmloom"
"""Who logs in where the page is open to other machines; the token is the password."""

_POINTS = (".npy", ".ply")
_SUFFIXES = {"image/png": ".png", "video/mp4": ".mp4", "audio/wav": ".wav"}
_SECONDS = httpx.Timeout(10.0, read=600.0)
_CSS = """
.gradio-container { width: 100% !important; max-width: 72rem !important; margin: 0 auto; }
.dialogue { height: calc(100dvh - 17rem) !important; min-height: 16rem; }
.dialogue .minimal-audio-player { height: 3rem; overflow: hidden; }
footer { display: none !important; }
.dialogue [aria-label="Share"] { display: none !important; }  /* it would upload to a public host */
@media (max-width: 640px) {
  #stop, #clear, #json, #shard { padding: 0.25rem; white-space: nowrap; }
  .dialogue { height: calc(100dvh - 20rem) !important; }
}
"""

Round = dict[str, Any]
"""A question (`text`, `files`) with its answer (`answer`, `media`: parts and files) or `error`."""


class Endpoint:
    """An OpenAI-compatible endpoint of `python -m pipeline serve`.

    Args:
        address: with `/v1`.
        token: that it wants, if any.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def models(self) -> list[dict[str, Any]]:
        """Return what is served."""
        response = httpx.get(f"{self._address}/models", headers=self._headers, timeout=_SECONDS)
        response.raise_for_status()
        found: list[dict[str, Any]] = response.json()["data"]
        return found

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the deltas of a streamed answer.

        Raises:
            RuntimeError: the endpoint's message, or that it cannot be reached.
        """
        try:
            with httpx.stream(
                "POST",
                f"{self._address}/chat/completions",
                json=body | {"stream": True},
                headers=self._headers,
                timeout=_SECONDS,
            ) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise RuntimeError(_message(response))
                for line in response.iter_lines():
                    data = line.removeprefix("data: ")
                    if not line or data == "[DONE]":
                        continue
                    value = json.loads(data)
                    if "error" in value:
                        raise RuntimeError(value["error"]["message"])
                    for choice in value["choices"]:
                        yield choice["delta"]
        except httpx.HTTPError as error:
            raise RuntimeError(f"the endpoint cannot be reached ({error})") from None

    def shard(self, messages: Sequence[dict[str, Any]]) -> bytes:
        """Return a dialogue as a folder of shards, in a ZIP."""
        response = httpx.post(
            f"{self._address}/dialogues",
            json={"messages": messages},
            headers=self._headers,
            timeout=_SECONDS,
        )
        if response.status_code != httpx.codes.OK:
            raise RuntimeError(_message(response))
        return response.content


def _message(response: httpx.Response) -> str:
    try:
        text: str = response.json()["error"]["message"]
    except (ValueError, LookupError):
        return f"HTTP {response.status_code}"
    return text


def kind_of(file: str) -> str:
    """Return the kind of medium that a file's name tells, or an empty text."""
    if file.lower().endswith(_POINTS):
        return "points"
    kind = (mimetypes.guess_type(file)[0] or "").partition("/")[0]
    return kind if kind in ("image", "video", "audio") else ""


def to_messages(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return a dialogue as messages of a request; rounds with an error are left out."""
    messages: list[dict[str, Any]] = []
    for each in rounds:
        if each.get("error"):
            continue
        parts = [_part(file) for file in each["files"]]
        parts += [{"type": "text", "text": each["text"]}] if each["text"] else []
        messages.append({"role": "user", "content": parts})
        if each["answer"] is not None:
            answer = {"role": "assistant", "content": each["answer"]}
            media = [part for part, _ in each["media"]]
            messages.append(answer | ({"media": media} if media else {}))
    return messages


def _part(file: str) -> dict[str, Any]:
    kind = kind_of(file)
    mime = mimetypes.guess_type(file)[0] or "application/octet-stream"
    data = base64.b64encode(Path(file).read_bytes()).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{data}"}}


def to_bubbles(rounds: Sequence[Round]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return what the page shows of a dialogue, and the round that each bubble belongs to."""
    bubbles: list[dict[str, Any]] = []
    owners: list[int] = []
    for number, each in enumerate(rounds):
        own = [{"role": "user", "content": {"path": file}} for file in each["files"]]
        own += [{"role": "user", "content": each["text"]}] if each["text"] else []
        if each.get("error"):
            own.append({"role": "assistant", "content": f"⚠ {each['error']}"})
        elif each["answer"] is not None:
            own += _answer_bubbles(each)
        bubbles += own
        owners += [number] * len(own)
    return bubbles, owners


def _answer_bubbles(each: Round) -> list[dict[str, Any]]:
    """Return the bubbles of an answer: its text, with generated media where they stand in it."""
    text, bubbles = each["answer"], []
    for part, file in each["media"]:
        placeholder = f"<{part['type'].removesuffix('_url')}>"
        before, _, text = text.partition(placeholder)
        if before.strip():
            bubbles.append({"role": "assistant", "content": before.strip()})
        bubbles.append({"role": "assistant", "content": {"path": file}})
    if text.strip() or not bubbles:
        empty = "…" if each.get("busy") else "(no text)"
        bubbles.append({"role": "assistant", "content": text.strip() or empty})
    return bubbles


def _saved(part: dict[str, Any], folder: Path) -> str:
    """Write a generated medium to a file that the page may show."""
    head, _, data = part[part["type"]]["url"].partition(",")
    mime = head.removeprefix("data:").partition(";")[0]
    file = folder / f"{uuid.uuid4().hex}{_SUFFIXES.get(mime, '')}"
    file.write_bytes(base64.b64decode(data))
    return str(file)


class Page:
    """The page and its handlers; each visitor has dialogues of their own.

    Args:
        endpoint: answers.
        folder: for what visitors download and what is generated for them.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._endpoint, self._folder = endpoint, folder
        self._models = {model["id"]: model for model in endpoint.models()}

    def build(self) -> gr.Blocks:
        """Return the page."""
        names = [*self._models]
        inputs = sorted({kind for model in self._models.values() for kind in model["inputs"]})
        several = len(names) > 1
        with gr.Blocks(title="mmloom", analytics_enabled=False, fill_width=True) as page:
            with gr.Row():
                first = gr.Dropdown(names, value=names[0], label="Model", scale=1)
                second = gr.Dropdown(
                    ["", *names], value="", label="Compare with", scale=1, visible=several
                )
            with gr.Row():
                sides = [self._side(first, shown=True), self._side(second, shown=False)]
            box = gr.MultimodalTextbox(
                file_count="multiple",
                file_types=[*(k for k in inputs if k != "points"), *_POINTS],
                placeholder=f"Ask something; drop files here ({', '.join(inputs)})",
                show_label=False,
                autofocus=True,
                elem_id="question",
            )
            with gr.Row():
                stop = gr.Button("Stop", size="sm", min_width=64, elem_id="stop")
                clear = gr.Button("New chat", size="sm", min_width=64, elem_id="clear")
                as_json = gr.Button("Get JSON", size="sm", min_width=64, elem_id="json")
                as_shard = gr.Button("Get shard", size="sm", min_width=64, elem_id="shard")
            saved = gr.File(label="Saved", visible=False, elem_id="saved")
            settings = self._controls()
            second.change(lambda name: gr.update(visible=bool(name)), second, sides[1].column)
            self._listen(box, stop, clear, sides, settings)
            states = [side.rounds for side in sides]
            as_json.click(self._as_json, states, saved)
            as_shard.click(self._as_shard, states, saved)
        return page

    @staticmethod
    def _controls() -> list[gr.components.Component]:
        with gr.Accordion("Sampling", open=False):
            with gr.Row():
                temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: most likely)")
                top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p")
            with gr.Row():
                longest = gr.Slider(0, 1024, 0, step=1, label="Longest answer (0: the server's)")
                seed = gr.Number(0, precision=0, label="Seed")
        return [temperature, top_p, longest, seed]

    @staticmethod
    def _side(model: gr.Dropdown, *, shown: bool) -> Side:
        with gr.Column(visible=shown, min_width=320) as column:
            chatbot = gr.Chatbot(
                show_label=False,
                editable="user",
                group_consecutive_messages=False,  # a group with a file cannot be edited
                render_markdown=False,  # of a model, which could load pictures from anywhere
                feedback_options=None,
                buttons=["copy"],
                elem_classes=["dialogue"],
                height=None,
            )
        return Side(model, column, chatbot, gr.State([]))

    def _listen(
        self,
        box: gr.MultimodalTextbox,
        stop: gr.Button,
        clear: gr.Button,
        sides: Sequence[Side],
        settings: Sequence[gr.components.Component],
    ) -> None:
        """Connect the components with what they do."""
        running = []
        states = [side.rounds for side in sides]
        chatbots = [side.chatbot for side in sides]
        models = [side.model for side in sides]
        asked = box.submit(self._ask, [box, *models, *states], [box, *states])
        for side in sides:
            inputs = [side.model, side.rounds, *settings]
            outputs = [side.chatbot, side.rounds]
            running.append(asked.success(self._answer, inputs, outputs, concurrency_limit=8))
            for event, change in (
                (side.chatbot.retry, self._retry),
                (side.chatbot.edit, self._edit),
            ):
                changed = event(change, side.rounds, side.rounds)
                running.append(changed.then(self._answer, inputs, outputs, concurrency_limit=8))
            side.chatbot.undo(self._undo, side.rounds, [box, side.chatbot, side.rounds])
            side.chatbot.clear(lambda: [], None, side.rounds)
        stop.click(self._stop, states, states, cancels=running)
        clear.click(lambda: ([], [], [], []), None, [*chatbots, *states], cancels=running)

    def _ask(
        self,
        message: dict[str, Any],
        first: str,
        second: str,
        left: list[Round],
        right: list[Round],
    ) -> tuple[dict[str, Any], list[Round], list[Round]]:
        """Add a question to the dialogues; what is wrong with its files is said at once."""
        text, files = (message["text"] or "").strip(), list(message["files"] or [])
        busy = any(rounds and rounds[-1].get("busy") for rounds in (left, right))
        if busy or not (text or files):  # an error would cover the box until it is closed
            why = (
                "Still answering: wait, or press Stop."
                if busy
                else "Ask something, or drop a file."
            )
            gr.Warning(why, duration=5)
            return message, left, right
        new: Round = {"text": text, "files": files, "answer": None, "media": []}
        unknown = [Path(file).name for file in files if not kind_of(file)]
        if unknown:
            wanted = "an image, a video, a sound or a point cloud (.npy, .ply)"
            new["error"] = f"{unknown[0]}: of no known kind by its name; want {wanted}"
            new["files"] = [file for file in files if kind_of(file)]
        empty = {"text": "", "files": []}
        right = [*right, dict(new)] if second else right
        return empty, [*left, new] if first else left, right

    def _answer(
        self,
        model: str,
        rounds: list[Round],
        temperature: float,
        top_p: float,
        longest: int,
        seed: int,
    ) -> Iterator[tuple[list[dict[str, Any]], list[Round]]]:
        """Stream the answer to the last question, if it has none yet."""
        if not model or not rounds or rounds[-1]["answer"] is not None:
            yield to_bubbles(rounds)[0], rounds
            return
        last = rounds[-1]
        yield to_bubbles(rounds)[0], rounds
        if last.get("error"):
            return
        body = {
            "model": model,
            "messages": to_messages(rounds),
            "temperature": temperature,
            "top_p": top_p,
            **({"max_tokens": int(longest)} if longest else {}),
            "seed": int(seed or 0) + last.get("retries", 0),
        }
        last["answer"], last["busy"] = "", True
        try:
            for delta in self._endpoint.stream(body):
                last["answer"] += delta.get("content") or ""
                parts = delta.get("media") or []
                last["media"] = last["media"] + [(p, _saved(p, self._folder)) for p in parts]
                yield to_bubbles(rounds)[0], rounds
        except RuntimeError as error:
            last["answer"], last["error"] = None, str(error).removeprefix("messages: ")
        finally:
            last["busy"] = False
        yield to_bubbles(rounds)[0], rounds

    @staticmethod
    def _stop(left: list[Round], right: list[Round]) -> tuple[list[Round], list[Round]]:
        """Keep what there is of the answers."""
        for rounds in (left, right):
            if rounds:
                rounds[-1]["busy"] = False
        return left, right

    @staticmethod
    def _retry(rounds: list[Round], data: gr.RetryData) -> list[Round]:
        """Ask a question of the dialogue again, with another seed; what came after it goes."""
        number = to_bubbles(rounds)[1][_first(data.index)]
        again = rounds[number]
        retries = again.get("retries", 0) + 1
        new = {"text": again["text"], "files": again["files"], "answer": None, "media": []}
        return [*rounds[:number], new | {"retries": retries}]

    @staticmethod
    def _edit(rounds: list[Round], data: gr.EditData) -> list[Round]:
        """Ask another question in place of one; what came after it goes."""
        number = to_bubbles(rounds)[1][_first(data.index)]
        files = rounds[number]["files"]
        return [
            *rounds[:number],
            {"text": str(data.value).strip(), "files": files, "answer": None, "media": []},
        ]

    @staticmethod
    def _undo(
        rounds: list[Round], data: gr.UndoData
    ) -> tuple[dict[str, Any], list[dict[str, Any]], list[Round]]:
        """Take a question back into the box."""
        number = to_bubbles(rounds)[1][_first(data.index)]
        taken, left = rounds[number], rounds[:number]
        box = {"text": taken["text"], "files": taken["files"]}
        return box, to_bubbles(left)[0], left

    def _as_json(self, left: list[Round], right: list[Round]) -> Any:  # noqa: ANN401 -- an update
        """Return a file of the dialogue, or of both, as messages of requests."""
        dialogues = [to_messages(rounds) for rounds in (left, right) if rounds]
        text = json.dumps(dialogues[0] if len(dialogues) == 1 else dialogues, ensure_ascii=False)
        return self._download("dialogue.json", text.encode())

    def _as_shard(self, left: list[Round], right: list[Round]) -> Any:  # noqa: ANN401 -- an update
        """Return a ZIP of a folder of shards with the dialogue of the first model."""
        messages = to_messages(left or right)
        if messages and messages[-1]["role"] == "user":
            messages.pop()
        try:
            return self._download("dialogue.zip", self._endpoint.shard(messages))
        except RuntimeError as error:
            raise gr.Error(str(error), duration=10, print_exception=False) from None

    def _download(self, name: str, data: bytes) -> Any:  # noqa: ANN401 -- an update
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        (folder / name).write_bytes(data)
        return gr.update(value=str(folder / name), visible=True)


class Side:
    """The dialogue with one model.

    Args:
        model: its choice.
        column: that is shown or not.
        chatbot: shows the dialogue.
        rounds: the dialogue.
    """

    def __init__(
        self, model: gr.Dropdown, column: gr.Column, chatbot: gr.Chatbot, rounds: gr.State
    ) -> None:
        self.model, self.column, self.chatbot, self.rounds = model, column, chatbot, rounds


def _first(index: int | Sequence[int]) -> int:
    """Return the bubble of an event, which Gradio may give as several."""
    return index if isinstance(index, int) else index[0]


def main() -> None:
    """Serve the page until the process ends."""
    parser = argparse.ArgumentParser(description="A page to chat with the models of an endpoint.")
    parser.add_argument("--endpoint", required=True, help="its address, with /v1")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--login", action="store_true", help=f"ask for {TOKEN_VARIABLE}")
    parser.add_argument(
        "--with-parent", action="store_true", help="end when standard input is closed"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its folder is removed then, too
    if options.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        _serve(options)


def _end_with_parent() -> None:
    """Interrupt the page once the process that holds the other end of the pipe has ended."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGINT)


def _serve(options: argparse.Namespace) -> None:
    token = os.environ.get(TOKEN_VARIABLE, "")
    with tempfile.TemporaryDirectory(prefix="mmloom-page-") as folder:
        page = Page(Endpoint(options.endpoint, token), Path(folder)).build()
        page.queue(default_concurrency_limit=16).launch(
            server_name=options.host,
            server_port=options.port,
            auth=(USER, token) if options.login else None,
            allowed_paths=[folder],
            share=False,
            quiet=True,
            css=_CSS,
            theme=gr.themes.Soft(),
            footer_links=[],
            pwa=False,
            ssr_mode=False,
        )


if __name__ == "__main__":
    main()
