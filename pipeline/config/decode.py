"""Strict decoding of configurations; keys that were renamed are named as such."""

from __future__ import annotations

from typing import TypeVar

from etl.cli import UserError
from model.spec import decode as specs
from pipeline.config.older_versions import check_key

T = TypeVar("T")


def decode(cls: type[T], value: object, where: str) -> T:
    """Decode a JSON value into a dataclass, as `model.spec.decode` does.

    Raises:
        OlderVersionError: the value has a key that was renamed.
        UserError: the value does not fit; the message names the field and what would be right.
        SpecError: a spec that contradicts itself.
    """
    try:
        return specs.decode(cls, value, where, check_key=check_key)
    except specs.DecodeError as error:
        raise UserError(str(error)) from None
