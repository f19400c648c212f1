"""What the checks of ``run_record.py`` share: a program is recorded, read with llmprof's reader,
and compared with what it knows itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import turns

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from llmprof.analysis.view.opening import open_run  # noqa: E402
from llmprof.recording.spooled.call_ids import NO_CALL  # noqa: E402
from llmprof.records import RoundRecord, RunData  # noqa: E402
from llmprof.records.processes import RecordedProcess  # noqa: E402
from llmprof.runfile.reader import RunFileReader  # noqa: E402
from llmprof.runfile.trace.rows import TraceRows  # noqa: E402

BOUND = 0.01
TICKS_US = 0.128
"""Four steps of the GPU's clock: on an H100 every duration is a multiple of 32 ns."""
PAUSE_NS = 0.2e9
"""Without a kernel: the window was closed."""
EDGE_NS = 100e6
"""Of a window: what was launched before it opened has no call in it, and a stream may be behind."""
AT_ONCE = 6
"""Programs that start, run or are written down: one has the GPU (``turns``), the others none."""
LONGEST_S = 240.0
"""Of one program, its wait for the GPU included."""
failed: list[str] = []


def say(ok: bool, text: str) -> bool:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)
    return ok


def bounded(command: list[str], env: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; asked to end after ``LONGEST_S``, since a killed llmprof would
    leave its program behind."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, said = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            out, said = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, said = process.communicate()
        say(False, f"more than {LONGEST_S:.0f} s: {' '.join(command[-4:])}")
    return process.returncode, out, said


class Recorded:
    """What one recording left, read with llmprof's own reader."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *command: str,
        options: tuple[str, ...] = (),
        reopening: bool = False,
        **env: str,
    ) -> None:
        self.path = folder / f"{name}.sqlite"
        self.path.unlink(missing_ok=True)
        ours = [str(HERE / "record_reopening.py")] if reopening else ["-m", "llmprof"]
        line = [sys.executable, *ours, "record", "--headless", "-o", str(self.path)]
        begin = time.monotonic()
        self.code, self.out, self.said = bounded([*line, *options, "--", *command], env)
        self.seconds = time.monotonic() - begin
        self.data: RunData | None = None
        if not self.path.exists() or "Traceback" in self.said:
            say(False, f"{name}: no recording: exit {self.code}: {self.said[-1500:]}")
            return
        self.data = open_run(self.path)
        for text in (w.text for w in self.data.warnings):
            print(f"       warning: {text[:200]}", flush=True)
        left = [p.name for p in folder.iterdir() if p.name.startswith(f".{name}.")]
        say(not left, f"{name}: {self.seconds:.1f} s, exit {self.code}, nothing left behind {left}")

    @property
    def processes(self) -> list[RecordedProcess]:
        return [p for p in self.data.processes if p.kernels] if self.data else []

    def truths(self) -> list[dict[str, Any]]:
        found = [line[6:] for line in self.out.splitlines() if line.startswith("TRUTH ")]
        if not found:
            say(False, f"{self.path.stem}: the program told nothing: {self.said[-800:]}")
        return [json.loads(line) for line in found]

    def rows(
        self, process: RecordedProcess, start: int | None = None, end: int | None = None
    ) -> TraceRows:
        """Rows that begin within a stretch of CLOCK_MONOTONIC."""
        assert self.data is not None
        t0 = self.data.info.t0_ns
        first = process.first_ns if start is None else start - t0
        last = process.last_ns if end is None else end - t0
        with RunFileReader(self.path) as reader:
            whole = RoundRecord(
                1, 0, "traced", 0, process.process, 0, first, first, array_q(), last, True
            )
            return reader.trace_rows(whole)


def array_q() -> Any:
    from array import array

    return array("q")


def names_of(rows: TraceRows, mask: Any) -> Counter[str]:
    return Counter(rows.kernels.names[int(i)] for i in rows.kernels.name_id[mask])


def matched_share(rows: TraceRows) -> float:
    """Kernels whose launching call is in the trace."""
    if not len(rows.kernels.start_ns):
        return 0.0
    return float(np.isin(rows.kernels.correlation, rows.api.correlation).mean())


def reopened(run: Recorded, least: int) -> None:
    """A recording by ``record_reopening.py``: the program has survived it, and each time that the
    window was open its kernels have their calls."""
    if not run.processes or run.data is None:
        say(False, f"{run.path.stem}: exit {run.code}: {run.said[-400:]}")
        return
    process = max(run.processes, key=lambda p: p.kernels)
    rows = run.rows(process)
    start = rows.kernels.start_ns
    order = np.sort(start)
    cuts = np.flatnonzero(np.diff(order) > PAUSE_NS)
    opened = order[np.concatenate([[0], cuts + 1])]
    closed = order[np.concatenate([cuts, [len(order) - 1]])]
    session = np.searchsorted(opened, start, side="right") - 1
    edge = (start < opened[session] + EDGE_NS) | (start > closed[session] - EDGE_NS)
    stuck = rows.kernels.correlation % 2**32 == NO_CALL
    called = np.isin(rows.kernels.correlation, rows.api.correlation)
    say(
        run.code == 0 and len(opened) >= least and bool((called | stuck | edge).all()),
        f"{run.path.stem}: {len(opened)} times open, {process.kernels} kernels,"
        f" {called.mean():.4f} with their launching call, {stuck.mean():.4f} known to have none,"
        f" the others within {EDGE_NS / 1e6:.0f} ms of a window's ends",
    )
    clock(rows, run.path.stem, 50.0)


def clock(rows: TraceRows, name: str, bound_us: float = 0.0) -> None:
    """No kernel may begin before the call that launched it did, by more than the bound."""
    begin = dict(zip(rows.api.correlation.tolist(), rows.api.start_ns.tolist(), strict=True))
    early = [
        int(start) - begin[int(number)]
        for start, number in zip(rows.kernels.start_ns, rows.kernels.correlation, strict=True)
        if int(number) in begin
    ]
    if early:
        say(
            min(early) >= -1000 * bound_us,
            f"{name}: the first kernel after its call: {min(early) / 1000:.2f} µs later",
        )


Launches = dict[str, list[float]]
"""Kernel → µs of each launch of one repeat of a phase, in their order."""


class Ahead:
    """Programs that are started before their results are asked for, in this order.

    Args:
        budget_s: what would start later is left out, and said.
    """

    def __init__(self, folder: Path, budget_s: float) -> None:
        self._until = time.monotonic() + budget_s
        self.turn = {"RECORD_TURN": str(folder / "turn")}
        """Environment of programs that take turns."""
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._found: dict[str, list[Future[Any]]] = defaultdict(list)

    def start(self, name: str, work: Callable[[], Any]) -> None:
        def in_time() -> Any:
            if time.monotonic() < self._until:
                return work()
            print(f"     ! {name}: one program is left out: the time is over", flush=True)
            return None

        self._found[name].append(self._pool.submit(in_time))

    def alone(self) -> AbstractContextManager[None]:
        """No program has its turn meanwhile."""
        return turns.alone(self.turn["RECORD_TURN"])

    def of(self, name: str) -> list[Any]:
        """What each ``work`` of that name gave, those that failed left out."""
        found = []
        for future in self._found.pop(name, []):
            try:
                found.append(future.result())
            except Exception as why:  # noqa: BLE001 - the others are still worth it
                say(False, f"{name}: {type(why).__name__}: {str(why)[:300]}")
        return [one for one in found if one is not None]


def told(command: list[str], **env: str) -> dict[str, Any] | None:
    """What a program says about itself, run without llmprof."""
    _, out, said = bounded(command, env)
    found = [line[6:] for line in out.splitlines() if line.startswith("TRUTH ")]
    if not found:
        say(False, f"{' '.join(command[1:4])} under torch.profiler: {said[-800:]}")
        return None
    result: dict[str, Any] = json.loads(found[0])
    return result


def phases_of(run: Recorded, rows: TraceRows, truth: dict[str, Any], name: str) -> list[Launches]:
    """Kernels that begin within each repeat of a phase."""
    assert run.data is not None
    order = np.argsort(rows.kernels.start_ns, kind="stable")
    start = rows.kernels.start_ns[order] + run.data.info.t0_ns
    took = (rows.kernels.end_ns - rows.kernels.start_ns)[order] / 1000
    names = rows.kernels.name_id[order]
    found = []
    for phase, _, begin, end in truth["phases"]:
        if phase != name:
            continue
        inside = (start >= begin) & (start <= end)
        launches: Launches = defaultdict(list)
        for number, duration in zip(names[inside].tolist(), took[inside].tolist(), strict=True):
            launches[rows.kernels.names[number]].append(duration)
        found.append(dict(launches))
    return found


def agree(name: str, ours: list[list[Launches]], theirs: list[list[Launches]]) -> None:
    """The recorder's kernels against torch.profiler's on the same program.

    Args:
        ours: of each recorded process, each repeat of a phase.
        theirs: of each process under torch.profiler.

    The k-th launch of a kernel is compared with the k-th. A process has of each launch the median
    over its repeats, and of a kernel the sum of these; a tool has the mean over its processes.
    No kernel takes the same time in two processes, so beside each ratio stands how far the
    processes of one tool are apart: the ratio has to be within 1 %, or within that, or within
    ``TICKS_US`` a launch. With one process of a tool nobody knows the second of these, and a single
    kernel is shown and not judged.
    """
    counts = {sum(map(len, one.values())) for part in ours for one in part}
    expected = {sum(map(len, one.values())) for part in theirs for one in part}
    say(
        counts == expected and len(counts) == 1,
        f"{name}: kernels a repeat {sorted(counts)}, torch.profiler {sorted(expected)}; processes"
        f" {len(ours)} and {len(theirs)}, repeats {[len(p) for p in ours + theirs]}",
    )
    mine, its = ([_typical(part) for part in tool] for tool in (ours, theirs))
    whole = [[float(sum(map(np.sum, p.values()))) for p in tool] for tool in (mine, its)]
    total = float(np.mean(whole[0]) / max(1e-9, np.mean(whole[1])))
    apart = max(map(_apart, whole))
    say(
        abs(total - 1) < max(BOUND, apart),
        f"{name}: kernel time {total:.4f} of torch.profiler's; processes of one tool are"
        f" {100 * apart:.2f} % apart",
    )
    top = sorted(mine[0], key=lambda kernel: -float(mine[0][kernel].sum()))[:5]
    exact = 0
    for kernel in top:
        exact += _one_kernel(name, kernel, mine, its)
    print(f"       {exact} of the top {len(top)} kernels are within 1 %", flush=True)


Typical = dict[str, np.ndarray[Any, Any]]
"""Kernel → µs of each launch, median over the repeats of a process."""


def _typical(repeats: list[Launches]) -> Typical:
    """Names are plain: torch.profiler demangles in its own way. Launches that not every repeat has
    are left out."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for one in repeats:
        joined: dict[str, list[float]] = defaultdict(list)
        for kernel, took in one.items():
            joined[_plain(kernel)] += took
        for kernel, took in joined.items():
            found[kernel].append(took)
    typical = {}
    for kernel, repeated in found.items():
        shortest = min(map(len, repeated))
        typical[kernel] = np.median(np.array([took[:shortest] for took in repeated]), axis=0)
    return typical


def _one_kernel(name: str, kernel: str, mine: list[Typical], its: list[Typical]) -> bool:
    """Prints its line; whether it is within 1 %."""
    sums = [[float(p[kernel].sum()) for p in tool if kernel in p] for tool in (mine, its)]
    if not all(sums):
        return say(False, f"{name}: {kernel[:58]} is in one tool's kernels only")
    launches = min(len(p[kernel]) for tool in (mine, its) for p in tool if kernel in p)
    by_launch = [
        np.mean([p[kernel][:launches] for p in tool if kernel in p], axis=0) for tool in (mine, its)
    ]
    middle = float(np.median(by_launch[0] / np.maximum(by_launch[1], 1e-9)))
    ratio = float(np.mean(sums[0]) / np.mean(sums[1]))
    apart = max(map(_apart, sums))
    reference = float(np.mean(sums[0] + sums[1]))
    each = "; ".join(" ".join(f"{value / reference:.4f}" for value in tool) for tool in sums)
    text = (
        f"{np.mean(sums[0]):9.0f} µs {launches:5} × {kernel[:58]:58} {ratio:.4f}, launch by launch"
        f" {middle:.4f}; one tool's processes {100 * apart:.2f} % apart ({each})"
    )
    launch_us = abs(np.mean(sums[0]) - np.mean(sums[1])) / max(1, launches)
    if abs(ratio - 1) < BOUND:
        print(f"       {text}", flush=True)
        return True
    if abs(ratio - 1) < apart or launch_us < TICKS_US or min(map(len, sums)) < 2:
        print(f"     ! {text}; {launch_us:.2f} µs a launch", flush=True)
    else:
        say(False, f"{name}: {text}")
    return False


def _apart(values: list[float]) -> float:
    """What the processes of one tool span, as a share of their mean."""
    return float(np.ptp(values) / max(1e-9, float(np.mean(values)))) if len(values) > 1 else 0.0


def _plain(name: str) -> str:
    return name.split("(")[0].removeprefix("void ").strip()
