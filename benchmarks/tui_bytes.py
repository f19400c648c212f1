"""Bytes a second that the live screen sends: 120×40, two engines, 2 Hz, against a budget.

    python benchmarks/tui_bytes.py [--seconds 10] [--hz 2] [--cols 120] [--rows 40]

Runs the app in a pseudo-terminal over a scripted source that grows as a session does: the engines
take turns, a step every 26 and 16 ms, a GPU sample every 100 ms. Exit status 1: over the budget.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

BUDGET = 4000
"""Bytes a second; a slow SSH line carries ten times that."""
SETTLE_S = 2.0
"""The first frame is not counted."""


def child(hz: float) -> None:
    """The app over a source that follows the clock; never returns."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tui_snapshots_data import FixedSource, Snapshot, grown

    from llmprof.tui import run_app

    class Growing(FixedSource):
        start = time.monotonic()

        def snapshot(self) -> Snapshot:
            return grown(int((time.monotonic() - self.start) * 1000))

    sys.exit(run_app(Growing(grown(0)), refresh_hz=hz))


def measure(cols: int, rows: int, seconds: float, hz: float) -> tuple[int, int]:
    """Bytes of the first frame, and of the ``seconds`` after it."""
    pid, master = pty.fork()
    if pid == 0:
        size = struct.pack("HHHH", rows, cols, 0, 0)
        fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, size)
        os.environ.update(
            TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8", SSH_CONNECTION="benchmark"
        )
        os.environ.pop("NO_COLOR", None)
        child(hz)
    first = counted = 0
    begin: float | None = None
    try:
        while begin is None or time.monotonic() < begin + SETTLE_S + seconds:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            size_read = len(os.read(master, 65536))
            begin = begin or time.monotonic()
            if time.monotonic() < begin + SETTLE_S:
                first += size_read
            else:
                counted += size_read
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
    return first, counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--hz", type=float, default=2.0)
    parser.add_argument("--cols", type=int, default=120)
    parser.add_argument("--rows", type=int, default=40)
    args = parser.parse_args()
    first, counted = measure(args.cols, args.rows, args.seconds, args.hz)
    rate = counted / args.seconds
    print(f"first frames   {first:7d} B")
    print(f"live           {rate:7.0f} B/s  ({rate / args.hz:.0f} B a frame at {args.hz:g} Hz)")
    print(f"budget         {BUDGET:7d} B/s  {'kept' if rate <= BUDGET else 'EXCEEDED'}")
    return 0 if rate <= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
