"""`python -m pipeline chat`: a dialogue with a trained run in the terminal, streamed."""

from __future__ import annotations

import base64
import json
import logging
import mimetypes
import queue
import readline  # noqa: F401 -- line editing and history in `input`
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from etl.cli import UserError, parse
from etl.storage.atomic import atomic_file
from etl.storage.schema import (
    PLACEHOLDERS,
    Medium,
    Sample,
    SampleError,
    Turn,
    escape,
    sha256,
    split_media,
)
from etl.storage.shards import write_folder
from pipeline.data.encode import Example
from pipeline.generate.replies import GeneratedMedium, GenerationSettings, Reply
from pipeline.serve.engine import Engine, EngineLimits
from pipeline.serve.jobs import Done, Event, Failed, Job, JobSettings, Piece
from pipeline.serve.models import ServedModel, load_models

log = logging.getLogger(__name__)

_HELP = """\
/image FILE, /video FILE, /audio FILE, /points FILE   show a file with the next question
/retry            answer the last question again, with another seed (temperature 0 ignores it)
/undo             take back the last question and its answer
/clear            begin anew
/set NAME VALUE   temperature, top_p, max_new_tokens, seed; of media: steps, guidance_scale
/set              the settings of now
/save PATH        the dialogue as JSON (PATH.json), or as a shard (a new folder)
/help             these lines
/quit             or Ctrl-D; Ctrl-C stops an answer
A line that ends with \\ goes on in the next one."""
_SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_p": float,
    "max_new_tokens": int,
    "seed": int,
    "steps": int,
    "guidance_scale": float,
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Talk with a trained run, or an exported folder, about files or without any; /help helps."""

    run: Path
    """The run folder of a trained stage, or an exported folder."""
    checkpoint: str = "newest"
    """Of a run: `newest`, `best` (by the loss of its validations), or the step of one."""
    output: Path | None = None
    """Folder for generated media. Default: RUN/chat."""
    temperature: float = 0.0
    """Of sampling text; 0 takes the most likely token."""
    top_p: float = 1.0
    """Share of the probability, of the most likely tokens, that is sampled from."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    seed: int = 0
    """Of sampled tokens, and of the first noise of generated media."""


@dataclass
class Dialogue:
    """A dialogue so far: whole rounds, then what is shown with the next question.

    Attributes:
        turns: a user's and the assistant's, in turn.
        media: of each turn.
        shown: for the next question.
    """

    turns: list[Turn] = field(default_factory=list)
    media: list[tuple[Medium, ...]] = field(default_factory=list)
    shown: list[Medium] = field(default_factory=list)

    def ask(self, text: str) -> None:
        """Add a question about what is shown."""
        placeholders = [PLACEHOLDERS[medium.kind] for medium in self.shown]
        self.turns.append(Turn(role="user", text="\n".join([*placeholders, escape(text)])))
        self.media.append(tuple(self.shown))
        self.shown = []

    def answer(self, text: str, media: Sequence[Medium] = ()) -> None:
        """Add the answer to the last question."""
        self.turns.append(Turn(role="assistant", text=text))
        self.media.append(tuple(media))

    def take_back(self, turns: int) -> None:
        """Remove the last turns."""
        del self.turns[len(self.turns) - turns :], self.media[len(self.media) - turns :]

    def sample(self, name: str, *, open_end: bool = False) -> Sample:
        """Return the dialogue as a sample; with `open_end` an empty answer follows."""
        end = (Turn(role="assistant", text=""),) if open_end else ()
        media = tuple(medium for own in self.media for medium in own)
        return Sample(id=name, source="chat", turns=(*self.turns, *end), media=media)


def chat(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ChatOptions, prog="python -m pipeline chat", args=args)
    names = ("temperature", "top_p", "max_new_tokens", "seed")
    settings = GenerationSettings(**{name: getattr(options, name) for name in names})
    [(name, served)] = load_models([options.run], checkpoint=options.checkpoint).items()
    if served.stage.prompt != "chat":
        log.warning(
            "%s: trained on captions alone (MM-PT): it describes the files and "
            "ignores the questions",
            options.run,
        )
    with Engine({name: served}, EngineLimits(batch=1)) as engine:
        session = Session(engine, served, settings, options.output or options.run / "chat")
        session.run()
    return 0


