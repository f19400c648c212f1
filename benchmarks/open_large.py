"""How long until a file of ten million kernels is on the screen, and what it costs.

    python benchmarks/open_large.py [--kernels 10000000] [--bin FOLDER]
    python benchmarks/open_large.py --file RUN.sqlite

``llmprof open`` at a pseudo-terminal: seconds until the steps stand on the timeline, beyond what a
small file takes in the same run (limit 1 s, and 500 MB); until the kernels of the first steps, and
until all kernels are in; keys meanwhile. Then the cells of a frame (30 ms), ``export --to nsys`` of
a million kernels (3 s). The file has no index and no table of llmprof, as nsys makes it. Beside it,
``info`` and ``summary`` of nsys-tui and nsys-ai (``--bin``) on the same file.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np

PER_STEP, SLOT = 300, 20_000
GLOBAL = 1 << 48 | 4001 << 24


def make(path: Path, kernels: int) -> None:
    """A decode trace: 300 kernels a step, one NVTX range a step."""
    root = Path(__file__).resolve().parent.parent
    text = (root / "llmprof" / "runfile" / "schema.sql").read_text()
    wanted = ("StringIds", "META_DATA_EXPORT", "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_KERNEL",
              "PROCESSES", "TARGET_INFO_GPU", "TARGET_INFO_CUDA_DEVICE")  # fmt: skip
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA journal_mode = OFF")
    sql.execute("PRAGMA synchronous = OFF")
    for statement in text.split(";\n"):
        words = statement.split("CREATE TABLE ")
        if len(words) == 2 and words[1].split(" ")[0] in wanted:
            sql.execute("CREATE TABLE " + words[1])
    sql.execute("BEGIN")
    sql.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.25.0')")
    sql.execute("INSERT INTO PROCESSES VALUES (?, 4001, 'python3')", (GLOBAL,))
    sql.execute("INSERT INTO TARGET_INFO_GPU (vmId, id, name) VALUES (1, 0, 'GPU')")
    sql.execute("INSERT INTO TARGET_INFO_CUDA_DEVICE VALUES (0, 0, 4001, 'x', 132)")
    names = [(i + 1, f"void kernel_{i}<(int){i}>(float*)") for i in range(40)]
    sql.executemany("INSERT INTO StringIds VALUES (?, ?)", names)
    steps = kernels // PER_STEP
    sql.executemany(
        'INSERT INTO NVTX_EVENTS (start, "end", eventType, "text", globalTid)'
        f" VALUES (?, ?, 59, ?, {GLOBAL | 4001})",
        ((i * PER_STEP * SLOT, (i + 1) * PER_STEP * SLOT - 500, f"decode {i}")
         for i in range(steps)),
    )  # fmt: skip
    columns = ("start", '"end"', "correlationId", "demangledName", "shortName")
    fixed = {
        "deviceId": 0, "contextId": 1, "streamId": 7, "globalPid": GLOBAL, "registersPerThread": 32,
        "gridX": 1, "gridY": 1, "gridZ": 1, "blockX": 128, "blockY": 1, "blockZ": 1,
        "staticSharedMemory": 0, "dynamicSharedMemory": 0, "localMemoryPerThread": 0,
        "localMemoryTotal": 0, "gridId": 0,
    }  # fmt: skip
    insert = (
        f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL ({', '.join([*columns, *fixed])}) VALUES"
        f" (?, ?, ?, ?, ?, {', '.join(str(v) for v in fixed.values())})"
    )
    source = np.random.default_rng(1)
    for at in range(0, kernels, 1 << 18):
        number = np.arange(at, min(kernels, at + (1 << 18)))
        start = number * SLOT + 1000
        end = start + source.integers(5000, 18_000, len(number))
        name = number % 40 + 1
        rows = np.stack([start, end, number + 1, name, name], 1).tolist()
        sql.executemany(insert, rows)
    sql.execute("COMMIT")
    sql.close()


def timed(command: list[str], limit: float) -> str:
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"> {limit:.0f} s"
    took = f"{time.perf_counter() - begin:.1f} s"
    return took if done.returncode == 0 else f"failed after {took}"


class Terminal:
    """``llmprof open FILE`` at a pseudo-terminal of 120 × 40, and what stands on it."""

    def __init__(self, file: Path) -> None:
        import pyte

        self.begin = time.perf_counter()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            size = struct.pack("HHHH", 40, 120, 0, 0)
            fcntl.ioctl(sys.stdout.fileno(), termios.TIOCSWINSZ, size)
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
            os.execvp(sys.executable, [sys.executable, "-m", "llmprof", "open", str(file)])
        self.screen = pyte.Screen(120, 40)
        self._stream = pyte.ByteStream(self.screen)

    def read(self, limit_s: float) -> None:
        if select.select([self.master], [], [], limit_s)[0]:
            self._stream.feed(os.read(self.master, 1 << 16))

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait(self, ready: Callable[[str], bool], limit_s: float = 1800) -> float:
        """Seconds since the start."""
        while not ready(self.text()):
            self.read(0.05)
            if time.perf_counter() > self.begin + limit_s:
                raise SystemExit(f"not in {limit_s} s; the screen was:\n{self.text()}")
        return time.perf_counter() - self.begin

    def press(self, key: str, ready: Callable[[str], bool]) -> float:
        """Seconds until the key's frame."""
        begin = time.perf_counter()
        os.write(self.master, key.encode())
        while not ready(self.text()):
            self.read(0.05)
        return time.perf_counter() - begin

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def quit(self) -> float:
        """Seconds from the key q to the end of the process."""
        begin = time.perf_counter()
        os.write(self.master, b"q")
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            with suppress(OSError):
                self.read(0.02)
        os.close(self.master)
        return time.perf_counter() - begin


