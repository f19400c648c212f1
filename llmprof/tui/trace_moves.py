"""Keys of the trace page: from one view to the next. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from llmprof.analysis.snapshot import Snapshot
from llmprof.analysis.traced import StepItem
from llmprof.tui.traced import Traced, gpu_steps, in_focus, on_show, span_ns, step_count, window_ns
from llmprof.tui.view import View

_NARROWEST_NS: Final = 1000


def turn(snapshot: Snapshot, view: View, way: int) -> View:
    """The next step or the one before, round the end."""
    count = step_count(view.trace)
    if not count:
        return view
    return replace(view, step=(view.step - 1 + way) % count + 1, rank=-1)


def go_to(view: View, step: int) -> View | None:
    """That step; ``None`` where the trace has no such step."""
    return replace(view, step=step, rank=-1) if 1 <= step <= step_count(view.trace) else None


def slowest(snapshot: Snapshot, view: View, way: int) -> View:
    """From the slowest step of the engine in focus down, and back."""
    here = in_focus(on_show(snapshot, view))
    steps = gpu_steps(here.engine if here else None)
    if not steps:
        return view
    order = sorted(steps, key=lambda s: -s.wall_ns)
    rank = 0 if view.rank < 0 else (view.rank + way) % len(order)
    return replace(view, step=order[rank].step, rank=rank)


def focus(snapshot: Snapshot, view: View, way: int) -> View:
    """Another engine; what it does at the same time is selected."""
    before = in_focus(on_show(snapshot, view))
    count = max(1, len(snapshot.engines))
    moved = replace(view, focus=(view.focused(snapshot) + way) % count)
    behind = in_focus(on_show(snapshot, moved))
    if before is None or behind is None or not before.items or not behind.items:
        return moved
    time = _middle(before.items[selected(before, view)])
    at = next((n for n, item in enumerate(behind.items) if item.end_ns > time), -1)
    return replace(moved, item=at % len(behind.items))


def zoom(snapshot: Snapshot, view: View, factor: float) -> View:
    """Change the length of the window around the selected item, or its middle."""
    shown = on_show(snapshot, view)
    start, end = window_ns(view, shown)
    middle = (start + end) // 2
    here = in_focus(shown)
    if here is not None and here.items:
        at = _middle(here.items[selected(here, view)])
        middle = at if start <= at <= end else middle
    return _around(view, shown, middle, max(_NARROWEST_NS, round((end - start) * factor)))


def pan(snapshot: Snapshot, view: View, way: int) -> View:
    """A quarter of the window to the left or right."""
    shown = on_show(snapshot, view)
    start, end = window_ns(view, shown)
    shift = way * max(1, (end - start) // 4)
    return _around(view, shown, (start + end) // 2 + shift, end - start)


def item(snapshot: Snapshot, view: View, way: int) -> View:
    """Select the next kernel, copy or gap; from out of sight, the first one in the window."""
    shown = on_show(snapshot, view)
    here = in_focus(shown)
    if here is None or not here.items:
        return view
    start, end = window_ns(view, shown)
    at = selected(here, view)
    if here.items[at].end_ns <= start or here.items[at].start_ns >= end:
        seen = [n for n, i in enumerate(here.items) if i.end_ns > start and i.start_ns < end]
        at = seen[0] if seen else at
    else:
        at = (at + way) % len(here.items)
    return _select(view, shown, here, at)


def next_gap(snapshot: Snapshot, view: View) -> View:
    """From the longest gap of the step down, and round."""
    shown = on_show(snapshot, view)
    here = in_focus(shown)
    order = [] if here is None else longest_gaps(here.items)
    if here is None or not order:
        return view
    at = selected(here, view)
    follows = (order.index(at) + 1) % len(order) if at in order else 0
    return _select(view, shown, here, order[follows])


def longest_gaps(items: Sequence[StepItem]) -> list[int]:
    """Indices of the gaps, longest first."""
    gaps = [n for n, i in enumerate(items) if i.kind == "gap"]
    return sorted(gaps, key=lambda n: items[n].start_ns - items[n].end_ns)


def selected(here: Traced, view: View) -> int:
    """Index of the selected item of a step that has items."""
    return min(view.item, len(here.items) - 1)


def _middle(item: StepItem) -> int:
    return (item.start_ns + item.end_ns) // 2


def _select(view: View, shown: Sequence[Traced], here: Traced, at: int) -> View:
    """The window follows."""
    start, end = window_ns(view, shown)
    middle = _middle(here.items[at])
    chosen = replace(view, item=at)
    return chosen if start <= middle < end else _around(chosen, shown, middle, end - start)


def _around(view: View, shown: Sequence[Traced], middle: int, length: int) -> View:
    whole = span_ns(shown)
    if length >= whole:
        return replace(view, window=None)
    start = min(whole - length, max(0, middle - length // 2))
    return replace(view, window=(start, start + length))
