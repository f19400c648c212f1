"""The stamps of the running round, in a file mapping that parent and worker share.

One store a step and no system call, so watching costs the worker nothing; and the parent still has
every stamp after a kill -9 of the worker. Standard library only.

Layout, int64: [0] round serial, [1] round start, [2] prefill start, [3 + i] stamp i (see
``RoundRecord.stamps_ns``); 0 means not there yet.
"""

from __future__ import annotations

import mmap
from array import array
from pathlib import Path

HEADER = 3


class StampBoard:
    """``slots``: the mapping as a memoryview of int64."""

    def __init__(self, path: Path, steps: int, create: bool) -> None:
        length = 8 * (HEADER + steps + 1)
        if create:
            path.write_bytes(bytes(length))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), length)
        self.slots = memoryview(self._map).cast("q")

    def clear(self) -> None:
        """Zero everything but the serial, which the caller sets last."""
        count = len(self.slots)
        self.slots[0:count] = array("q", bytes(8 * count))

    def read(self) -> tuple[int, int, int, array[int]]:
        """(serial, round start, prefill start, stamps so far)."""
        values = array("q", bytes(self.slots))
        stamps = values[HEADER:]
        try:
            stamps = stamps[: stamps.index(0)]
        except ValueError:
            pass  # no zero: the round is complete
        return values[0], values[1], values[2], stamps

    def close(self) -> None:
        self.slots.release()
        self._map.close()
