"""The page that llmprof and the recorded processes share (``struct control`` of the recorder)."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from llmprof.newfiles import OwnFolder

ACTIVITY, RANGES, LEAVE, FLOOR = 1, 2, 4, 8
"""What the recorders are to do; ``LEAVE``: where the window is closed, they give CUPTI back;
``FLOOR``: benchmarks only, what CUPTI hands over is thrown away."""
_WANTED = struct.Struct("<I")
_LOST = struct.Struct("<IiIQ")


@dataclass(frozen=True)
class LostSpools:
    """Spools that were given up."""

    count: int
    errno: int
    """Why the first one was."""
    when_ns: int
    """CLOCK_MONOTONIC."""


def spool_folder(output: Path) -> OwnFolder:
    """Hidden, beside the run file; made when it is called.

    Raises:
        OSError: it cannot be made.
    """
    return OwnFolder(".llmprof-record-", output.resolve().parent)


class ControlPage:
    """``FOLDER/control``. Held locked as long as this process lives: by that the recorders know
    whether there is still somebody to record for.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, wanted: int) -> None:
        self._file = os.open(folder / "control", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Written, not only made longer: a page without a block would be a SIGBUS on a full disk.
        os.pwrite(self._file, bytes(mmap.PAGESIZE), 0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._page = mmap.mmap(self._file, mmap.PAGESIZE)
        self.want(wanted)

    def want(self, wanted: int) -> None:
        """``ACTIVITY``, ``RANGES`` and ``LEAVE``; the processes follow within 0.1 s."""
        self._page[0:4] = _WANTED.pack(wanted)

    @property
    def wanted(self) -> int:
        return int(_WANTED.unpack_from(self._page)[0])

    def lost(self) -> LostSpools | None:
        count, why, _, when = _LOST.unpack_from(self._page, 4)
        return LostSpools(count, why, when) if count else None

    def close(self) -> None:
        self._page.close()
        os.close(self._file)
