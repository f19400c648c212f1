"""Moving on the timeline: pure functions from a view to the next, ``None`` where there is no way.

All of them work on the lane of the engine in focus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llmprof.analysis.timeline.axis import Axis, Lane, RunLanes, StepAxis, Track
from llmprof.analysis.timeline.lod import Gap, LaneWork
from llmprof.analysis.view.traced import RunTrace
from llmprof.tui.view import Selected, TimelineView, View

SHORTEST_NS = 200
"""Of a window: about a nanosecond a cell."""
_MARGIN = 0.02
"""Air on both sides of what is shown whole, as a share of it."""


@dataclass(frozen=True)
class Scene:
    """What the timeline stands on at this moment."""

    lanes: RunLanes
    axis: Axis
    window: tuple[int, int]
    index: int
    """Lane of the engine in focus."""

    @property
    def lane(self) -> Lane:
        return self.lanes.lanes[self.index]

    @property
    def unknown(self) -> bool:
        """Nobody knows a step of what is shown."""
        return all(t.whole for lane in self.lanes.lanes for t in lane.tracks)

    @property
    def track(self) -> Track | None:
        """The round of the lane in focus that keys act on: the one on the axis, else the traced
        one, else the first."""
        tracks = self.axis.tracks(self.index)
        traced = [t for t in tracks if t.key == self.lane.traced_key]
        return next(iter([*traced, *tracks]), None)

    def work_of(self, track: Track) -> LaneWork | None:
        """The kernels of a round, where it was traced."""
        work = self.lane.work
        return work if isinstance(work, LaneWork) and track.key == self.lane.traced_key else None


def scene(view: View) -> Scene | None:
    """``None`` without a trace, or with no finished step in it."""
    if not isinstance(view.trace, RunTrace):
        return None
    lanes, timeline = view.trace.lanes, view.timeline
    axis = lanes.axis(timeline.align, timeline.key)
    if axis is None:
        return None
    window = timeline.window or axis.home
    return Scene(lanes, axis, window, min(view.focus, len(lanes.lanes) - 1))


def zoom(now: Scene, view: TimelineView, factor: float, at: int | None = None) -> TimelineView:
    """Make the window ``factor`` times as long around ``at``, by default around the selection
    where it is in view."""
    start, end = now.window
    if at is None:
        spot = _place(now, view.selected)
        middle = None if spot is None else (spot[0] + spot[1]) // 2
        at = middle if middle is not None and start <= middle < end else (start + end) // 2
    length = min(now.axis.length_ns, max(SHORTEST_NS, round((end - start) * factor)))
    share = (at - start) / max(1, end - start)
    return replace(view, window=_inside(now.axis, round(at - share * length), length))


def pan(now: Scene, view: TimelineView, share: float) -> TimelineView:
    """Move by a share of the window; stops at both ends."""
    start, end = now.window
    shift = round((end - start) * share) or (1 if share > 0 else -1)
    return replace(view, window=_inside(now.axis, start + shift, end - start))


def whole(view: TimelineView) -> TimelineView:
    return replace(view, window=None, selected=None, rank=None)


def to_step(now: Scene, view: TimelineView, step: int, rank: int | None = None) -> TimelineView:
    """Select a step and show it whole."""
    track = now.track
    if track is None:
        return view
    chosen = Selected(track.key, min(max(step, 0), track.steps))
    return fit(now, replace(view, selected=chosen, rank=rank))


def turn_traced_step(view: View, way: int) -> View:
    """Select the decode step before or behind, in the traced round of the engine in focus."""
    now = scene(view)
    track = None if now is None else now.lane.traced
    if track is None:
        return view
    chosen = Selected(track.key, (view.step - 1 + way) % track.steps + 1)
    return replace(view, timeline=replace(view.timeline, selected=chosen, rank=None))


def outlier(now: Scene, view: TimelineView, way: int) -> TimelineView:
    """Through the steps from the slowest down (``way`` 1), or back."""
    track = now.track
    if track is None:
        return view
    order = track.slowest_first()
    chosen = view.selected
    rank = 0
    if chosen is not None and chosen.gap is None and chosen.item is None and view.rank is not None:
        rank = (view.rank + way) % len(order)
    return to_step(now, view, order[rank], rank)


def median(now: Scene, view: TimelineView) -> TimelineView:
    return view if now.track is None else to_step(now, view, now.track.median_step())


def widest_gap(now: Scene, view: TimelineView, way: int) -> TimelineView:
    """Through the gaps of the selected step from the widest down."""
    at = _here(now, view)
    if at is None:
        return view
    track, step, work = at
    gaps = sorted(step_gaps(work, track, step), key=lambda g: (g.start_ns - g.end_ns, g.start_ns))
    if not gaps:
        return view
    chosen = view.selected
    rank = 0
    if chosen is not None and chosen.gap in gaps:
        rank = (gaps.index(chosen.gap) + way) % len(gaps)
    return _show(now, replace(view, selected=Selected(track.key, step, gap=gaps[rank]), rank=rank))


def neighbour(now: Scene, view: TimelineView, way: int) -> TimelineView:
    """The kernel, copy or gap behind the selected one, or before it; over steps' borders too."""
    at = _here(now, view)
    if at is None:
        return view
    track, step, work = at
    chosen = view.selected
    row = sequence(work, track, step)
    here = (chosen.item, chosen.gap) if chosen else (None, None)
    if here in row:
        index = row.index(here) + way
    else:
        index = _first_in_view(now, track, work, row) if way > 0 else len(row) - 1
    while not 0 <= index < len(row):
        step += way
        if not 0 <= step <= track.steps:
            return view
        row = sequence(work, track, step)
        index = 0 if way > 0 else len(row) - 1
    item, gap = row[index]
    return _show(now, replace(view, selected=Selected(track.key, step, item, gap), rank=None))


