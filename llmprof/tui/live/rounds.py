"""Which timing round the steps page shows, where the rounds of the run can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmprof.analysis.view.traced import RunTrace
from llmprof.tui.view import Lane, View


def count(view: View) -> int:
    """Timing rounds of the run; 0 while they are not known."""
    if not isinstance(view.trace, RunTrace):
        return 0
    return sum(name == "timing" for name, _ in view.trace.lanes.keys)


def turned(view: View, way: int) -> View:
    """The next round (``way`` 1) or the one before, around both ends."""
    known = count(view)
    if not known:
        return view
    at = known - 1 if view.round is None else view.round
    return replace(view, round=(at + way) % known)


def chosen(lanes: Sequence[Lane], view: View) -> list[Lane]:
    """The lanes with the steps of the chosen round; an engine that has not got it has none."""
    known = count(view)
    if view.round is None or not isinstance(view.trace, RunTrace):
        return list(lanes)
    tracks = view.trace.lanes.lanes
    key = [key for key in view.trace.lanes.keys if key[0] == "timing"][view.round]
    found = []
    for lane in lanes:
        track = tracks[lane.index].track(key) if lane.index < len(tracks) else None
        steps = () if track is None else tuple((track.wall_ns[1:] / 1e6).tolist())
        label = f"round {key[1] + 1}/{known}"
        found.append(replace(lane, engine=replace(lane.engine, step_ms=steps, round_label=label)))
    return found
