"""What goes into the clipboard: the selection of the timeline, else the page, as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.tui.drawing.cells import Row, text_of
from llmprof.tui.timeline.inspector import inspector
from llmprof.tui.timeline.nav import scene
from llmprof.tui.view import View

_WIDTH = 200


def selection_text(snapshot: Snapshot, view: View, rows: Sequence[Row]) -> tuple[str, str]:
    """(what it is, its text)."""
    now = scene(view) if view.page == "timeline" else None
    if now is not None and view.timeline.selected is not None:
        lanes = view.lanes(snapshot)
        lane = next((lane for lane in lanes if lane.index == now.index), lanes[0])
        lines = [text_of(line).rstrip() for line in inspector(now, view, lane, _WIDTH)]
        return "the selection", "\n".join(lines) + "\n"
    return f"the page {view.page}", "\n".join(text_of(line).rstrip() for line in rows) + "\n"
