"""Standard output and error as they may be: closed, full, hung up, or of another encoding.

What is printed is a report about something that is safe in a file. So an output that fails costs
one line and the exit code 1, standard error never costs anything, and a character that the locale
has not is written as one that it has.
"""

from __future__ import annotations

import codecs
import io
import os
import sys

from llmprof.errors import EXIT_ENGINE_FAILED, LlmprofError
from llmprof.plaintext import ascii_for

TYPE_CHECKING = False  # as type checkers read it: see llmprof.cli
if TYPE_CHECKING:
    from typing import Any, TextIO

HANDLER = "llmprof"
"""Name of the codec error handler."""


class OutputFailed(LlmprofError):
    """Standard output takes no more: disk full, closed."""

    exit_code = EXIT_ENGINE_FAILED


class _Output(io.FileIO):
    """A descriptor whose trouble is an ``OutputFailed``; a reader that left stays BrokenPipeError,
    which is no trouble."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as why:
            raise OutputFailed(f"standard output cannot be written: {why.strerror}") from None


class _Closed(io.RawIOBase):
    """Says so once: what is still in a buffer at exit goes nowhere."""

    _said = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if not self._said:
            self._said = True
            raise OutputFailed("standard output cannot be written: it is closed")
        return len(data)


class _Forgiving(io.FileIO):
    """What cannot be said is not said: a run must not end for a terminal that has gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def settle() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` such streams. Streams that somebody has put in their
    place (a test, Textual) stay."""
    closed = _occupy()
    codecs.register_error(HANDLER, _lookalike)
    if sys.stdout is None or 1 in closed:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed()), encoding="utf-8")
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _text(io.BufferedWriter(_Output(1, "w", closefd=False)), sys.stdout, HANDLER)
    if sys.stderr is None or 2 in closed:
        sys.stderr = _nowhere("w")
    elif isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Forgiving(2, "w", closefd=False), sys.stderr, HANDLER)


def flush() -> None:
    """What is left of the report, while its failure can still be told.

    Raises:
        OutputFailed: it does not go out.
        BrokenPipeError: the reader has left.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """What is still in a buffer goes nowhere: Python would complain about it at exit."""
    try:
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, 1)
        os.close(number)
    except OSError:
        return
    sys.stdout = _nowhere("w")


def _occupy() -> set[int]:
    """Put /dev/null where a standard descriptor is closed, so that no file of ours gets its number
    (a worker's print would then go into it).

    Returns:
        Those that were closed.
    """
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            closed.add(number)
    if sys.stdin is None:
        sys.stdin = _nowhere("r")
    return closed


def _nowhere(mode: str) -> TextIO:
    """For the rest of the process."""
    # pathlib is a sixth of the time of `llmprof --help`.
    return open(os.devnull, mode, encoding="utf-8")  # type: ignore[return-value]  # noqa: PTH123


def _text(raw: Any, like: io.TextIOWrapper, errors: str) -> io.TextIOWrapper:
    line = like.isatty() or isinstance(raw, _Forgiving)
    return io.TextIOWrapper(
        raw,
        encoding=like.encoding or "utf-8",
        errors=errors,
        line_buffering=line,
        write_through=isinstance(raw, _Forgiving),
    )


def _lookalike(why: UnicodeError) -> tuple[str, int]:
    """For ``codecs.register_error``: one character each, so that columns stay."""
    if not isinstance(why, UnicodeEncodeError):
        raise why
    return "".join(ascii_for(c) for c in why.object[why.start : why.end]), why.end