def drawn(text: str) -> bool:
    return "by step" in text and "steps  " in text and "reading the trace" not in text


def busy(text: str) -> bool:
    """Something is still being read: the bar stands in the header."""
    first = text.splitlines()[0]
    return any(word in first for word in ("reading", "analysing", "laying out", "adding up"))


def against(name: str, value: float, limit: float, unit: str) -> None:
    print(f"{name}: {value:.2f} {unit}, {value / limit:.2f} of {limit:g} {unit}", flush=True)


def first_paint(file: Path) -> tuple[float, float, float]:
    """Seconds to the steps on the timeline, CPU seconds for it, peak MB until then."""
    terminal = Terminal(file)
    os.write(terminal.master, b"3")  # typed ahead
    took = terminal.wait(drawn)
    found = took, terminal.cpu_s(), terminal.peak_mb()
    terminal.quit()
    return found


def at_the_terminal(file: Path, small: Path) -> None:
    """Large and small file are interleaved: what differs is the file, not the import."""
    pairs = [(first_paint(file), first_paint(small)) for _ in range(3)]
    large, little = (
        [median(v) for v in zip(*side, strict=True)] for side in zip(*pairs, strict=True)
    )
    print(f"steps on the screen: {large[0]:.2f} s ({large[1]:.2f} s of CPU), of a small file "
          f"{little[0]:.2f} s ({little[1]:.2f} s)")  # fmt: skip
    against("first paint beyond a small file's", large[0] - little[0], 1, "s")
    against("the same, of CPU", large[1] - little[1], 1, "s")
    against("peak memory at the first paint", large[2], 500, "MB")
    terminal = Terminal(file)
    os.write(terminal.master, b"3")
    terminal.wait(drawn)
    keys: list[float] = []

    def waits(ready: Callable[[str], bool]) -> None:
        """Press keys until then: their frames must not wait for the reading."""
        while not ready(terminal.text()):
            for key, page in (("4", "[compare]"), ("3", "[timeline]")):
                keys.append(terminal.press(key, lambda text, page=page: page in text))
            end = time.perf_counter() + 1.0
            while time.perf_counter() < end and not ready(terminal.text()):
                terminal.read(0.05)

    waits(lambda text: "GPU busy" in text)
    kernels_s, kernels_mb = time.perf_counter() - terminal.begin, terminal.peak_mb()
    waits(lambda text: not busy(text))
    refined_s = time.perf_counter() - terminal.begin
    print(f"kernels of the first steps: {kernels_s:.1f} s, peak {kernels_mb:.0f} MB")
    print(f"all kernels in the timeline: {refined_s:.1f} s, {terminal.cpu_s():.1f} s of CPU")
    against("peak memory", terminal.peak_mb(), 1000, "MB")
    keys.sort()
    middle, late = median(keys), keys[int(len(keys) * 0.95)]
    print(f"key to frame while reading: {middle * 1e3:.0f} ms, p95 {late * 1e3:.0f} ms, worst "
          f"{keys[-1] * 1e3:.0f} ms of {len(keys)}")  # fmt: skip
    for name, keys_of in (("zoomed out", "0"), ("zoomed in", "+" * 14)):
        for key in keys_of:
            os.write(terminal.master, key.encode())
            terminal.read(0.3)
        begin = time.perf_counter()
        os.write(terminal.master, b"l")
        last = begin
        while select.select([terminal.master], [], [], 0.3)[0]:
            terminal.read(0)
            last = time.perf_counter()
        print(f"key to frame, {name}: {(last - begin) * 1e3:.0f} ms")
    terminal.quit()
    terminal = Terminal(file)
    os.write(terminal.master, b"3")
    terminal.wait(lambda text: busy(text) and "%" in text.splitlines()[0])
    print(f"quit while reading: {terminal.quit():.2f} s")


