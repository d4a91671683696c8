"""What all of mmloom's commands share: typed options, and one line for a user's mistake.

`pipeline` uses it, too; docs/design.md says why it is in `etl`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import logging
import os
import re
import select
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

import tyro

Options = TypeVar("Options")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_BOX = re.compile(r"[╭╮╰╯│─]+")


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong, where, and what would be right."""


class RankError(UserError):
    """A mistake that one of several ranks has noticed, and only this one can report."""


def parse(
    options: type[Options], *, prog: str, args: Sequence[str], default: Options | None = None
) -> Options:
    """Read a command line into a frozen dataclass.

    An option with several values may be repeated: `--set A --set B` means `--set A B`.

    Args:
        options: the dataclass; its docstring is the command's help.
        prog: the command as the user typed it.
        args: the command-line arguments after it.
        default: the default values, if not those of the class itself.

    Raises:
        UserError: an unknown option or a value of the wrong type, with tyro's suggestion.
    """
    errors = io.StringIO()
    merged = _merge_repeated(options, args)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(options, prog=prog, args=merged, default=default)  # type: ignore[return-value]
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(errors.getvalue(), prog)) from None


def _merge_repeated(options: type[Options], args: Sequence[str]) -> list[str]:
    """Merge the repetitions of an option with several values; tyro would keep only the last."""
    multiple = set(_multiple(options))
    groups: list[list[str]] = [[]]
    merged: dict[str, list[str]] = {}
    for arg in args:
        name, equals, value = arg.partition("=")
        name = name.replace("_", "-")
        if not arg.startswith("--"):
            groups[-1].append(arg)
        elif name not in multiple:
            groups.append([arg])
        else:
            group = merged.setdefault(name, [name])
            group += [value] if equals else []
            groups = [other for other in groups if other is not group] + [group]
    return [arg for group in groups for arg in group]


def _multiple(options: type) -> Iterator[str]:
    """The options with several values; those of nested dataclasses have names of their own."""
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        annotated = typing.get_origin(hint) is Annotated
        kind, *notes = typing.get_args(hint) if annotated else (hint,)
        if typing.get_origin(kind) is tuple:
            names = [note.name for note in notes if getattr(note, "name", None)]
            yield "--" + (names or [name])[0].replace("_", "-")
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _multiple(kind)


def _one_line(box: str, prog: str) -> str:
    """The text of tyro's error box on one line, without its title and its closing hint."""
    lines = [_BOX.sub(" ", line).strip() for line in box.splitlines()]
    body = [line for line in lines[1:] if line]
    text = " ".join(body).split("For full helptext")[0]
    return f"{prog}: {' '.join(text.split())} (see {prog} --help)"


def main(
    run: Callable[[Sequence[str]], int | None],
    *,
    mistakes: tuple[type[Exception], ...] = (UserError,),
) -> None:
    """Run a command on `sys.argv` and exit; a mistake gets one line on stderr and exit code 2.

    A full disk is one line as well, and so is Ctrl-C (with what the `KeyboardInterrupt` says, if
    anything). Under a launcher every rank makes the same mistake, so only rank 0 reports it, except
    for a `RankError`. A command whose output is piped to one that ends early, such as `head`, ends
    as quietly as other Unix tools do.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if is_first else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    code: int | None
    try:
        try:
            code = run(sys.argv[1:])
        except mistakes as mistake:
            if is_first or isinstance(mistake, RankError):
                sys.stderr.write(f"error: {' '.join(str(mistake).split())}\n")
            code = 2
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            where = f"{error.filename}: " if error.filename else ""
            sys.stderr.write(f"error: {where}{error.strerror}; make room, and repeat the command\n")
            code = 2
        except KeyboardInterrupt as interrupt:
            if is_first:
                sys.stderr.write(f"interrupted{''.join(f'; {word}' for word in interrupt.args)}\n")
            code = 128 + signal.SIGINT
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_broken():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discards what is still buffered
        code = 128 + signal.SIGPIPE
    sys.exit(code or 0)


def _stdout_is_broken() -> bool:
    """Return whether the process that read this one's output has ended."""
    poll = select.poll()
    poll.register(1, 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))
