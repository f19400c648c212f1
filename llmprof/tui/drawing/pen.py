"""Text with colours as a terminal wants it, each colour said once.

Rich writes a segment's whole style before it and resets it behind: 40 bytes for a letter whose
neighbour has the same ground. A terminal keeps what it was told: a change of colour is 19 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style

RESET = "\x1b[0m"


@lru_cache(maxsize=4096)
def _codes(style: Style, system: ColorSystem) -> tuple[str, str, str]:
    """(attributes, colour, ground) as parameters of SGR; empty: the terminal's own."""
    plain = style.without_color._make_ansi_codes(system)
    colour = style.color and style.color.downgrade(system).get_ansi_codes()
    ground = style.bgcolor and style.bgcolor.downgrade(system).get_ansi_codes(foreground=False)
    return plain, ";".join(colour or ()), ";".join(ground or ())


_PLAIN = ("", "", "")


class Pen:
    """Of one write; the terminal's state is plain before and after it.

    Args:
        system: colours that the terminal has; ``None``: text alone.
    """

    def __init__(self, system: ColorSystem | None) -> None:
        self._system = system
        self._now = _PLAIN

    def write(self, segments: Iterable[Segment]) -> str:
        """Segments without control codes."""
        out: list[str] = []
        for text, style, control in segments:
            if control or not text:
                out.append(text)
                continue
            if self._system is not None:
                out.append(self._turn(_PLAIN if style is None else _codes(style, self._system)))
            out.append(text)
        return "".join(out)

    def end(self) -> str:
        return self._turn(_PLAIN)

    def _turn(self, wanted: tuple[str, str, str]) -> str:
        now = self._now
        if wanted == now:
            return ""
        self._now = wanted
        # An attribute cannot be taken back alone, nor a colour for the terminal's own.
        lost = (now[0] and now[0] != wanted[0]) or any(
            a and not b for a, b in zip(now[1:], wanted[1:], strict=True)
        )
        if lost:
            said = [part for part in wanted if part]
            return f"\x1b[0;{';'.join(said)}m" if said else RESET
        changed = [b for a, b in zip(now, wanted, strict=True) if b != a]
        return f"\x1b[{';'.join(changed)}m"
