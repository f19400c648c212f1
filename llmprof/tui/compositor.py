"""Sends the dirty cells of a line, not everything left of them.

Textual 8's ``ChopsUpdate.render_segments`` crops a dirty span at its right end only: each span is
sent from the left edge of all dirty cells of the frame on, and once for every span of the line.
A live frame cost 12 kB that way, 1.4 kB with both ends cropped (Textualize/textual#5625). Only
here does llmprof reach into private parts of Textual; a test and ``benchmarks/tui_bytes.py``
watch over it. With a Textual that is built otherwise its own compositor draws: more bytes, the same
picture.
"""

from __future__ import annotations

import inspect

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor
from textual.strip import Strip


class CellUpdate(ChopsUpdate):
    """A ``ChopsUpdate`` that crops spans at both ends."""

    def render_segments(self, console: Console) -> str:
        out: list[str] = []
        for y, x1, x2 in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(x, x1), min(end, x2)
                if strip is not None and left < right:
                    out.append(Control.move_to(left, y).segment.text)
                    out.append(strip.crop(left - x, right - x).render(console))
        return "".join(out)


class CellCompositor(Compositor):
    """Gives out ``CellUpdate`` where Textual would give ``ChopsUpdate``."""

    def render_partial_update(self) -> ChopsUpdate | None:
        update = super().render_partial_update()
        if update is None or type(update) is not ChopsUpdate:
            return update
        return CellUpdate(update.chops, update.spans, update.chop_ends)


def fits() -> bool:
    """Is this Textual built as ``CellUpdate`` needs it (8.2 is)?"""
    try:
        made = list(inspect.signature(ChopsUpdate).parameters)
        probe = ChopsUpdate([{0: Strip.blank(2)}], [(0, 0, 2)], [[2]])
        cut = probe.chops[0][0].crop(0, 1)  # type: ignore[union-attr]
        same = (probe.spans, probe.chop_ends) == ([(0, 0, 2)], [[2]])
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        return False
    hooks = hasattr(ChopsUpdate, "render_segments") and hasattr(Compositor, "render_partial_update")
    return made == ["chops", "spans", "chop_ends"] and same and cut.cell_length == 1 and hooks


def make_compositor() -> Compositor:
    """The compositor for a screen."""
    return CellCompositor() if fits() else Compositor()
