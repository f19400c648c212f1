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

GRACE_S = 20.0
"""For the run to stop and its file to close after SIGTERM."""


def watch_terminal(fd: int = 0) -> None:
    """Start the thread that waits for the terminal's end, where ``fd`` is one."""
    if os.isatty(fd):
        threading.Thread(target=_wait, args=(fd,), name="terminal-watch", daemon=True).start()


def _wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR are always told; this asks for nothing else
    poll.poll()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for gone in (0, 1, 2):
        os.dup2(nowhere, gone)  # what still writes goes on instead of blocking
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGHUP)
