"""A terminal that goes away ends the app, also where no SIGHUP comes (nohup, a lost session).

Without this the writes of a live app block for ever once the pseudo-terminal is gone, and Textual's
input thread spins on the end of its input: a forgotten run kept a third of a core for an hour.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

GRACE_S = 20.0
"""For the run to stop and its file to close after SIGTERM."""
AFTER_CLOSING_S = 2.0
"""For the app to leave by itself, with the exit code of what it did."""


def watch_terminal(fd: int = 0, closing: Callable[[], object] | None = None) -> None:
    """Start the thread that waits for the terminal's end, where ``fd`` is one.

    Args:
        closing: waits, after SIGTERM, until what must not be lost is done; ``None``: that has
            ``GRACE_S``. Then the process is ended, for the app itself may block in a write.
    """
    if os.isatty(fd):
        watch = threading.Thread(target=_wait, args=(fd, closing), name="terminal-watch")
        watch.daemon = True
        watch.start()


def _wait(fd: int, closing: Callable[[], object] | None) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told; this asks for nothing else
    poll.poll()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for gone in (0, 1, 2):
        os.dup2(nowhere, gone)  # what still writes goes on instead of blocking
    os.kill(os.getpid(), signal.SIGTERM)
    if closing is None:
        time.sleep(GRACE_S)
    else:
        closing()
        time.sleep(AFTER_CLOSING_S)
    os._exit(128 + signal.SIGHUP)
