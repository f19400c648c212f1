"""Untrusted text (model files, kernel names, logs) on its way to a terminal or a line."""

from __future__ import annotations

import re

# C0 (but tab and newline), DEL, C1, and the bidirectional controls that reorder a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]")


def printable(text: str) -> str:
    r"""Show control characters as ``\xNN`` so that none of them reaches the terminal.

    Newlines and tabs stay. >>> printable("a\x1b[2J") == "a\\x1b[2J"
    """
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text)


def one_line(text: str, limit: int = 300) -> str:
    """``printable`` on one line of at most ``limit`` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"
