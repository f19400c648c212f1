"""Numbers of a fixed width, so that a column never moves."""

from __future__ import annotations

import math
from typing import Final

from llmprof.analysis.view.frames.snapshot import NOT_YET
from llmprof.records import Maybe, Unavailable
from llmprof.tui.drawing.cells import Row, Span, row
from llmprof.tui.drawing.glyphs import Glyphs

NA: Final = "n/a"
PENDING: Final = "–"
"""Not measured yet, but will be."""


def plain(value: float) -> str:
    """Three significant figures or all digits before the point; at most five characters.

    >>> [plain(v) for v in (0.8421, 3.857, 38.57, 385.7, 38571, 1.2e6)]
    ['0.842', '3.86', '38.6', '386', '38571', '1.2M']
    """
    if not math.isfinite(value):
        return NA
    for limit, digits in ((0.9995, 3), (9.995, 2), (99.95, 1), (99999.5, 0)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    for limit, unit in ((999.5e3, 1e3), (999.5e6, 1e6)):
        if abs(value) < limit:
            scaled = value / unit
            return f"{scaled:.{0 if scaled >= 9.95 else 1}f}{'k' if unit == 1e3 else 'M'}"
    return f"{value:.0e}"


def number(value: Maybe | None, scale: float = 1.0) -> str:
    if value is None:
        return NA
    if isinstance(value, Unavailable):
        return PENDING if value == NOT_YET else NA
    return plain(value * scale)


def cost(slowdown: Maybe) -> Maybe:
    """What tracing costs, as a share of the untraced step: 0.08 for a slowdown of 1.08."""
    return slowdown if isinstance(slowdown, Unavailable) else slowdown - 1


def nth(rank: int) -> str:
    """Before a superlative, with its space: nothing, ``2nd ``, ``3rd ``, ``11th ``."""
    if rank == 1:
        return ""
    tens = 10 < rank % 100 < 20
    return f"{rank}{'th' if tens else {1: 'st', 2: 'nd', 3: 'rd'}.get(rank % 10, 'th')} "


def known(value: Maybe | None) -> bool:
    return value is not None and not isinstance(value, Unavailable) and math.isfinite(value)


def span(value: Maybe | None, width: int, role: str = "", scale: float = 1.0) -> Span:
    """Right-aligned in ``width`` cells; dim where there is no number."""
    return Span(number(value, scale).rjust(width), role if known(value) else "dim")


def interval(low: Maybe, high: Maybe) -> str:
    """``38.1–39.0``, or nothing where either end is unknown."""
    return f"{number(low)}–{number(high)}" if known(low) and known(high) else ""


def duration(ns: float) -> str:
    """``812 ns``, ``43.2 µs``, ``14.9 ms``, ``2.50 s``."""
    for limit, unit, name in ((1e3, 1, "ns"), (999.5e3, 1e3, "µs"), (999.5e6, 1e6, "ms")):
        if abs(ns) < limit:
            return f"{ns:.0f} ns" if unit == 1 else f"{plain(ns / unit)} {name}"
    return f"{plain(ns / 1e9)} s"


def elapsed(seconds: float) -> str:
    """``0:42``, ``12:05``, ``1:02:03``."""
    total = max(0, int(seconds))
    hours, minutes, left = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


# Three by five pixels a digit; two pixel rows share a cell row.
_PIXELS: Final = {
    "0": "111101101101111", "1": "010110010010111", "2": "111001111100111",
    "3": "111001111001111", "4": "101101111001001", "5": "111100111001111",
    "6": "111100111101111", "7": "111001001001001", "8": "111101111101111",
    "9": "111101111001111", ".": "00001", "–": "000000111000000",
    "k": "101101110101101", "M": "101111111101101",
}  # fmt: skip
_HALVES: Final = {"00": " ", "10": "▀", "01": "▄", "11": "█"}


def big(text: str, role: str, glyphs: Glyphs) -> list[Row]:
    """``text`` three rows high where the glyphs and the characters allow it, else in one row."""
    if glyphs.ascii or any(c not in _PIXELS for c in text):
        return [(), row(Span(text, f"{role} strong")), ()]
    rows = []
    for y in (0, 2, 4):
        line = []
        for char in text:
            pixels = _PIXELS[char]
            wide = len(pixels) // 5
            top = pixels[y * wide : (y + 1) * wide]
            low = pixels[(y + 1) * wide : (y + 2) * wide].ljust(wide, "0")
            line.append("".join(_HALVES[a + b] for a, b in zip(top, low, strict=True)))
        rows.append(row(Span(" ".join(line), role)))
    return rows
