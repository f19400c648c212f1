"""A child of the traced worker whose name on the stack is a clock. Standard library only.

py-spy's only format with times (chrometrace) drops every sample that shows the same stack as the
one before it, and counts its times from a moment that it does not tell. With ``--subprocesses`` it
looks at this process in every sample too. Here one function after the other sleeps for a tick, and
the moment at which each began stands in a file mapping. So the function that a sample finds here
says when the sample was taken, on CLOCK_MONOTONIC and within one tick, also where nothing has
changed in the worker. It is a process of its own: the worker's GIL and stack are left alone.

Layout of the mapping, int64: [0] 1 tells it to end, [1] ticks so far, [2 + i] begin of tick i.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

HEADER = 2
FILE_NAME = "llmprof-metronome"
BEATS = 1024
"""Functions that take turns; tick i runs function i % BEATS, named ``beat_<number>``."""
PREFIX = "beat_"
CAPACITY = 1 << 21
"""Ticks that the mapping holds (the file is sparse): 8 minutes at the shortest tick."""
PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, PR_SET_PTRACER = 1, 29, 0x59616D61  # linux/prctl.h
SIGKILL = 9


class Board:
    """The mapping; ``slots`` is a memoryview of int64."""

    def __init__(self, path: Path, create: bool) -> None:
        """Raises ``OSError``: no such file, no room."""
        length = 8 * (HEADER + CAPACITY)
        if create:
            with path.open("wb") as file:
                file.truncate(length)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), length)
        self.slots = memoryview(self._map).cast("q")

    def stop(self) -> None:
        self.slots[0] = 1

    @property
    def running(self) -> bool:
        return bool(self.slots[1] > 0)

    def ticks(self) -> array[int]:
        """Begin of every tick so far, ns."""
        count = min(self.slots[1], CAPACITY)
        return array("q", bytes(self.slots[HEADER : HEADER + count]))

    def close(self) -> None:
        self.slots.release()
        self._map.close()


def let_read(reader: int) -> None:
    """Let that process and its children read the memory of this one.

    With Yama's ptrace_scope 1 (Ubuntu's default) only an ancestor may otherwise, and py-spy, which
    llmprof starts as it starts the worker, is none (kernel documentation, Yama.rst). A kernel
    without Yama refuses, and needs no permission; the other scopes do not ask.
    """
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(reader), 0, 0, 0)


def spawn(path: str, tick_ns: int, reader: int) -> subprocess.Popen[bytes]:
    """Start it as a child of this process: py-spy finds it there.

    Args:
        reader: the process that starts py-spy, see ``let_read``.

    Raises:
        OSError: it does not start.
    """
    command = [sys.executable, "-I", "-S", __file__, path, str(tick_ns), str(os.getpid())]
    command.append(str(reader))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run(board: Board, tick_ns: int) -> None:
    """Tick until told to end, or until the mapping is full."""
    source = [f"def {PREFIX}{i}(nap, s): nap(s)" for i in range(BEATS)]
    source.append(f"beats = [{', '.join(f'{PREFIX}{i}' for i in range(BEATS))}]")
    names: dict[str, Any] = {}
    exec(compile("\n".join(source), FILE_NAME, "exec"), names)  # our own text, nobody else's
    slots, now, nap, tick_s, at = board.slots, time.monotonic_ns, time.sleep, tick_ns / 1e9, 0
    while not slots[0]:
        for beat in names["beats"]:
            slots[HEADER + at] = now()
            at += 1
            slots[1] = at
            beat(nap, tick_s)
            if slots[0] or at == CAPACITY:
                return


def main() -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[3]):
        return  # the worker died before prctl
    let_read(int(sys.argv[4]))
    libc.prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # the default of 50 us would lengthen each tick
    run(Board(Path(sys.argv[1]), create=False), int(sys.argv[2]))


if __name__ == "__main__":
    main()