def match(now: Scene, view: TimelineView, way: int) -> TimelineView | None:
    """The next kernel whose name holds the search text; ``None``: there is none."""
    track = now.track
    work = None if track is None else now.work_of(track)
    if track is None or work is None or not view.search:
        return None
    chosen = view.selected
    if chosen is None or chosen.key != track.key:
        start = work.at(int(now.axis.times(now.index, np.array([now.window[0]]))[0]))
    elif chosen.item is not None:
        start = chosen.item
    else:
        time = chosen.gap.start_ns if chosen.gap else int(track.bounds_ns[chosen.step])
        start = work.at(time - (way > 0))
    item = work.next_of(work.find(view.search), start, way)
    if item is None:
        return None
    return select_item(now, view, item)


def select_item(now: Scene, view: TimelineView, item: int) -> TimelineView:
    """Select one kernel or copy of the traced round; the window follows."""
    track = now.track
    work = None if track is None else now.work_of(track)
    if track is None or work is None:
        return view
    step = track.step_at(int(work.start_ns[item]))
    return _show(now, replace(view, selected=Selected(track.key, step, item), rank=None))


def fit(now: Scene, view: TimelineView) -> TimelineView:
    """The selection fills the window: a step whole, an item with as much again on both sides."""
    spot = _place(now, view.selected)
    if spot is None or view.selected is None:
        return view
    start, end = spot
    narrow = view.selected.item is not None or view.selected.gap is not None
    if not narrow and isinstance(now.axis, StepAxis):
        # The whole slot: other lanes may need longer for the step.
        end = max(end, int(now.axis.slots[view.selected.step + 1]))
    air = max(round((end - start) * (1 if narrow else _MARGIN)), SHORTEST_NS // 4)
    return replace(view, window=_inside(now.axis, start - air, end - start + 2 * air))


def out(now: Scene, view: TimelineView) -> TimelineView:
    """One level up: from an item to its step, from a step to the whole, from another round to the
    traced one."""
    chosen = view.selected
    if chosen is None and view.window is None:
        return replace(view, key=None)
    if chosen is None:
        return whole(view)
    if chosen.item is not None or chosen.gap is not None:
        return fit(now, replace(view, selected=Selected(chosen.key, chosen.step), rank=None))
    return whole(view)


def align(view: View) -> View:
    """The other axis; what is selected stays and is shown."""
    old = view.timeline
    turned: Literal["step", "time"] = "time" if old.align == "step" else "step"
    key = old.selected.key if old.selected else old.key
    timeline = replace(old, align=turned, window=None, key=key)
    now = scene(replace(view, timeline=timeline))
    if now is not None and old.window is not None and old.selected is not None:
        timeline = fit(now, timeline)
    return replace(view, timeline=timeline)


def other_round(now: Scene, view: TimelineView, way: int) -> TimelineView:
    """The next round of the run on the step axis."""
    keys = now.lanes.keys
    at = keys.index(view.key) if view.key in keys else 0
    key = keys[(at + way) % len(keys)]
    return replace(view, align="step", key=key, window=None, selected=None, rank=None)


def pick(now: Scene, view: TimelineView, position: int) -> TimelineView:
    """What lies at a position of the lane in focus: an item where items can be told apart."""
    for track in now.axis.tracks(now.index):
        time = int(now.axis.times(now.index, np.array([position]))[0])
        if not track.bounds_ns[0] <= time < track.bounds_ns[-1]:
            continue
        step, work = track.step_at(time), now.work_of(track)
        chosen = Selected(track.key, step)
        if work is not None:
            item = work.at(time)
            gaps = [g for g in step_gaps(work, track, step) if g.start_ns <= time < g.end_ns]
            if gaps:
                chosen = Selected(track.key, step, gap=gaps[0])
            elif item >= 0 and time < work.end_ns[item]:
                chosen = Selected(track.key, step, item)
        return replace(view, selected=chosen, rank=None)
    return view


def step_gaps(work: LaneWork, track: Track, step: int) -> list[Gap]:
    start, end = (int(t) for t in track.bounds_ns[step : step + 2])
    return work.gaps(step, start, end)


def sequence(work: LaneWork, track: Track, step: int) -> list[tuple[int | None, Gap | None]]:
    """Items and gaps of a step, in order."""
    start, end = (int(t) for t in track.bounds_ns[step : step + 2])
    first = int(np.searchsorted(work.start_ns, start, "left"))
    last = int(np.searchsorted(work.start_ns, end, "left"))
    found: list[tuple[int, int | None, Gap | None]] = [
        (int(work.start_ns[item]), item, None) for item in range(first, last)
    ]
    found += [(gap.start_ns, None, gap) for gap in work.gaps(step, start, end)]
    found.sort(key=lambda entry: entry[0])
    return [(item, gap) for _, item, gap in found]


def place(now: Scene, lane: int, chosen: Selected | None) -> tuple[int, int] | None:
    """Where a selection is on the axis; ``None`` where it is not on it."""
    if chosen is None:
        return None
    track = next((t for t in now.axis.tracks(lane) if t.key == chosen.key), None)
    if track is None or chosen.step > track.steps:
        return None
    start, end = (int(t) for t in track.bounds_ns[chosen.step : chosen.step + 2])
    work = now.lanes.lanes[lane].work
    if chosen.gap is not None:
        start, end = chosen.gap.start_ns, chosen.gap.end_ns
    elif chosen.item is not None and isinstance(work, LaneWork):
        start, end = int(work.start_ns[chosen.item]), int(work.end_ns[chosen.item])
    return now.axis.place(lane, start, end)


def _place(now: Scene, chosen: Selected | None) -> tuple[int, int] | None:
    return place(now, now.index, chosen)


def _here(now: Scene, view: TimelineView) -> tuple[Track, int, LaneWork] | None:
    """Round, step and kernels that item keys act on: of the selection, else the first in view."""
    chosen = view.selected
    tracks = now.axis.tracks(now.index)
    track = next((t for t in tracks if chosen is not None and t.key == chosen.key), now.track)
    if track is None:
        return None
    work = now.work_of(track)
    if work is None:
        return None
    if chosen is not None and chosen.key == track.key and chosen.step <= track.steps:
        return track, chosen.step, work
    time = int(now.axis.times(now.index, np.array([now.window[0]]))[0])
    return track, track.step_at(time), work


def _first_in_view(
    now: Scene, track: Track, work: LaneWork, row: list[tuple[int | None, Gap | None]]
) -> int:
    time = int(now.axis.times(now.index, np.array([now.window[0]]))[0])
    starts = [work.start_ns[i] if i is not None else g.start_ns if g else 0 for i, g in row]
    return min(int(np.searchsorted(np.array(starts), time, "left")), max(0, len(row) - 1))


def _show(now: Scene, view: TimelineView) -> TimelineView:
    """Move the window, without zooming, so that the selection is in it."""
    spot = _place(now, view.selected)
    start, end = now.window
    if spot is None:
        return view
    if start <= spot[0] and spot[1] <= end:
        return replace(view, window=now.window)
    length = max(end - start, min(now.axis.length_ns, 2 * (spot[1] - spot[0])))
    middle = (spot[0] + spot[1]) // 2
    return replace(view, window=_inside(now.axis, middle - length // 2, length))


def _inside(axis: Axis, start: int, length: int) -> tuple[int, int]:
    """A window of that length, moved so that it lies on the axis."""
    length = min(max(length, SHORTEST_NS), max(SHORTEST_NS, axis.length_ns))
    start = min(max(0, start), max(0, axis.length_ns - length))
    return start, start + length
