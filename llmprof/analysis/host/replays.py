"""Waits of the GPU for launches in steps that replay a CUDA graph: where the host was late."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.kernels import TracedRound
from llmprof.analysis.device.sweep import Timeline, covered_ns
from llmprof.analysis.host.launches import Launches
from llmprof.runfile.trace.rows import Ints


@dataclass(frozen=True)
class ReplayWaits:
    """Of the idle time whose cause is ``launch``; ms a step: means over the steps that count.

    ``call_ms + before_ms + between_ms + behind_ms`` is all of it.
    """

    call_ms: float
    """From the begin of the call that launched a graph to the graph's first work."""
    before_ms: float
    """For launches in front of the step's first graph, and across the step's end."""
    between_ms: float
    """For launches between two graphs of a step."""
    behind_ms: float
    """For launches behind the step's last graph."""
    singles: int
    """Kernels launched on their own; median step."""
    call_us: float
    """Length of the call that launches a graph; median."""
    sync_ms: float
    """The launching thread waited inside CUDA for the GPU, whether that was idle or not."""

    @property
    def launch_ms(self) -> float:
        return self.call_ms + self.before_ms + self.between_ms + self.behind_ms


def replays(traced: TracedRound) -> bool:
    """Do most of the steps that count replay a CUDA graph, whole or in pieces?"""
    kinds = np.array(traced.kinds)
    if not len(kinds):
        return False
    mine = kinds[traced.counted]
    return bool(np.isin(mine, ("graph", "piecewise")).sum() * 2 > len(mine))


def replay_waits(
    traced: TracedRound,
    timeline: Timeline,
    launches: Launches,
    gaps: tuple[Ints, Ints, Ints],
    late_ns: Ints,
) -> ReplayWaits | None:
    """``None`` where no API calls were traced, or the steps replay no graph.

    Args:
        gaps: start, end and step (from 1) of every gap.
        late_ns: of every gap, what waits for a launch.
    """
    calls = launches.calls
    if calls is None or not replays(traced):
        return None
    start, end, step = gaps
    bounds, count = timeline.bounds_ns, timeline.count
    begin = launches.graph_calls(end)
    call = np.where(begin >= 0, end - np.maximum(start, begin), 0)
    call = np.minimum(late_ns, np.maximum(0, call))
    rest = late_ns - call
    graphs = launches.graph_begins
    # A gap that a graph ends lies before that graph.
    so_far = np.searchsorted(graphs, end) - np.searchsorted(graphs, bounds[step - 1])
    to_come = np.searchsorted(graphs, bounds[step]) - np.searchsorted(graphs, end)
    before = (so_far <= 0) | (end == bounds[step])
    behind = ~before & (to_come <= 0)

    def ms(ns: Ints, where: NDArray[np.bool_] | None = None) -> float:
        return int(ns.sum() if where is None else ns[where].sum()) / count / 1e6

    waits = np.array([cause == "sync" for cause in calls.cause], np.bool_)
    counted = traced.counted
    waited = covered_ns([(calls.start[waits], calls.end[waits])], bounds[:-1], bounds[1:])
    found = traced.launched
    singles = (found.launches - found.graphs)[counted]
    return ReplayWaits(
        call_ms=ms(call),
        before_ms=ms(rest, before),
        between_ms=ms(rest, ~before & ~behind),
        behind_ms=ms(rest, behind),
        singles=int(np.median(singles)),
        call_us=launches.graph_call_ns / 1e3,
        sync_ms=ms(waited[counted]),
    )
