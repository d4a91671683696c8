"""Strict decoding of JSON values into frozen dataclasses.

Unknown keys, missing keys and wrong types are errors that name the dotted field. A union of classes
is decoded by the `kind` that the value names.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from etl.cli import UserError
from pipeline.config.older_versions import check_key

T = TypeVar("T")


def decode(cls: type[T], value: object, where: str) -> T:
    """Decode a JSON value into `cls`.

    Args:
        cls: a dataclass whose fields are dataclasses, tuples, literals, unions or plain types.
        value: the parsed JSON (or YAML).
        where: the dotted name of the value, for messages.

    Raises:
        OlderVersionError: the value has a key that was renamed.
        UserError: the value does not fit; the message names the field and what would be right.
    """
    result: T = _decode(cls, value, where)
    return result


def _decode(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401 -- types as values
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast(type, kind), value, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UserError(f"{where}: {value!r}, want one of {', '.join(map(repr, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or kind  # of dict[str, Any], whose items may be anything
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: {value!r}, want {kind.__name__}")
    return value


def _decode_fields(cls: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {value!r}, want the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            check_key(where, str(key), fields)
            near = get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"want {', '.join(fields)}"
            raise UserError(f"{where}.{key}: no such field; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING is field.default_factory
        if required and name not in value:
            raise UserError(f"{where}.{name}: missing")
    return cls(**{key: _decode(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _decode_union(kinds: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _decode(kinds[0], value, where)
    tagged = {typing.get_args(typing.get_type_hints(kind)["kind"])[0]: kind for kind in kinds}
    tag = value.get("kind") if isinstance(value, Mapping) else None
    if tag not in tagged:
        raise UserError(f"{where}.kind: {tag!r}, want one of {', '.join(tagged)}")
    return _decode(tagged[tag], value, where)


def _decode_tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {value!r}, want a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise UserError(f"{where}: {len(value)} items, want {len(kinds)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))
