"""From ``llmprof open`` to the first frame, beside ``python -c 'import textual'``, interleaved.

    python benchmarks/tui_cold_start.py [--turns 10]

Goal: 0.6 s on two cores. The ratio says what of it is Textual itself.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

GOAL_S = 0.6
FILE = Path(__file__).parent.parent / "tests" / "fixtures" / "h100_graph.sqlite"


def first_paint() -> float:
    """Seconds until the header's state is on the screen."""
    begin = time.perf_counter()
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
        os.execvp(sys.executable, [sys.executable, "-m", "llmprof", "open", str(FILE)])
    seen = b""
    try:
        while b"finished" not in seen:
            if not select.select([master], [], [], 10)[0]:
                raise SystemExit("nothing was painted within 10 s")
            seen += os.read(master, 1 << 16)
        return time.perf_counter() - begin
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)


def bare() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import textual.app"], check=True)
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    turns = parser.parse_args().turns
    first_paint()  # compiles the byte code
    pairs = [(bare(), first_paint()) for _ in range(turns)]
    textual_s, paint_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"import textual.app  {textual_s:.2f} s")
    print(f"first paint         {paint_s:.2f} s")
    print(f"ratio               {statistics.median(b / a for a, b in pairs):.2f}")
    met = paint_s <= GOAL_S
    print(f"goal                {GOAL_S} s: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
