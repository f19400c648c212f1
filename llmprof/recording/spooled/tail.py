"""Reading a spool while it grows, and giving its disk space back."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from llmprof.tracers.cupti.spool import FORMAT, HEADER, MAGIC, MAX_PAYLOAD

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""``FALLOC_FL_*``, linux/falloc.h."""
_PUNCH_BYTES = 4 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class SpoolTail:
    """The frames of one spool, as they arrive.

    The file is open only while there is something new in it: a program may have had more processes
    than a process may have open files (1024 by default), and run for days.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = ""
        """Why nothing more is read."""
        self.torn = 0
        """Bytes behind the last whole frame, when it was closed."""
        self._fd = -1
        self._at = 0
        self._punched = 0

    def read(self, limit: int = 4 << 20) -> list[tuple[int, bytes]]:
        """Whole frames that were not read before: (kind, payload), about ``limit`` bytes."""
        found: list[tuple[int, bytes]] = []
        try:
            size = self.path.stat().st_size
            if size > self._at and self._fd < 0:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            self.broken = f"is gone: nothing behind byte {self._at} was read"
            return found
        except OSError:
            return found  # too many files are open just now
        begun = self._at
        while not self.broken and size > self._at and self._at - begun < limit:
            header = os.pread(self._fd, HEADER.size, self._at)
            if len(header) < HEADER.size:
                break
            magic, kind, version, length = HEADER.unpack(header)
            if magic != MAGIC or version != FORMAT or length > MAX_PAYLOAD:
                self.broken = f"broken at byte {self._at}: {size - self._at} bytes not read"
                break
            end = self._at + HEADER.size + length + -length % 8
            if end > size:
                break
            payload = os.pread(self._fd, length, self._at + HEADER.size)
            if len(payload) < length:
                break
            found.append((kind, payload))
            self._at = end
        if not found:
            self._put_away()
        return found

    def release(self) -> None:
        """Give the blocks of what was read back to the file system, where it can do that."""
        upto = self._at & ~4095
        if upto - self._punched >= _PUNCH_BYTES:
            _libc.fallocate(
                self._fd,
                _KEEP_SIZE | _PUNCH_HOLE,
                ctypes.c_long(self._punched),
                ctypes.c_long(upto - self._punched),
            )
            self._punched = upto

    def close(self) -> None:
        with suppress(OSError):
            self.torn = max(0, self.path.stat().st_size - self._at)
        self._put_away()

    def _put_away(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
