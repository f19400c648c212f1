"""Bytes that the screen sends: live, two engines, 2 Hz, and what opens and closes over it.

    python benchmarks/tui_bytes.py [--seconds 10] [--hz 2] [--cols 120] [--rows 40]

Runs the app in a pseudo-terminal over a scripted source that grows as a session does: the engines
are interleaved, a step every 26 and 16 ms, a GPU sample every 100 ms. Then opens and closes
dialogs and turns pages on the timeline of a recorded run. Exit status 1: over a budget (4 kB/s
live, 16 kB a dialog).
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
DIALOG_BUDGET = 16_000
"""Bytes of opening or closing one at 120×40: what it covers, cell by cell, and not the screen."""
FILE = Path(__file__).parent.parent / "tests" / "fixtures" / "h100_graph.sqlite"
KEYS = (
    ("open help", b"?"), ("close it", b"\x1b"), ("open export", b"e"), ("close it", b"\x1b"),
    ("open palette", b":"), ("close it", b"\x1b"), ("ask for a step", b"g"), ("close it", b"\x1b"),
    ("page compare", b"4"), ("page timeline", b"3"), ("slowest step", b"n"), ("widest gap", b"w"),
)  # fmt: skip
SETTLE_S = 2.0
"""The first frame is not counted."""


def child(hz: float) -> None:
    """The app over a source that follows the clock; never returns."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
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


def drain(master: int, silence_s: float = 0.5) -> bytes:
    data = b""
    while select.select([master], [], [], silence_s)[0]:
        data += os.read(master, 1 << 16)
    return data


def keys(cols: int, rows: int) -> list[tuple[str, int]]:
    """Bytes of every one of ``KEYS`` on the timeline of a recorded run."""
    pid, master = pty.fork()
    if pid == 0:
        size = struct.pack("HHHH", rows, cols, 0, 0)
        fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, size)
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
        os.execvp(sys.executable, [sys.executable, "-m", "llmprof", "open", str(FILE)])
    try:
        seen = b""
        while b"ms/token" not in seen:
            seen += drain(master)
        os.write(master, b"3")
        drain(master)
        found = []
        for name, key in KEYS:
            os.write(master, key)
            found.append((name, len(drain(master))))
        return found
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)


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
    kept = rate <= BUDGET
    for name, size in keys(args.cols, args.rows):
        dialog = name.startswith(("open", "close", "ask"))
        over = dialog and size > DIALOG_BUDGET
        kept = kept and not over
        print(f"{name:<14} {size:7d} B  {'EXCEEDED' if over else ''}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