def frames(file: Path) -> None:
    """Frames of the timeline alone, in a process of its own."""
    from llmprof.analysis.view.traced import RunTrace
    from llmprof.runfile.reader import RunFileReader

    with RunFileReader(file) as reader:
        data = reader.run_data()
    trace = RunTrace(file, data)
    for _ in trace.refine():
        pass
    lane = trace.lanes.lanes[0]
    assert lane.traced is not None
    low, high = int(lane.traced.bounds_ns[0]), int(lane.traced.bounds_ns[-1])
    for name, share in (("zoomed out", 1.0), ("one in a hundred", 0.01), ("zoomed in", 2e-5)):
        times = []
        for i in range(40):
            start = low + int((high - low) * (1 - share) * i / 40)
            edges = np.linspace(start, start + (high - low) * share, 201).astype(np.int64)
            begin = time.perf_counter()
            lane.spent(edges)
            lane.inside(edges)
            times.append(time.perf_counter() - begin)
        against(f"cells of a frame, {name}", median(times) * 1e3, 30, "ms")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kernels", type=int, default=10_000_000)
    options.add_argument("--bin", default="")
    options.add_argument("--limit", type=float, default=300.0, help="seconds for each other reader")
    options.add_argument("--file", type=Path, help="only open this one, at the terminal")
    options.add_argument("--frames", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.frames:
        frames(chosen.frames)
        return
    if chosen.file:
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "small.sqlite"
            make(small, 3000)
            at_the_terminal(chosen.file, small)
        return
    with tempfile.TemporaryDirectory() as folder:
        file, million, small = (Path(folder) / f"{n}.sqlite" for n in ("large", "million", "small"))
        begin = time.perf_counter()
        make(file, chosen.kernels)
        size = file.stat().st_size / 1e6
        print(
            f"made {chosen.kernels:,} kernels, {size:.0f} MB in {time.perf_counter() - begin:.0f} s"
        )
        make(small, 3000)
        at_the_terminal(file, small)
        subprocess.run([sys.executable, __file__, "--frames", str(file)], check=True)
        make(million, min(1_000_000, chosen.kernels))
        command = [sys.executable, "-m", "llmprof", "export", str(million), "--to", "nsys",
                   "-o", str(Path(folder) / "out.sqlite")]  # fmt: skip
        print(f"export --to nsys of a million kernels, limit 3 s: {timed(command, 120)}")
        for program in ("nsys-tui", "nsys-ai"):
            found = shutil.which(program, path=chosen.bin or None)
            if found:
                for what in ("info", "summary"):
                    print(f"{program} {what}: {timed([found, what, str(file)], chosen.limit)}")


if __name__ == "__main__":
    main()
