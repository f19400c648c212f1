"""Which parts of the window the bounded samplers watch (py-spy, the GPUs' counters).

Both keep what they sample in memory until they are stopped, and neither can go on for hours. So a
window is watched from its opening on for a while, then for a part of every minute, and all windows
together no longer than a bound.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """All in seconds."""

    first_s: float
    """From the opening of a window on."""
    each_s: float
    """And so long at the end of every further ``every_s``."""
    every_s: float
    most_s: float
    """Of all windows together."""

    @property
    def words(self) -> str:
        return (
            f"the first {self.first_s:.0f} s of the window, then {self.each_s:.0f} s of every"
            f" {self.every_s:.0f} s, {self.most_s:.0f} s in all"
        )


class Stretches:
    """Ask ``wanted`` again and again while the program runs."""

    def __init__(self, spread: Spread) -> None:
        self._spread = spread
        self._opened_s: float | None = None
        self._running_since: float | None = None
        self._spent_s = 0.0
        self.thinned = False
        """A part of a window was left out."""

    def wanted(self, window_open: bool, now_s: float) -> bool:
        """Is it to be sampled now?

        Args:
            now_s: ``time.monotonic()``.
        """
        if not window_open:
            self._opened_s = None
        elif self._opened_s is None:
            self._opened_s = now_s
        is_wanted = self._opened_s is not None and self._is_due(now_s - self._opened_s, now_s)
        self.thinned = self.thinned or (window_open and not is_wanted)
        if is_wanted and self._running_since is None:
            self._running_since = now_s
        elif not is_wanted and self._running_since is not None:
            self._spent_s += now_s - self._running_since
            self._running_since = None
        return is_wanted

    def _is_due(self, passed_s: float, now_s: float) -> bool:
        spread = self._spread
        running_s = 0.0 if self._running_since is None else now_s - self._running_since
        if self._spent_s + running_s >= spread.most_s:
            return False
        beyond_s = passed_s - spread.first_s
        return beyond_s < 0 or beyond_s % spread.every_s >= spread.every_s - spread.each_s
