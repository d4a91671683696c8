"""Strict decoding of JSON values into frozen dataclasses.

Unknown keys, missing keys and wrong types are errors that name the dotted field. A union of classes
is decoded by the `kind` that the value names. It is here, and not where configurations are read, so
that `model.load` can read the spec of an exported folder.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from model.spec.base import FieldError, SpecError, suggest

T = TypeVar("T")
# Evaluates annotations as source code, which takes most of the time of decoding.
_type_hints = functools.cache(typing.get_type_hints)
CheckKey = Callable[[str, str, Collection[str]], None]


class DecodeError(SpecError):
    """A JSON value that does not fit a dataclass; the message names the field."""


def decode(
    cls: type[T],
    value: object,
    where: str,
    *,
    check_key: CheckKey = lambda where, key, fields: None,
) -> T:
    """Decode a JSON value into `cls`.

    Args:
        cls: a dataclass whose fields are dataclasses, tuples, literals, unions, plain types, or
            dicts of any JSON.
        value: the parsed JSON (or YAML).
        where: the dotted name of the value, for messages.
        check_key: called with where, key and fields before an unknown key is an error; it may raise
            one of its own.

    Raises:
        DecodeError: the value does not fit; the message names the field and what would be right.
        SpecError: a spec that contradicts itself.
    """
    result: T = _Decoder(check_key).decode(cls, value, where)
    return result


class _Decoder:
    def __init__(self, check_key: CheckKey) -> None:
        self._check_key = check_key

    def decode(self, kind: Any, value: object, where: str) -> Any:  # noqa: ANN401 -- types as values
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self._fields(typing.cast(type, kind), value, where)
        if origin is typing.Literal:
            return _one_of(typing.get_args(kind), value, where)
        if origin in (typing.Union, types.UnionType):
            return self._union(typing.get_args(kind), value, where)
        if origin is tuple:
            return self._tuple(typing.get_args(kind), value, where)
        return _plain(origin or kind, value, where)

    def _fields(self, cls: type, value: object, where: str) -> object:
        if not isinstance(value, Mapping):
            raise DecodeError(f"{where}: {value!r}, want the fields of {cls.__name__}")
        hints = _type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for key in value:
            if key not in fields:
                self._check_key(where, str(key), fields)
                raise DecodeError(f"{where}.{key}: no such field; {suggest(str(key), fields)}")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING is field.default_factory
            if required and name not in value:
                raise DecodeError(f"{where}.{name}: missing")
        items = {
            key: self.decode(hints[key], item, f"{where}.{key}") for key, item in value.items()
        }
        try:
            return cls(**items)
        except FieldError as error:
            raise DecodeError(f"{where}.{error}") from None

    def _union(self, kinds: tuple[Any, ...], value: object, where: str) -> object:
        if value is None and type(None) in kinds:
            return None
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        if len(kinds) == 1:
            return self.decode(kinds[0], value, where)
        tagged = {typing.get_args(_type_hints(kind)["kind"])[0]: kind for kind in kinds}
        tag = value.get("kind") if isinstance(value, Mapping) else None
        if tag not in tagged:
            raise DecodeError(f"{where}.kind: {tag!r}, want one of {', '.join(tagged)}")
        return self.decode(tagged[tag], value, where)

    def _tuple(self, kinds: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise DecodeError(f"{where}: {value!r}, want a list")
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise DecodeError(f"{where}: {len(value)} items, want {len(kinds)}")
        pairs = zip(kinds, value, strict=True)
        return tuple(
            self.decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs)
        )


def _one_of(choices: tuple[object, ...], value: object, where: str) -> object:
    if value not in choices:
        raise DecodeError(f"{where}: {value!r}, want one of {', '.join(map(repr, choices))}")
    return value


def _plain(kind: type, value: object, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DecodeError(f"{where}: {value!r}, want {kind.__name__}")
    return value
