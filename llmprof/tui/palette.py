"""What a role looks like. One accent an engine; warnings and failures have colours of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

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
    "chip": Style(color="#0d1117", bgcolor="#8b949e", bold=True),
    # Categories of kernels (``trace_page.LETTERS``): neighbours in a step differ in brightness too.
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
    "categoryO": Style(color="#8b949e"),
    **{f"accent{i}": Style(color=colour) for i, colour in enumerate(ACCENTS)},
}


def accent(index: int) -> str:
    """The role of the engine at ``index`` of the snapshot's engines."""
    return f"accent{index % len(ACCENTS)}"


@lru_cache(maxsize=256)
def style(role: str) -> Style:
    """The Rich style of a role such as ``accent0 strong``.

    Raises:
        KeyError: a role that does not exist (a mistake in the program).
    """
    return Style.combine([_BASE, *(_ROLES[word] for word in role.split())])
