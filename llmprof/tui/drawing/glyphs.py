"""The characters that bars, boxes and marks are drawn with: Unicode, or ASCII where it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len

from llmprof.plaintext import ascii_for


@dataclass(frozen=True)
class Glyphs:
    """One set. Every glyph is one cell wide."""

    name: str
    bars: str
    """From empty to full; ``len(bars) - 1`` levels a cell."""
    box: str
    """Top left, top right, bottom left, bottom right, horizontal, vertical."""
    tick: str
    """Y axis: a labelled row, an unlabelled row."""
    done: str
    half: str
    dashed: str
    """In place of ``track`` for what is a guess."""
    track: str
    """Progress bar: filled, last half cell, the rest."""
    outlier: str
    running: str
    finished: str
    stopped: str
    failed: str
    paused: str
    focus: str
    lane: str
    """Stands before an engine's name, in its colour."""

    @property
    def ascii(self) -> bool:
        return self.name == "ascii"

    def text(self, text: str) -> str:
        """``text`` as this set can show it, of the same width in cells."""
        if not self.ascii or text.isascii():
            return text
        return "".join(c if c.isascii() else _ascii(c) for c in text)


UNICODE: Final = Glyphs(
    name="unicode",
    bars=" ▁▂▃▄▅▆▇█",
    box="╭╮╰╯─│",
    tick="┤│",
    done="━",
    half="╸",
    dashed="┄",
    track="─",
    outlier="▲",
    running="●",
    finished="✓",
    stopped="■",
    failed="✗",
    paused="‖",
    focus="▸",
    lane="▌",
)

ASCII: Final = Glyphs(
    name="ascii",
    bars=" _.:|#",
    box="++++-|",
    tick="+|",
    done="=",
    half=">",
    dashed=".",
    track="-",
    outlier="^",
    running="*",
    finished="+",
    stopped="#",
    failed="x",
    paused='"',
    focus=">",
    lane="|",
)


def _ascii(char: str) -> str:
    return ascii_for(char) * max(1, cell_len(char)) if cell_len(char) else ""


def choose(environ: Mapping[str, str]) -> Glyphs:
    """The set for this terminal, by ``LLMPROF_GLYPHS``, ``TERM`` and the locale.

    Python itself puts ``LC_CTYPE=C.UTF-8`` into its environment when the locale is C (PEP 538),
    so that value says nothing about the terminal. No locale at all is what a container has, on a
    terminal that shows Unicode nearly always.
    """
    wish = environ.get("LLMPROF_GLYPHS", "").lower()
    if wish in ("ascii", "unicode"):
        return ASCII if wish == "ascii" else UNICODE
    if environ.get("TERM", "") in ("linux", "vt100", "vt220", "dumb"):
        return ASCII
    names = [environ.get(key, "") for key in ("LC_ALL", "LC_CTYPE", "LANG")]
    if names[1] in ("C.UTF-8", "C.utf8", "UTF-8"):
        names[1] = ""
    locale = next(filter(None, names), "C.UTF-8")
    return UNICODE if "utf8" in locale.lower().replace("-", "") else ASCII
