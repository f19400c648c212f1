"""The time that a run is given: what passes after the engines are loaded, in stated parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from llmprof.goal import Goal
from llmprof.session.engine_run import EngineRun

WARM_UP = 0.2
"""Of the time, at most: all engines together."""
TIMING = 0.8
"""Of the time: warm-up and timing pass end here. The traced pass has the rest."""
RELOAD = 0.3
"""Of the time, at most, that the timing pass ends earlier for the traced pass's workers to load."""
ROUND = 0.1
"""Of the time: one round of all engines."""


LATE = 0.1
"""Of the time: a traced pass that would end later than this after it is not begun."""


class RunClock:
    """Seconds since the start, without loading until ``loading_counts`` is called.

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
        self._free_s: float | None = None
        self._reload_s = 0.0

    def spent(self) -> float:
        free = self._loading() if self._free_s is None else self._free_s
        return self._now() - self._begin - free

    def loading_counts(self) -> None:
        """From here on what loads is part of the time: nobody asked for it to be loaded again."""
        if self._free_s is None:
            self._free_s = self._loading()

    def timing_left(self, traces: bool, least: bool = False) -> float:
        """Until the timing pass ends.

        Args:
            least: of the rounds that an interval needs, which may take what is kept for loading.
        """
        if not traces:
            return self.left()
        if not self._reload_s:
            self._reload_s = self._loading()
        early = 0.0 if least else min(RELOAD * self._goal.max_s, self._reload_s)
        return self._goal.max_s * TIMING - early - self.spent()

    def left(self) -> float:
        return self._goal.max_s - self.spent()

    def late(self, needed_s: float) -> bool:
        """Would what takes so long end too late? Never where rounds end the run."""
        over = needed_s - self.left()
        return self._goal.rounds is None and over > LATE * self._goal.max_s

    def _loading(self) -> float:
        return sum(run.loading_s for run in self._runs)
