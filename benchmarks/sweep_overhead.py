"""What a sweep costs beside its points: scheduling, report and page of 10,000 points.

    python benchmarks/sweep_overhead.py [--points 10000] [--few 8] [--ray]

* scheduling: points whose llmprof ends at once (a model that nobody has), here and, with
  ``--ray``, on a Ray node of this host that is started for it; median time from one point to the
  next, less that of the same command called again and again in one process.
* report and page: a store of made points; ``llmprof sweep report --to html`` from start to end, and
  ``llmprof sweep view`` in a pseudo-terminal until its first frame and until its curves are there.

Exit status 1: over a budget (0.2 s local, 1 s Ray, 5 s report, 1 s first paint).
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests" / "support" / "stubs"),
    str(ROOT / "tests" / "support"),
]
BUDGETS = {"local": 0.2, "ray": 1.0, "report": 5.0, "paint": 1.0}
FAILS = ["--engine", "torch", "--model", "no-such-model"]


def alone(count: int) -> float:
    """Median time of the command of one such point, s."""
    from llmprof.cli import run_command_line

    times = []
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        for _ in range(count):
            begin = time.monotonic()
            file = str(Path(folder) / "run.sqlite")
            run_command_line(["--json", "-o", file, *FAILS, "--prompt-len", "8"])
            times.append(time.monotonic() - begin)
    return statistics.median(times)


def scheduled(count: int, ray: bool) -> tuple[float, float]:
    """Median time from one such point to the next, s; and CPU time a point of all processes that
    ended (the points' own, and this one's)."""
    from llmprof.sweep.executors.cluster import connect
    from llmprof.sweep.executors.local import LocalExecutor
    from llmprof.sweep.grid import make
    from llmprof.sweep.run import sweep
    from llmprof.sweep.store import Store

    grid = make([FAILS[1]], {"model": FAILS[3], "context": list(range(8, 8 + count + 1))})
    ends: list[float] = []
    before = os.times()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", grid)
        executor = connect("auto", grid, "", "") if ray else LocalExecutor()
        if ray:
            for node in executor.skipped.values():
                sys.exit(f"the cluster cannot be used: {node}")
        try:
            sweep(store, executor, [], tell=lambda text: ends.append(time.monotonic()),
                  stop=lambda: False)  # fmt: skip
        finally:
            executor.close()
    used = os.times()
    cpu = sum(used[:4]) - sum(before[:4])
    return statistics.median(b - a for a, b in pairwise(ends)), cpu / (count + 1)


def on_ray(count: int) -> float:
    """The same on a node with one CPU."""
    from ray_nodes import RayNodes

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        with RayNodes(environment, Path(short) / "ray") as nodes:
            nodes.start()
            os.environ["RAY_ADDRESS"] = nodes.address
            return scheduled(count, ray=True)[0]


def made(folder: Path, points: int) -> None:
    """A store of about so many points: contexts × batches, two engines."""
    from sweep_factory import grid, made_store

    os.fsync = lambda number: None  # the benchmark's own store need not survive a power cut
    contexts = ",".join(str(128 * (n + 1)) for n in range(max(1, points // 10)))
    made_store(folder, grid(contexts, ",".join(map(str, range(1, 11)))))


def cpu_of(pid: int) -> float:
    """Seconds of processor time that a process has had so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def painted(folder: Path) -> tuple[float, float, float]:
    """Seconds until the page's first frame, CPU seconds until then, seconds until its curves."""
    begin = time.monotonic()
    pid, master = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "llmprof", "sweep", "view", str(folder)])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    seen, first, cpu, curves = b"", 0.0, 0.0, 0.0
    try:
        while time.monotonic() - begin < 60 and not curves:
            if select.select([master], [], [], 0.05)[0]:
                seen += os.read(master, 65536)
            if not first and b"sweep" in seen:
                first, cpu = time.monotonic() - begin, cpu_of(pid)
            if b"step, ms" in seen:
                curves = time.monotonic() - begin
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
    return first, cpu, curves


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--ray", action="store_true", help="start a node of Ray too")
    given = parser.parse_args()
    found: dict[str, float] = {}
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    base = alone(given.few)
    step, cpu = scheduled(given.few, ray=False)
    found["local"] = step - base
    print(f"llmprof alone {base:.3f} s; a point of a local sweep {found['local']:+.3f} s"
          f" (CPU {cpu:.3f} s, the run's included)")  # fmt: skip
    if given.ray:
        found["ray"] = on_ray(given.few) - base
        print(f"a point on Ray {found['ray']:+.3f} s")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s"
        made(store, given.points)
        begin, before = time.monotonic(), os.times()
        subprocess.run(
            [sys.executable, "-m", "llmprof", "sweep", "report", str(store), "--to", "html"],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found["report"] = time.monotonic() - begin
        cpu = sum(os.times()[2:4]) - sum(before[2:4])
        found["paint"], paint_cpu, curves = painted(store)
    print(
        f"{given.points:,} points: report {found['report']:.2f} s (CPU {cpu:.2f} s), first paint"
        f" {found['paint']:.2f} s (CPU {paint_cpu:.2f} s), curves {curves:.2f} s"
    )
    over = [name for name, value in found.items() if value > BUDGETS[name]]
    if over:
        print(f"over budget: {', '.join(over)}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
