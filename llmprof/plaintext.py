"""Untrusted text (model files, kernel names, logs) on its way to a terminal or a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

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


_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and the like: titles, links
    r"|[ -/]*[0-Z\\`-~])"
)
"""A control sequence, ECMA-48."""


def as_shown(line: str) -> str:
    """A line as it stands on a terminal, without its colours: what a carriage return begins again,
    as progress bars do, takes the place of what was there. Still untrusted."""
    parts = _SEQUENCE.sub("", line).split("\r")
    return next((part for part in reversed(parts) if part.strip()), "")


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


def shortened(text: str, limit: int) -> str:
    """``one_line`` cut in the middle: what tells ``VLLM::Worker_TP0`` from ``…_TP1`` is the end."""
    line = one_line(text, 4 * max(limit, 1) + len(text))
    if len(line) <= limit:
        return line
    if limit < 3:
        return line[:limit]
    tail = (limit - 1) * 3 // 5
    return f"{line[: limit - 1 - tail]}…{line[len(line) - tail :]}"


def told_apart(texts: Sequence[str], limit: int) -> list[str]:
    """Each text in at most ``limit`` characters; different texts stay different.

    Cut in the middle; where that makes two of them one, what all begin with is cut instead; where
    that is not enough, they are numbered.
    """
    found = [shortened(text, limit) for text in texts]
    if _clash(texts, found):
        lines = [one_line(text, len(text) + 4 * limit) for text in texts]
        common = len(_common(lines))
        # Back to a word's begin, as far as there is room.
        longest = max(len(line) - common for line in lines)
        common = max(0, min(common, common - max(0, limit - 1 - longest)))
        found = [
            line if len(line) <= limit else shortened(f"…{line[common:]}", limit) for line in lines
        ]
    if _clash(texts, found):
        order = {text: n for n, text in enumerate(dict.fromkeys(texts), 1)}
        found = [
            shortened(text, max(1, limit - len(f"#{order[text]}"))) + f"#{order[text]}"
            for text in texts
        ]
    return found


def _clash(texts: Sequence[str], found: Sequence[str]) -> bool:
    counts = Counter(short for _, short in set(zip(texts, found, strict=True)))
    return any(n > 1 for n in counts.values())


def _common(lines: Sequence[str]) -> str:
    """What all of them begin with."""
    low, high = min(lines, default=""), max(lines, default="")
    same = 0
    while same < min(len(low), len(high)) and low[same] == high[same]:
        same += 1
    return low[:same]
