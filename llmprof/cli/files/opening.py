"""Files named on the command line, made readable, with a line on stderr where that takes time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llmprof.plaintext import one_line
from llmprof.traces.opened import readable, readable_all


def open_one(path: Path) -> Path:
    """The SQLite file to read for ``path``.

    Raises:
        LlmprofError: nothing that can be opened; one line says what it is and what to do.
    """
    try:
        return readable(path, show)
    finally:
        clear()


def open_files(paths: Sequence[Path]) -> list[Path]:
    """The same for several; traces of the ranks of one run become one file."""
    try:
        return readable_all(paths, show)
    finally:
        clear()


def show(what: str, share: float | None) -> None:
    """One line that is written over; nothing into a pipe or a log."""
    if sys.stderr.isatty():
        percent = "" if share is None else f" {share:4.0%}"
        print(f"\r\x1b[K{one_line(what, 60)}{percent}", end="", file=sys.stderr, flush=True)


def clear() -> None:
    """Take the line away."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
