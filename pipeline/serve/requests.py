"""Bodies of chat completions: from JSON to a dialogue and settings, or what is wrong in one line.

The fields are OpenAI's (platform.openai.com/docs/api-reference/chat/create). Media come in the
body: a request names no file, and its URLs are fetched by the ETL's safe HTTP, or refused.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from etl.storage.schema import (
    PLACEHOLDER_PATTERN,
    PLACEHOLDERS,
    Medium,
    Sample,
    Turn,
    escape,
    sha256,
)
from model.spec.base import suggest

Fetch = Callable[[str], bytes]

_URL_PARTS = {
    "image_url": "image",
    "audio_url": "audio",
    "video_url": "video",
    "points_url": "points",
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_STOPS = 4
_MAX_LOGPROBS = 20
_MAX_SEED = 1 << 63

_NEUTRAL: Mapping[str, Collection[object]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "store": (False,),
}
"""Fields of OpenAI's that nothing here implements, and values that ask for nothing."""
_IGNORED = ("user", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier")
_MESSAGE_FIELDS = ("role", "content", "media", "name")


class RequestError(ValueError):
    """A mistake in a request.

    Args:
        message: what is wrong, and what would be right.
        param: the field.
        status: of HTTP.
        code: of OpenAI's error object.
    """

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What a request may ask for.

    Args:
        choices: the largest `n`.
        media: of all messages.
        messages: of a dialogue.
        max_new_tokens: `max_tokens` of a request that does not say.
    """

    choices: int = 16
    media: int = 32
    messages: int = 512
    max_new_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A chat completion that is asked for.

    Args:
        model: the name of the model.
        sample: the dialogue, with an empty last turn of the assistant.
        seed: of the first choice.
        max_tokens: longest answer; None where the request does not say.
        choices: how many answers.
        stream: whether the answer is sent while it is generated.
        usage: whether the end of a stream says how many tokens it took.
    """

    model: str
    sample: Sample
    seed: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int | None
    stops: tuple[str, ...]
    logprobs: int | None
    steps: int | None
    guidance_scale: float | None
    choices: int
    stream: bool
    usage: bool


def parse_request(
    body: object, *, models: Sequence[str], limits: RequestLimits, fetch: Fetch | None
) -> ChatRequest:
    """Return what a body of /v1/chat/completions asks for.

    Args:
        body: as decoded from JSON.
        models: names of those that are served.
        limits: of a request.
        fetch: gets the bytes of a URL; None refuses URLs.

    Raises:
        RequestError: a mistake.
    """
    fields = _Fields(body)
    model = fields.take("model", str)
    if model not in models:
        raise RequestError(
            f"model {model!r} is not served: {suggest(model, models)}",
            param="model",
            status=404,
            code="model_not_found",
        )
    turns, media = _dialogue(fields.take("messages", list), limits, fetch)
    if turns[-1].role == "assistant":
        raise RequestError("the last message is the assistant's, want the user's", param="messages")
    turns = (*turns, Turn(role="assistant", text=""))
    limit = fields.number("max_tokens", None, 1, None, whole=True)
    limit = fields.number("max_completion_tokens", limit, 1, None, whole=True)
    logprobs = fields.take("logprobs", bool, False)
    top = fields.number("top_logprobs", None, 0, _MAX_LOGPROBS, whole=True)
    if top is not None and not logprobs:
        raise RequestError("want logprobs: true with it", param="top_logprobs")
    options = fields.take("stream_options", dict, {})
    request = ChatRequest(
        model=model,
        sample=Sample(id="asked", source="", turns=turns, media=media),
        seed=_seed(
            fields.number("seed", secrets.randbits(32), -_MAX_SEED, _MAX_SEED - 1, whole=True)
        ),
        temperature=float(fields.number("temperature", 1.0, 0, 2)),
        top_p=float(fields.number("top_p", 1.0, 0, 1)),
        top_k=int(fields.number("top_k", 0, 0, None, whole=True)),
        repetition_penalty=float(fields.number("repetition_penalty", 1.0, 0, 100)),
        max_tokens=None if limit is None else int(limit),
        stops=_stops(fields.take("stop", (str, list), [])),
        logprobs=int(top or 0) if logprobs else None,
        steps=_int(fields.number("steps", None, 1, 1000, whole=True)),
        guidance_scale=fields.number("guidance_scale", None, 1, 100),
        choices=int(fields.number("n", 1, 1, limits.choices, whole=True)),
        stream=fields.take("stream", bool, False),
        usage=bool(options.get("include_usage")),
    )
    fields.check_rest()
    for name, most in (("top_p", 1), ("repetition_penalty", 100)):
        if not getattr(request, name):
            raise RequestError(f"0, want a number above 0, and at most {most}", param=name)
    return request


def parse_dialogue(body: object, *, limits: RequestLimits, fetch: Fetch | None) -> Sample:
    """Return the messages of a body as a sample, which ends with an answer.

    Raises:
        RequestError: a mistake.
    """
    fields = _Fields(body)
    turns, media = _dialogue(fields.take("messages", list), limits, fetch)
    fields.check_rest()
    if turns[-1].role != "assistant":
        raise RequestError("the last message is not the assistant's", param="messages")
    return Sample(id="dialogue", source="chat", turns=turns, media=media)


class _Fields:
    """The fields of a body; each is taken once, and what is left must ask for nothing."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict):
            raise RequestError("the body is not a JSON object")
        # A client may send all fields of OpenAI's, null where it wants the default.
        self._left = {name: value for name, value in body.items() if value is not None}
        self._taken: list[str] = []

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:  # noqa: ANN401
        """Return a field of a type; without a default it is required."""
        self._taken.append(name)
        if name not in self._left:
            if default is None:
                raise RequestError("missing", param=name)
            return default
        value = self._left.pop(name)
        if not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(each.__name__ for each in kinds)
            raise RequestError(f"{type(value).__name__}, want {names}", param=name)
        return value

    def number(
        self,
        name: str,
        default: float | None,
        least: float,
        most: float | None,
        *,
        whole: bool = False,
    ) -> Any:  # noqa: ANN401 -- int or float, as the field has it
        """Return a number between two bounds."""
        self._taken.append(name)
        value = self._left.pop(name, None)
        if value is None:
            return default
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not least <= value or (most is not None and value > most):
            kind = "a whole number" if whole else "a number"
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise RequestError(f"{str(value)[:40]!r}, want {kind} {bounds}", param=name)
        return value

    def check_rest(self) -> None:
        """Raise RequestError for a field that is unknown, or that nothing here implements."""
        for name, value in self._left.items():
            if name in _IGNORED or value in _NEUTRAL.get(name, ()):
                continue
            if name in _NEUTRAL:
                raise RequestError("not supported by this server", param=name)
            known = sorted({*self._taken, *_NEUTRAL, *_IGNORED})
            raise RequestError(f"unknown field: {suggest(name, known)}", param=name)


def _seed(value: float) -> int:
    """Return a seed of sampling, from 0; OpenAI's may be negative."""
    return int(value) % _MAX_SEED


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _stops(value: str | list[object]) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if len(stops) > _MAX_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(f"want at most {_MAX_STOPS} texts, none empty", param="stop")
    return tuple(map(str, stops))


def _dialogue(
    messages: Sequence[object], limits: RequestLimits, fetch: Fetch | None
) -> tuple[tuple[Turn, ...], tuple[Medium, ...]]:
    """Return the turns of messages, and their media."""
    if not messages or len(messages) > limits.messages:
        raise RequestError(
            f"{len(messages)} messages, want 1 to {limits.messages}", param="messages"
        )
    turns: list[Turn] = []
    media: list[Medium] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role, text, own = _message(message, where, fetch)
        turns.append(Turn(role=role, text=text))
        media += own
        if len(media) > limits.media:
            raise RequestError(f"more than {limits.media} media in all messages", param=where)
    return tuple(turns), tuple(media)


def _message(message: object, where: str, fetch: Fetch | None) -> tuple[str, str, list[Medium]]:
    """Return role, text with placeholders, and media of a message."""
    if not isinstance(message, dict):
        raise RequestError("want an object with role and content", param=where)
    unknown = [
        name
        for name, value in message.items()
        if name not in _MESSAGE_FIELDS and value not in (None, [])
    ]
    if unknown:
        raise RequestError("not supported by this server", param=f"{where}.{unknown[0]}")
    role = message.get("role")
    if role not in _ROLES:
        raise RequestError(
            f"{str(role)[:40]!r}, want one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    content = message.get("content")
    if isinstance(content, str):
        parts: list[object] = [{"type": "text", "text": _characters(content, f"{where}.content")}]
    elif isinstance(content, list):
        parts = content
    else:
        raise RequestError("want a text or a list of parts", param=f"{where}.content")
    if message.get("media"):
        return _generated(message, where, fetch)
    texts: list[str] = []
    media: list[Medium] = []
    for number, part in enumerate(parts):
        found = _part(part, f"{where}.content[{number}]", fetch)
        if isinstance(found, str):
            texts.append(escape(found))
        else:
            texts.append(PLACEHOLDERS[found.kind])
            media.append(found)
    return _ROLES[role], "\n".join(texts), media


def _generated(
    message: Mapping[str, Any], where: str, fetch: Fetch | None
) -> tuple[str, str, list[Medium]]:
    """Return an earlier answer as this server sent it: text with placeholders, and its media."""
    text, parts = message["content"], message["media"]
    if message["role"] != "assistant" or not isinstance(text, str) or not isinstance(parts, list):
        raise RequestError("want a list beside an assistant's text", param=f"{where}.media")
    found = [_part(part, f"{where}.media[{n}]", fetch) for n, part in enumerate(parts)]
    media = [each for each in found if isinstance(each, Medium)]
    if PLACEHOLDER_PATTERN.findall(text) != [PLACEHOLDERS[each.kind] for each in media]:
        raise RequestError("not those of the placeholders in content", param=f"{where}.media")
    return "assistant", _characters(text, f"{where}.content"), media


def _characters(text: str, where: str) -> str:
    """Return a text; JSON can escape one half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise RequestError(f"{half} is no character", param=where) from None
    return text


def _part(part: object, where: str, fetch: Fetch | None) -> str | Medium:
    """Return the text or the medium of a part."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "input_audio", *_URL_PARTS):
        known = ", ".join(("text", "input_audio", *_URL_PARTS))
        raise RequestError(f"type {str(kind)[:40]!r}, want one of {known}", param=where)
    value = part.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise RequestError("want a text", param=f"{where}.text")
        return _characters(value, f"{where}.text")
    if not isinstance(value, dict):
        raise RequestError("want an object", param=f"{where}.{kind}")
    if kind == "input_audio":
        data = _base64(value.get("data"), f"{where}.input_audio.data")
        return _medium("audio", data, f"audio/{str(value.get('format', 'wav'))[:20]}")
    return _from_url(_URL_PARTS[kind], value.get("url"), f"{where}.{kind}.url", fetch)


def _from_url(kind: str, url: object, where: str, fetch: Fetch | None) -> Medium:
    if not isinstance(url, str):
        raise RequestError("want a text", param=where)
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "data":
        head, comma, content = rest.partition(",")
        mime, *options = head.split(";")
        if not comma:
            raise RequestError("a data URI without a comma", param=where)
        if "base64" in options:
            return _medium(kind, _base64(content, where), mime)
        return _medium(kind, unquote_to_bytes(content), mime)
    if scheme.lower() not in ("http", "https"):
        raise RequestError("want a data: URI, or one of http or https", param=where)
    if fetch is None:
        raise RequestError(
            "this server fetches no URLs (--fetch-urls); want a data: URI", param=where
        )
    try:
        data = fetch(url)
    except ValueError as error:
        raise RequestError(f"cannot be fetched ({error})", param=where) from None
    return _medium(kind, data, "")


def _base64(text: object, where: str) -> bytes:
    if not isinstance(text, str):
        raise RequestError("want a text in base64", param=where)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"not base64 ({error})", param=where) from None


def _medium(kind: str, data: bytes, mime: str) -> Medium:
    if not data:
        raise RequestError(f"an empty {kind}", param="messages")
    mime = mime or "application/octet-stream"
    return Medium(kind=kind, data=data, mime=mime, sha256=sha256(data))
