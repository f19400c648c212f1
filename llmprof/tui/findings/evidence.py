"""From a finding to what it rests on: the step, gap or kernel on the timeline."""

from __future__ import annotations

from dataclasses import replace

from llmprof.analysis.findings.subject import Finding
from llmprof.tui.timeline import nav
from llmprof.tui.view import TimelineView, View


def chosen(view: View) -> Finding | None:
    """The finding that is selected."""
    found = () if view.findings is None else view.findings.found
    return found[min(view.finding, len(found) - 1)] if found else None


def moved(view: View, way: int) -> View:
    """The next finding, or the one before."""
    count = 0 if view.findings is None else len(view.findings.found)
    return replace(view, finding=max(0, min(count - 1, view.finding + way)))


def shown(view: View, labels: list[str]) -> View | None:
    """The timeline with the evidence selected; ``None``: there is nothing of it on a timeline.

    Args:
        labels: of all engines, in order.
    """
    item = chosen(view)
    lane = None if item is None else item.lane or item.engine
    if item is None or lane not in labels:
        return None
    there = replace(view, page="timeline", focus=labels.index(lane), zoom=False)
    now = nav.scene(there)
    if now is None or now.track is None:
        return None
    line = there.timeline
    line = nav.median(now, line) if item.step is None else nav.to_step(now, line, item.step)
    there = replace(there, timeline=line)
    now = nav.scene(there)
    if now is None:
        return there
    if item.gap:
        line = _gap(now, line, inside=item.cause in ("launch-bound", "late replay"))
    elif item.kernel is not None:
        line = replace(line, search=item.kernel)
        line = nav.match(now, line, 1) or line
    return replace(there, timeline=line)


def _gap(now: nav.Scene, line: TimelineView, inside: bool) -> TimelineView:
    """The widest gap of the step; ``inside``: one between its first and its last kernel, if any is
    among the widest."""
    first = line = nav.widest_gap(now, line, 1)
    for _ in range(3 if inside else 0):
        at = line.selected
        if at is None or at.gap is None or now.track is None:
            break
        begin, end = now.track.bounds_ns[at.step : at.step + 2].tolist()
        if begin < at.gap.start_ns and at.gap.end_ns < end:
            return line
        line = nav.widest_gap(now, line, 1)
    return first
