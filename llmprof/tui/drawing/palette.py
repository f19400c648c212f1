"""What a role looks like. One accent an engine; warnings and failures have colours of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

from rich.style import Style

BACKGROUND: Final = "#0d1117"
FOREGROUND: Final = "#d0d7de"

# Told apart by the common kinds of colour blindness when neighbours; none is amber or red.
ACCENTS: Final = ("#58a6ff", "#3fd08a", "#c792ea", "#4dd0e1", "#f48fb1", "#b8d657")

_BASE: Final = Style(color=FOREGROUND, bgcolor=BACKGROUND)
_ROLES: Final = {
    "dim": Style(color="#8b949e"),
    "track": Style(color="#3d444d"),
    "strong": Style(bold=True),
    "bright": Style(color="#ffffff", bold=True),
    "good": Style(color="#3fd08a"),
    "warn": Style(color="#ffb454"),
    "outlier": Style(color="#ffb454", bold=True),
    "fail": Style(color="#ff6b6b", bold=True),
    "select": Style(reverse=True, bold=True),
    "chip": Style(color="#0d1117", bgcolor="#8b949e", bold=True),
    # Categories of kernels (``marks.LETTERS``): neighbours in a step differ in brightness too.
    "categoryQ": Style(color="#58a6ff"),
    "categoryG": Style(color="#58a6ff"),
    "categoryA": Style(color="#c792ea"),
    "categoryN": Style(color="#e6db74"),
    "categoryR": Style(color="#f48fb1"),
    "categoryE": Style(color="#3fd08a"),
    "categoryK": Style(color="#4dd0e1"),
    "categoryB": Style(color="#b8d657"),
    "categoryS": Style(color="#ff9e64"),
    "categoryC": Style(color="#ff6b6b"),
    "categoryZ": Style(color="#9aa5ce"),
    "categoryX": Style(color="#ffd166"),
    "categoryM": Style(color="#7ee787"),
    "categoryT": Style(color="#d2a8ff"),
    "categoryL": Style(color="#ffa198"),
    "categoryV": Style(color="#79c0ff"),
    "categoryO": Style(color="#8b949e"),
    # Kinds of host time (``marks.HOST_LETTERS``).
    "hostl": Style(color="#79b8ff"),
    "hosts": Style(color="#ffb454"),
    "hostu": Style(color="#c792ea"),
    "hostm": Style(color="#f48fb1"),
    "hostw": Style(color="#8b949e"),
    "hostg": Style(color="#ff6b6b"),
    "hostn": Style(color="#d2a8ff"),
    "hosth": Style(color="#3fd08a"),
    **{f"accent{i}": Style(color=colour) for i, colour in enumerate(ACCENTS)},
}


# The same for terminals of 16 colours (TERM=xterm), which rounding would make a blur of greys.
_FEW: Final = {
    "dim": Style(color="bright_black"),
    "track": Style(color="bright_black"),
    "good": Style(color="bright_green"),
    "warn": Style(color="bright_yellow"),
    "outlier": Style(color="bright_yellow", bold=True),
    "fail": Style(color="bright_red", bold=True),
    "chip": Style(color="black", bgcolor="white", bold=True),
    "categoryQ": Style(color="bright_blue"),
    "categoryG": Style(color="bright_blue"),
    "categoryA": Style(color="bright_magenta"),
    "categoryN": Style(color="yellow"),
    "categoryR": Style(color="magenta"),
    "categoryE": Style(color="green"),
    "categoryK": Style(color="bright_cyan"),
    "categoryB": Style(color="bright_green"),
    "categoryS": Style(color="bright_yellow"),
    "categoryC": Style(color="red"),
    "categoryZ": Style(color="cyan"),
    "categoryX": Style(color="bright_yellow"),
    "categoryM": Style(color="bright_green"),
    "categoryT": Style(color="bright_magenta"),
    "categoryL": Style(color="bright_red"),
    "categoryV": Style(color="bright_blue"),
    "categoryO": Style(color="bright_black"),
    "hostl": Style(color="bright_blue"),
    "hosts": Style(color="bright_yellow"),
    "hostu": Style(color="bright_magenta"),
    "hostm": Style(color="magenta"),
    "hostw": Style(color="bright_black"),
    "hostg": Style(color="bright_red"),
    "hostn": Style(color="bright_cyan"),
    "hosth": Style(color="bright_green"),
    **{
        f"accent{i}": Style(color=name)
        for i, name in enumerate(
            ("bright_blue", "bright_green", "bright_magenta", "bright_cyan", "magenta", "green")
        )
    },
}
Depth = Literal["full", "few", "none"]
"""24 bits or 256 colours; 16 colours; no colour at all (bold and reverse stay)."""
_depth: Depth = "full"


def choose(environ: Mapping[str, str]) -> Depth:
    """By ``NO_COLOR``, ``COLORTERM`` and ``TERM``, as Rich tells terminals apart."""
    if environ.get("NO_COLOR"):
        return "none"
    if environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return "full"
    ending = environ.get("TERM", "").strip().lower().rpartition("-")[2]
    return "full" if ending in ("256color", "kitty", "direct") or not ending else "few"


def use(depth: Depth) -> None:
    """Draw with that many colours from now on."""
    global _depth
    _depth = depth
    style.cache_clear()


def accent(index: int) -> str:
    """The role of the engine at ``index`` of the snapshot's engines."""
    return f"accent{index % len(ACCENTS)}"


@lru_cache(maxsize=256)
def style(role: str) -> Style:
    """The Rich style of a role such as ``accent0 strong``.

    Raises:
        KeyError: a role that does not exist (a mistake in the program).
    """
    words = role.split()
    if _depth == "full":
        return Style.combine([_BASE, *(_ROLES[word] for word in words)])
    styles = [_FEW.get(word, _ROLES[word]) for word in words]
    if _depth == "few":
        return Style.combine([Style(color="white", bgcolor="black"), *styles])
    # Colour says nothing that text does not; what stood out by its ground is reversed.
    attributes = [Style(bold=s.bold, reverse=s.reverse or bool(s.bgcolor) or None) for s in styles]
    return Style.combine([Style.null(), *attributes])
