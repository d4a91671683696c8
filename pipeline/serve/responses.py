"""Chat completions as OpenAI's API sends them: one object, or chunks of a stream, and errors."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from pipeline.generate.replies import MIMES, GeneratedMedium
from pipeline.serve.jobs import Done, Likely, TokenLogprobs


class Completion:
    """What all parts of one completion share.

    Args:
        model: its name.
        prompt_tokens: of the prompt.
    """

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model, self._prompt_tokens = model, prompt_tokens

    def whole(
        self, ends: Sequence[Done], logprobs: Sequence[Sequence[TokenLogprobs]] | None
    ) -> dict[str, Any]:
        """Return the completion, given the end of each choice, and its tokens if asked for."""
        choices = []
        for index, end in enumerate(ends):
            message: dict[str, Any] = {"role": "assistant", "content": end.text, "refusal": None}
            if end.media:
                message["media"] = media_parts(end.media)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": None if logprobs is None else _logprobs(logprobs[index]),
                    "finish_reason": end.reason,
                }
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage(ends)}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[TokenLogprobs] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        """Return a chunk with something more of a choice."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, ends: Sequence[Done]) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens, the last of a stream that asks for it."""
        head = self._head("chat.completion.chunk")
        return {**head, "choices": [], "usage": self._usage(ends)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self, ends: Sequence[Done]) -> dict[str, int]:
        generated = sum(end.tokens for end in ends)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
        }


def error_response(
    message: str, *, status: int, param: str | None = None, code: str | None = None
) -> Response:
    """Return OpenAI's error object as a response."""
    headers = {"Retry-After": "1"} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    content = error_object(message, status=status, param=param, code=code)
    return JSONResponse(content, status_code=status, headers=headers)


def error_object(
    message: str, *, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    text = f"{param}: {message}" if param else message
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def media_parts(media: Sequence[GeneratedMedium]) -> list[dict[str, Any]]:
    """Return generated media as parts of a message, in the form in which requests give them."""
    parts = []
    for medium in media:
        data = base64.b64encode(medium.encoded()).decode()
        url = {"url": f"data:{MIMES[medium.kind]};base64,{data}"}
        parts.append({"type": f"{medium.kind}_url", f"{medium.kind}_url": url})
    return parts


def _logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = [
        {**_likely(each.chosen), "top_logprobs": [_likely(top) for top in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _likely(token: Likely) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
