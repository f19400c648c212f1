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


_ASCII_FOR = {
    "·": "-", "–": "-", "—": "-", "×": "x", "…": "~", "°": " ", "≥": ">", "≤": "<", "≠": "!",
    "→": ">", "←": "<", "±": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "│": "|", "─": "-",
    "−": "-", "µ": "u", "┬": "^", "▲": "^", "█": "#", "━": "=",
    "⁰": "0", "¹": "1", "²": "2", "³": "3", "⁴": "4", "⁵": "5", "⁶": "6", "⁷": "7", "⁸": "8",
    "⁹": "9",
}  # fmt: skip


def ascii_for(character: str) -> str:
    """One ASCII character that can stand for this one; ``?`` where there is none."""
    return character if character.isascii() else _ASCII_FOR.get(character, "?")
