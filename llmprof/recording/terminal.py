"""A terminal of its own for the program while llmprof's live view has the real one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from collections import deque

from llmprof.plaintext import as_shown

KEPT_BYTES = 4 << 20
"""Of the program's output, for the real terminal once the view is closed."""
KEPT_LINES = 1000
_WINSIZE = struct.Struct("<HHHH")


class OwnTerminal:
    """A pseudo terminal and a thread that reads it.

    Raises:
        OSError: the system has none left.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self._lock = threading.Lock()
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._open = b""
        self._thread = threading.Thread(target=self._read, name="llmprof-output", daemon=True)
        self._thread.start()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, _WINSIZE.pack(rows, columns, 0, 0))

    def in_child(self) -> None:
        """Between fork and exec: make it the controlling terminal, in a session of its own.

        A stream that is redirected to a file or a pipe stays so.
        """
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            if os.isatty(fd):
                os.dup2(self.slave, fd)

    def lines(self, count: int) -> list[str]:
        """The last lines, as a terminal would have them: untrusted."""
        with self._lock:
            found = [*self._lines, self._open] if self._open else list(self._lines)
        return [as_shown(line.decode(errors="replace")) for line in found[-count:]]

    def close(self) -> bytes:
        """What the program wrote, or the end of it."""
        os.close(self.slave)
        self._thread.join(timeout=2)
        with self._lock:
            return b"".join(self._kept)

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                break
            if not part:
                break
            with self._lock:
                self._kept.append(part)
                self._size += len(part)
                while self._size > KEPT_BYTES and len(self._kept) > 1:
                    self._size -= len(self._kept.popleft())
                *whole, self._open = (self._open + part).split(b"\n")
                self._lines.extend(line.rstrip(b"\r")[-4000:] for line in whole)
                self._open = self._open[-4000:]
        os.close(self._master)
