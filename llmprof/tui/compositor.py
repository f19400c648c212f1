"""Sends the dirty cells of a line, not everything left of them.

Textual 8's ``ChopsUpdate.render_segments`` crops a dirty span at its right end only: each span is
sent from the left edge of all dirty cells of the frame on, and once for every span of the line.
A live frame cost 12 kB that way, 1.4 kB with both ends cropped (Textualize/textual#5625). Only
here does llmprof reach into private parts of Textual; a test and ``benchmarks/tui_bytes.py``
watch over it.
"""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor


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
        if update is None:
            return None
        return CellUpdate(update.chops, update.spans, update.chop_ends)
