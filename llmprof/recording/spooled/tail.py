"""Reading a spool while it grows, and giving its disk space back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from llmprof.tracers.cupti.spool import FORMAT, HEADER, MAGIC, MAX_PAYLOAD

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
"""``FALLOC_FL_*``, linux/falloc.h."""
_PUNCH_BYTES = 4 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class SpoolTail:
    """The frames of one spool, as they arrive.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = ""
        """Why nothing more is read."""
        self.torn = 0
        """Bytes behind the last whole frame, when it was closed."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._at = 0
        self._punched = 0

    def read(self, limit: int = 16 << 20) -> list[tuple[int, bytes]]:
        """Whole frames that were not read before: (kind, payload), about ``limit`` bytes."""
        found: list[tuple[int, bytes]] = []
        size = os.fstat(self._fd).st_size
        begun = self._at
        while not self.broken and self._at - begun < limit:
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
        if self._fd >= 0:
            self.torn = os.fstat(self._fd).st_size - self._at
            os.close(self._fd)
            self._fd = -1
