"""An engine's phase and how far it is."""

from __future__ import annotations

from llmprof.tui.drawing.cells import Row, Span, clean, fit_text, row
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.view import Lane


def phase_span(lane: Lane, width: int) -> Span:
    """The phase in ``width`` cells; bright while the engine works."""
    busy = lane.engine.state in ("loading", "warmup", "running")
    return Span(fit_text(clean(lane.engine.phase), width), "" if busy else "dim")


def progress_bar(share: float | None, width: int, glyphs: Glyphs, role: str) -> Row:
    """A line of ``width`` cells, filled by half cells; all track where the share is unknown."""
    if share is None:
        return row(Span(glyphs.track * width, "track"))
    halves = round(max(0.0, min(1.0, share)) * width * 2)
    full, half = divmod(halves, 2)
    return row(
        Span(glyphs.done * full + glyphs.half * half, role),
        Span(glyphs.track * (width - full - half), "track"),
    )