class Session:
    """A user's session.

    Args:
        engine: answers.
        served: the model.
        settings: of answers, until /set changes them.
        output: folder for generated media.
    """

    def __init__(
        self, engine: Engine, served: ServedModel, settings: GenerationSettings, output: Path
    ) -> None:
        self._engine, self._served = engine, served
        self._settings, self._output = settings, output
        self._dialogue = Dialogue()
        self._answers = 0

    def run(self) -> None:
        """Read lines until the end; mistakes are reported, and the session goes on."""
        interactive = sys.stdin.isatty()
        if interactive:
            kinds = ", ".join(self._served.spec.modalities)
            _say(f"{self._served.name} takes text, {kinds}. /help lists the commands.\n")
        while (line := _read_line("› " if interactive else "")) is not None:
            try:
                if not line.startswith("/"):
                    if line.strip() or self._dialogue.shown:
                        self._ask(line)
                elif not self._command(*line[1:].split(maxsplit=1)):
                    return
            except (UserError, SampleError) as error:
                _say(f"error: {error}\n")

    def _command(self, name: str = "", rest: str = "") -> bool:
        """Do what a line with a slash says; returns whether the session goes on."""
        if name in ("quit", "exit"):
            return False
        dialogue = self._dialogue
        if name in ("clear", "undo", "retry", "help") and rest:
            raise UserError(f"/{name}: {rest!r}, want nothing after it")
        if name in PLACEHOLDERS:
            self._show(name, rest.strip())
        elif name == "clear":
            self._dialogue = Dialogue()
        elif name in ("undo", "retry"):
            if not dialogue.turns:
                raise UserError(f"/{name}: there is no question yet")
            if name == "undo":
                dialogue.take_back(2)
            else:
                self._retry()
        elif name == "set":
            self._set(*rest.split())
        elif name == "save":
            self._save(rest.strip())
        elif name == "help":
            _say(f"{_HELP}\n")
        else:
            raise UserError(f"/{name}: unknown; /help lists the commands")
        return True

    def _show(self, kind: str, name: str) -> None:
        """Show a file with the next question, if it can be decoded."""
        if kind not in self._served.spec.modalities:
            takes = ", ".join(self._served.spec.modalities)
            raise UserError(f"/{kind}: {self._served.name} takes {takes}, not {kind}")
        if not name:
            raise UserError(f"/{kind}: want a file")
        file = Path(name).expanduser()
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        mime = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        medium = Medium(kind=kind, data=data, mime=mime, sha256=sha256(data))
        alone = Dialogue(shown=[medium])
        alone.ask("")
        try:
            self._encode(alone, max_new_tokens=1)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        self._dialogue.shown.append(medium)

    def _set(self, *words: str) -> None:
        if not words:
            _say(" ".join(f"{name}={getattr(self._settings, name)}" for name in _SETTINGS) + "\n")
            return
        name, *values = words
        if name not in _SETTINGS:
            raise UserError(f"/set: {name!r}, want one of {', '.join(_SETTINGS)}")
        if len(values) != 1:
            raise UserError(f"/set {name}: {' '.join(values)!r}, want one value")
        number = _SETTINGS[name]
        try:
            value: Any = number(values[0])
            self._settings = replace(self._settings, **{name: value})
        except UserError as error:  # names the option of other commands
            raise UserError(f"/set {name}:{str(error).partition(':')[2]}") from None
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise UserError(f"/set {name}: {values[0]!r}, want {kind}") from None

    def _save(self, name: str) -> None:
        if not self._dialogue.turns:
            raise UserError("/save: there is nothing to save yet")
        if not name:
            raise UserError("/save: want a path: NAME.json, or a folder for a shard")
        path = Path(name).expanduser()
        if path.exists():
            raise UserError(f"{path}: exists already; want another name")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}")
        sample = self._dialogue.sample("chat")
        try:
            if path.suffix == ".json":
                with atomic_file(path) as stream:
                    stream.write(json.dumps(messages(sample), ensure_ascii=False).encode())
            else:
                write_folder(path, iter([sample]), job="chat", rows_per_shard=1)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        _say(f"saved: {path}\n")

    def _retry(self) -> None:
        """Answer the last question again; where that fails, its answer stays."""
        turn, media, settings = self._dialogue.turns[-1], self._dialogue.media[-1], self._settings
        self._dialogue.take_back(1)
        self._settings = replace(settings, seed=settings.seed + 1)
        try:
            self._answer()
        except (UserError, SampleError):
            self._dialogue.answer(turn.text, media)
            self._settings = settings
            raise

    def _ask(self, text: str) -> None:
        shown = [*self._dialogue.shown]
        self._dialogue.ask(text)
        try:
            self._answer()
        except (UserError, SampleError):
            self._dialogue.take_back(1)
            self._dialogue.shown = shown
            raise

    def _answer(self) -> None:
        """Answer the last question, and print the answer while it is generated."""
        events = queue.SimpleQueue[Event]()
        example = self._encode(self._dialogue, max_new_tokens=self._settings.max_new_tokens)
        job = Job(
            model=self._served.name,
            example=example,
            settings=JobSettings(generation=self._settings),
            on_event=events.put,
        )
        self._engine.submit([job])
        text = ""
        media: tuple[GeneratedMedium, ...] = ()
        try:
            while not isinstance(event := events.get(), Done):
                if isinstance(event, Failed):
                    raise UserError(event.message)
                assert isinstance(event, Piece)
                _say(event.text)
                text += event.text
            media = tuple(event.media)
        except KeyboardInterrupt:
            job.cancel()
            _say(" (stopped)")
        _say("\n")
        self._dialogue.answer(text, self._keep(text, media))

    def _encode(self, dialogue: Dialogue, *, max_new_tokens: int) -> Example:
        """Encode a dialogue that is to be answered."""
        try:
            return self._served.encoder.encode_prompt(
                dialogue.sample("asked", open_end=True),
                max_new_tokens=max_new_tokens,
                asks_for_media=self._served.generates_media,
            )
        except SampleError as error:
            raise UserError(str(error).removeprefix("sample asked: ")) from None

    def _keep(self, text: str, media: Sequence[GeneratedMedium]) -> list[Medium]:
        """Write generated media to files, and return them as the dialogue holds them."""
        if not media:
            return []
        self._answers += 1
        reply = Reply(id=f"answer-{self._answers}", text=text, media=tuple(media))
        kept = []
        for each in reply.save(self._output)["media"]:
            file = self._output / each["file"]
            _say(f"{each['kind']}: {file}\n")
            data, mime = file.read_bytes(), mimetypes.guess_type(file.name)[0] or ""
            kept.append(Medium(kind=each["kind"], data=data, mime=mime, sha256=sha256(data)))
        return kept


def messages(sample: Sample) -> list[dict[str, object]]:
    """Return a dialogue as OpenAI's messages, its media in them as data: URIs."""
    media = iter(sample.media)
    found: list[dict[str, object]] = []
    for turn in sample.turns:
        parts: list[dict[str, object]] = []
        for kind, words in split_media(turn.text):
            if not kind:
                parts.append({"type": "text", "text": words.strip("\n")})
                continue
            medium = next(media)
            data = base64.b64encode(medium.data).decode()
            url = {"url": f"data:{medium.mime};base64,{data}"}
            parts.append({"type": f"{kind}_url", f"{kind}_url": url})
        found.append({"role": turn.role, "content": parts})
    return found


def _read_line(prompt: str) -> str | None:
    """Return the user's next line, and those that it goes on in; None at the end."""
    lines: list[str] = []
    while True:
        try:
            line = input("… " if prompt and lines else prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:  # takes back what was typed
            _say("\n")
            lines.clear()
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line.removesuffix("\\"))


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
