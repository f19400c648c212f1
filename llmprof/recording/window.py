"""When is recorded: ``--after``, ``--for``, and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llmprof.recording.control import ACTIVITY, LEAVE, RANGES, ControlPage
from llmprof.recording.plan import Limit

_STEP = re.compile(
    r"decode|next.?token|token.?\*|execute_model|generat|iteration|\bstep|\biter", re.I
)


def steps_seen(shapes: Mapping[str, int]) -> int:
    """Ranges of the most frequent text that says step; 0 where no range says so."""
    return max((count for text, count in shapes.items() if _STEP.search(text)), default=0)


class Window:
    """Opens and closes by itself, once; the key overrules it from then on.

    Args:
        detach: CUPTI leaves the program with each closing, and comes again with each opening.
    """

    def __init__(
        self, page: ControlPage, after: Limit | None, length: Limit | None, detach: bool = True
    ) -> None:
        self._page = page
        self._after = after
        self._length = length
        self._closed = LEAVE if detach else 0
        self.opened_ns: int | None = None
        self.closed_ns: int | None = None
        self.closings: list[tuple[int, int]] = []
        """(closed, opened again) of every time that it was closed in between."""
        self._steps_at_opening = 0
        self._manual = False
        self._set_page(after is None)

    @property
    def is_open(self) -> bool:
        return bool(self._page.wanted & ACTIVITY)

    def follow(self, now_ns: int, started_ns: int, steps: int) -> None:
        """Look at the clock and at the steps so far."""
        if self._manual:
            return
        if self.opened_ns is None:
            if self._after is None or _reached(self._after, now_ns - started_ns, steps):
                self._set(True, now_ns, steps)
        elif (
            self.closed_ns is None
            and self._length is not None
            and _reached(self._length, now_ns - self.opened_ns, steps - self._steps_at_opening)
        ):
            self._set(False, now_ns, steps)

    def toggle(self, now_ns: int, steps: int) -> None:
        """The key was pressed."""
        self._manual = True
        self._set(not self.is_open, now_ns, steps)

    def close(self, now_ns: int) -> None:
        """For good: the disk is full, or the recording ends."""
        self._manual = True
        self._page.want(self._closed)
        if self.closed_ns is None:
            self.closed_ns = now_ns

    def _set(self, is_open: bool, now_ns: int, steps: int) -> None:
        self._set_page(is_open)
        if is_open:
            if self.closed_ns is not None:
                self.closings.append((self.closed_ns, now_ns))
            self.opened_ns, self.closed_ns = now_ns, None
            self._steps_at_opening = steps
        else:
            self.closed_ns = now_ns

    def _set_page(self, is_open: bool) -> None:
        self._page.want(RANGES | self._closed | (ACTIVITY if is_open else 0))


def _reached(limit: Limit, passed_ns: int, steps: int) -> bool:
    if limit.seconds is not None:
        return passed_ns >= limit.seconds * 1e9
    return limit.steps is not None and steps >= limit.steps
