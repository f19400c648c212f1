"""From a key to its frame on the timeline of a run of ten million kernels, at the pty.

    python benchmarks/make_big_run.py BIG.sqlite --kernels 12600000
    python benchmarks/tui_keys.py BIG.sqlite [--cols 120] [--rows 40] [--of SMALL.sqlite]

Runs ``llmprof open`` in a pseudo-terminal, waits until the trace is read, then presses keys that
zoom, pan, jump and turn pages; a frame has come with the last byte before 60 ms of silence. The
same on a small file, if given, says what of it is the number of kernels. Exit status 1: p95 over
the goal of 50 ms.
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
import sys
import termios
import time

GOAL_MS = 50.0
KEYS = "3nw[]]\r++++l hhl--0nNm]][[a+++lla0gr" + "\x1b" + "4b3.,n++"
SILENCE_S = 0.06
LOAD_S = 300.0


def start(file: str, cols: int, rows: int) -> tuple[int, int]:
    pid, master = pty.fork()
    if pid == 0:
        size = struct.pack("HHHH", rows, cols, 0, 0)
        fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, size)
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
        os.execvp(sys.executable, [sys.executable, "-m", "llmprof", "open", file])
    return pid, master


def drain(master: int, silence_s: float) -> tuple[float | None, bytes]:
    """Time of the last byte before that much silence, and everything that came."""
    last, data = None, b""
    while select.select([master], [], [], silence_s)[0]:
        data += os.read(master, 1 << 16)
        last = time.perf_counter()
    return last, data


def loaded(master: int) -> float:
    """Seconds until the timeline shows all that there is."""
    begin = time.perf_counter()
    drain(master, 1.0)
    os.write(master, b"3")
    seen = b""
    while b"GPU busy" not in seen:
        if time.perf_counter() - begin > LOAD_S:
            raise SystemExit("the trace was not read in time")
        seen = (seen + drain(master, 0.3)[1])[-200_000:]
    last, _ = drain(master, 1.0)  # the bar of what is still being read has come to its end
    return (last or time.perf_counter()) - begin


def measure(file: str, cols: int, rows: int) -> tuple[list[float], float]:
    """ms of every key that drew something, and the seconds until the trace was read."""
    pid, master = start(file, cols, rows)
    took: list[float] = []
    try:
        load_s = loaded(master)
        drain(master, 0.5)
        for key in KEYS * 3:
            begin = time.perf_counter()
            os.write(master, key.encode())
            last, _ = drain(master, SILENCE_S + (0.2 if key == "\x1b" else 0))
            if last is not None and key != "\x1b":  # a lone escape is waited for by Textual
                took.append(1e3 * (last - begin))
            if key == "g":
                os.write(master, b"7\r")
                drain(master, 0.2)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
    return took, load_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--of", help="a small run file, for the comparison")
    parser.add_argument("--cols", type=int, default=120)
    parser.add_argument("--rows", type=int, default=40)
    given = parser.parse_args()
    p95 = {}
    for file in filter(None, (given.of, given.file)):
        took, load_s = measure(file, given.cols, given.rows)
        took.sort()
        p95[file] = took[int(0.95 * (len(took) - 1))]
        print(f"{file}: {len(took)} frames, trace read after {load_s:.1f} s")
        middle = statistics.median(took)
        print(f"  median {middle:.1f} ms, p95 {p95[file]:.1f} ms, max {took[-1]:.1f} ms")
    if given.of:
        print(f"ratio of p95  {p95[given.file] / p95[given.of]:.2f}")
    met = p95[given.file] <= GOAL_MS
    print(f"goal          {GOAL_MS:.0f} ms at p95: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
