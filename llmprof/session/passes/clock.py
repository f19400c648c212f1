"""The time that a run is given: what passes outside of loading, in stated parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmprof.goal import Goal
from llmprof.session.engine_run import EngineRun

WARM_UP = 0.2
"""Of the time, at most: all engines together."""
TIMING = 0.8
"""Of the time: warm-up and timing pass end here. The traced pass has the rest."""
RELOAD = 0.1
"""Of the time, at most, that the timing pass ends earlier for the traced pass's workers to load:
their loading is not counted, but it is waited for."""
ROUND = 0.1
"""Of the time: one round of all engines."""


class RunClock:
    """Seconds since the start, loading of engines left out.

    Args:
        now: s, monotonic.
    """

    def __init__(
        self, goal: Goal, runs: Sequence[EngineRun], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._goal = goal
        self._runs = runs
        self._now = now
        self._begin = now()
        self._reload_s = 0.0

    def spent(self) -> float:
        return self._now() - self._begin - sum(run.loading_s for run in self._runs)

    def timing_left(self, traces: bool) -> float:
        """Until the timing pass ends."""
        if not traces:
            return self.left()
        if not self._reload_s:
            self._reload_s = sum(run.loading_s for run in self._runs)
        early = min(RELOAD * self._goal.max_s, self._reload_s)
        return self._goal.max_s * TIMING - early - self.spent()

    def left(self) -> float:
        return self._goal.max_s - self.spent()
