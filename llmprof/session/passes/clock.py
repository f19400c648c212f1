"""The time that a run is given: what passes once the engines are loaded, in stated parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from llmprof.goal import Goal
from llmprof.session.engine_run import EngineRun

WARM_UP = 0.2
"""Of the time, at most: all engines together."""
TIMING = 0.8
"""Of the time: warm-up and timing pass end here. The traced pass has the rest."""
RELOAD = 0.3
"""Of the time, at most, that the timing pass ends earlier for the traced pass's workers to load. An
engine that loads for minutes is traced all the same, and its run takes that longer."""
ROUND = 0.1
"""Of the time: one round of all engines."""


LATE = 0.1
"""Of the time: so much later, no traced pass is begun."""


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
        self._free_s = 0.0
        self._mark: float | None = None
        self._most_s = 0.0
        self._reload_s = 0.0

    def spent(self) -> float:
        return self._now() - self._begin - self._free()

    def loading_counts(self, most_s: float = math.inf) -> None:
        """From here on loading is part of the time, so much of it at most."""
        self._free_s, self._mark, self._most_s = self._free(), self._loading(), most_s

    def timing_left(self, traces: bool, least: bool = False) -> float:
        """Until the timing pass ends.

        Args:
            least: of the rounds that an interval needs, which may take what is kept for loading.
        """
        if not traces:
            return self.left()
        early = 0.0 if least else self.kept_for_loading()
        return self._goal.max_s * TIMING - early - self.spent()

    def kept_for_loading(self) -> float:
        """For the traced pass's workers: as long as the first took, within limits."""
        if not self._reload_s:
            self._reload_s = self._loading()
        return min(RELOAD * self._goal.max_s, self._reload_s)

    def left(self) -> float:
        return self._goal.max_s - self.spent()

    def late(self) -> bool:
        """Is it too late for a traced pass? Never where rounds end the run."""
        return self._goal.rounds is None and self.left() < -LATE * self._goal.max_s

    def _free(self) -> float:
        """Loading that is not part of the time."""
        if self._mark is None:
            return self._loading()
        return self._free_s + max(0.0, self._loading() - self._mark - self._most_s)

    def _loading(self) -> float:
        return sum(run.loading_s for run in self._runs)
