"""``llmprof record`` on a real GPU. About three minutes.

    python3 tests/gpu/run_record.py [--only toy,deaths,loop,…] [--keep DIR] [--static]

Programs (record_toy.cu, record_targets.py) that know nothing of llmprof are recorded by one and the
same command, and the recording is compared with what they know themselves or with torch.profiler on
the same program in another process. Prints one line a check, tables of deaths and of kernels, and
exits 1 where a check failed.

The interpreter needs torch for CUDA and numpy; transformers for ``generate``; nvcc for ``toy`` and
``deaths``; a C compiler for the recorder. textual is not needed. ``ranks`` needs two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from llmprof.analysis.view.opening import open_run  # noqa: E402
from llmprof.process_records import RecordedProcess  # noqa: E402
from llmprof.records import RoundRecord, RunData  # noqa: E402
from llmprof.runfile.reader import RunFileReader  # noqa: E402
from llmprof.runfile.trace.rows import TraceRows  # noqa: E402
from llmprof.step_records import StepChoice  # noqa: E402

TARGETS = str(HERE / "record_targets.py")
BOUND = 0.01
failed: list[str] = []


def say(ok: bool, text: str) -> bool:
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)
    return ok


class Recorded:
    """What one recording left, read with llmprof's own reader."""

    def __init__(
        self, folder: Path, name: str, *command: str, options: tuple[str, ...] = (), **env: str
    ) -> None:
        self.path = folder / f"{name}.sqlite"
        self.path.unlink(missing_ok=True)
        line = [sys.executable, "-m", "llmprof", "record", "--headless", "-o", str(self.path)]
        begin = time.monotonic()
        done = subprocess.run(
            [*line, *options, "--", *command],
            cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        self.seconds = time.monotonic() - begin
        self.code, self.out, self.said = done.returncode, done.stdout, done.stderr
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


def clock(rows: TraceRows, name: str) -> None:
    """No kernel may begin before the call that launched it did."""
    begin = dict(zip(rows.api.correlation.tolist(), rows.api.start_ns.tolist(), strict=True))
    early = [
        int(start) - begin[int(number)]
        for start, number in zip(rows.kernels.start_ns, rows.kernels.correlation, strict=True)
        if int(number) in begin
    ]
    if early:
        say(
            min(early) >= 0,
            f"{name}: the first kernel after its call: {min(early) / 1000:.2f} µs later",
        )


# -- the C++ program ---------------------------------------------------------------------------


def build_toy(folder: Path, *flags: str) -> Path | None:
    nvcc = shutil.which("nvcc") or next(
        (str(p) for p in sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))), None
    )
    if nvcc is None:
        say(False, "nvcc was not found: toy and deaths are not run")
        return None
    out = folder / f"record_toy{''.join(flags)}".replace("=", "").replace(" ", "")
    command = [
        nvcc,
        "-O2",
        "-std=c++17",
        "-arch=native",
        *flags,
        "-o",
        str(out),
        str(HERE / "record_toy.cu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(False, f"nvcc: {done.stderr[-600:]}")
        return None
    return out


def toy(folder: Path) -> None:
    for kind, flags in (("static", ()), ("shared", ("-cudart=shared",))):
        program = build_toy(folder, *flags)
        if program is None:
            return
        more = {}
        if kind == "shared":
            libraries = sorted(Path("/usr/local").glob("cuda*/lib64"))
            more = {
                "LD_LIBRARY_PATH": ":".join(
                    [*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]
                )
            }
        run = Recorded(folder, f"toy-{kind}", str(program), "exit", "200", "500", **more)
        say(run.code == 7, f"toy {kind}: its exit code: {run.code}")
        if not run.processes:
            why = [m.reason for m in run.data.missing] if run.data else ""
            say(False, f"toy {kind}: no process with kernels: {why}")
            continue
        (process,) = run.processes
        rows = run.rows(process)
        counts = Counter(
            name.split("(")[0].split("<")[0].split()[-1]
            for name in names_of(rows, slice(None)).elements()
        )
        say(
            counts == {"add_one": 2000, "multiply": 2000, "in_graph": 6400},
            f"toy {kind}: kernels {dict(counts)} in {run.seconds:.1f} s, by {process.library}",
        )
        copies = int((rows.copies.kind == 2).sum())
        say(copies == 200, f"toy {kind}: copies to the host {copies}")
        say(
            matched_share(rows) == 1.0,
            f"toy {kind}: kernels with their launching call {matched_share(rows):.4f}",
        )
        clock(rows, f"toy {kind}")
        print(
            f"       ranges {process.ranges} (0 where the toolkit has no NVTX header)", flush=True
        )


def deaths(folder: Path) -> None:
    program = build_toy(folder)
    if program is None:
        return
    print("     end      exit  lost ms  kernels of 52 × 400", flush=True)
    codes = {
        "return": 0,
        "_exit": 3,
        "term": 143,
        "abort": 134,
        "segv": 139,
        "throw": 134,
        "exec": 0,
        "kill": 137,
    }
    for end, code in codes.items():
        run = Recorded(folder, f"death-{end}", str(program), end, "400", "1000")
        stamps = [int(line[2:]) for line in run.out.splitlines() if line.startswith("T ")]
        if not run.processes or not stamps or run.data is None:
            say(False, f"death {end}: nothing recorded")
            continue
        process = run.processes[0]
        rows = run.rows(process)
        last = run.data.info.t0_ns + int(max(rows.kernels.end_ns.max(), rows.copies.end_ns.max()))
        lost_ms = (stamps[-1] - last) / 1e6
        named = all("unknown" not in name for name in rows.kernels.names.values())
        limit = 1.0 if end in ("return", "term") else 400.0
        say(
            run.code == code and lost_ms < limit and named,
            f"{end:8} {run.code:5} {lost_ms:8.2f}  {process.kernels}",
        )


# -- torch -------------------------------------------------------------------------------------


def profiled(target: str, folder: Path, *words: str) -> dict[str, Any] | None:
    out = folder / f"profile-{target}"
    done = subprocess.run(
        [sys.executable, TARGETS, target, *words, "--profile", str(out)],
        capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    found = [line[6:] for line in done.stdout.splitlines() if line.startswith("TRUTH ")]
    if not found:
        say(False, f"{target} under torch.profiler: {done.stderr[-800:]}")
        return None
    result: dict[str, Any] = json.loads(found[0])
    return result


def agree(
    name: str, rows: TraceRows, phase: list[Any], seen: dict[str, list[float]], t0: int
) -> None:
    """Kernels that begin within the phase against the profiler's."""
    _, _, begin, end = phase
    start = rows.kernels.start_ns + t0
    inside = (start >= begin) & (start <= end)
    ours: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    durations = (rows.kernels.end_ns - rows.kernels.start_ns) / 1000
    for number, took in zip(rows.kernels.name_id[inside], durations[inside], strict=True):
        entry = ours[rows.kernels.names[int(number)]]
        entry[0] += 1
        entry[1] += float(took)
    count, theirs = sum(v[0] for v in ours.values()), sum(v[0] for v in seen.values())
    say(count == theirs, f"{name}: kernels {count}, torch.profiler {theirs:.0f}")
    total = sum(v[1] for v in ours.values()) / max(1e-9, sum(v[1] for v in seen.values()))
    say(abs(total - 1) < BOUND, f"{name}: kernel time {total:.4f} of torch.profiler's")
    by_time = sorted(ours.items(), key=lambda item: -item[1][1])[:5]
    their_names = sorted(seen.items(), key=lambda item: -item[1][1])
    pairs = list(zip(by_time, their_names, strict=False))
    for (kernel, (n, us)), (other, (m, other_us)) in pairs:
        mine, its = _plain(kernel)[:60], _plain(other)[:60]
        ratio = us / max(other_us, 1e-9)
        differs = "" if mine == its else f" ≠ {its[:30]}"
        print(f"       {us:9.0f} µs {n:5} ({m:.0f}) × {mine:60} {ratio:.4f}{differs}", flush=True)
    ours_top = sum(us for _, (_, us) in by_time)
    theirs_top = sum(us for _, (_, us) in their_names[:5])
    say(
        abs(ours_top / max(theirs_top, 1e-9) - 1) < BOUND,
        f"{name}: top five kernels {ours_top / max(theirs_top, 1e-9):.4f} of torch.profiler's",
    )


def _plain(name: str) -> str:
    return name.split("(")[0].removeprefix("void ").strip()


def loop(folder: Path) -> None:
    run = Recorded(folder, "loop", sys.executable, TARGETS, "loop")
    truths = run.truths()
    seen = profiled("loop", folder)
    if not truths or not run.processes or run.data is None or seen is None:
        return
    (process,) = run.processes
    rows = run.rows(process)
    say(process.ranges >= 82, f"loop: NVTX ranges {process.ranges}")
    say(
        matched_share(rows) == 1.0,
        f"loop: kernels with their launching call {matched_share(rows):.4f} of {process.kernels}",
    )
    clock(rows, "loop")
    steps = sum(r.steps + 1 for r in run.data.rounds)
    say(steps >= 80, f"loop: steps from the ranges {steps}, rounds {len(run.data.rounds)}")
    detected = open_run(run.path, StepChoice("detect"))
    counts = [r.steps for r in detected.rounds]
    print(f"       without its ranges: steps detected {counts}, of 43 + 43 and more", flush=True)
    for phase in truths[0]["phases"]:
        agree(f"loop {phase[0]}", rows, phase, seen[phase[0]], run.data.info.t0_ns)


def generate(folder: Path, *words: str) -> None:
    name = "-".join(["generate", *words])
    run = Recorded(folder, name, sys.executable, TARGETS, "generate", *words)
    truths = run.truths()
    seen = profiled("generate", folder, *words)
    if not truths or not run.processes or run.data is None or seen is None:
        return
    process = max(run.processes, key=lambda p: p.kernels)
    say(len(run.processes) == 1, f"{name}: processes with kernels {len(run.processes)}")
    say(
        process.ranges == 4 * 40 + 1,
        f"{name}: forwards marked {process.ranges - 1}, of 4 calls of 40 tokens",
    )
    rows = run.rows(process)
    say(
        matched_share(rows) == 1.0,
        f"{name}: kernels with their launching call {matched_share(rows):.4f} of {process.kernels}",
    )
    agree(name, rows, truths[0]["phases"][0], seen["generate"], run.data.info.t0_ns)


def window(folder: Path) -> None:
    whole = Recorded(folder, "window-all", sys.executable, TARGETS, "window", TARGET_SECONDS="2")
    part = Recorded(
        folder,
        "window-part",
        sys.executable,
        TARGETS,
        "window",
        options=("--after", "20steps", "--for", "2s"),
    )
    if not whole.processes or not part.processes or part.data is None or whole.data is None:
        return

    def per_step(run: Recorded) -> tuple[float, int]:
        assert run.data is not None
        process = run.processes[0]
        rows = run.rows(process)
        stamps = np.concatenate([np.asarray(r.stamps_ns) for r in run.data.rounds])
        at = np.searchsorted(stamps, rows.kernels.start_ns) - 1
        counts = np.bincount(at[at >= 0], minlength=len(stamps))[:-1]
        counts = counts[counts > 0]
        return float(np.median(counts[5:-5])), len(counts)

    (a, n), (b, m) = per_step(whole), per_step(part)
    say(
        a == b,
        f"window: kernels a step {b:.0f} in {m} steps of a graph that is older than the window,"
        f" {a:.0f} in {n} steps recorded from the start",
    )
    truth = part.truths()
    if truth:
        say(m < truth[0]["steps"], f"window: {m} of {truth[0]['steps']} steps have kernels")


def profiler(folder: Path) -> None:
    run = Recorded(folder, "profiler", sys.executable, TARGETS, "profiler")
    truths = run.truths()
    if not truths or not run.processes or run.data is None:
        return
    rows = run.rows(run.processes[0])
    start = rows.kernels.start_ns + run.data.info.t0_ns
    counts = [int(((start >= b) & (start <= e)).sum()) for _, _, b, e in truths[0]["phases"]]
    say(
        len(set(counts)) == 1 and counts[0] > 0,
        f"a program with torch.profiler in it: kernels before, during, after, again… {counts}",
    )


def spawned(folder: Path) -> None:
    run = Recorded(folder, "spawned", sys.executable, TARGETS, "spawned")
    truths = run.truths()
    if not truths or not run.processes:
        return
    process = run.processes[-1]
    say(
        process.pid == truths[0]["child"] and process.ranges == 50,
        f"spawned child, ended by terminate(): {process.kernels} kernels, {process.ranges} of 50"
        " ranges",
    )


def ranks(folder: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        print("skip ranks: one GPU only", flush=True)
        return
    run = Recorded(
        folder, "ranks", sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", TARGETS, "ranks",
    )  # fmt: skip
    truths = run.truths()
    if len(run.processes) != 2 or not truths or run.data is None:
        say(False, f"ranks: processes with kernels {len(run.processes)}")
        return
    say(
        sorted(p.rank or 0 for p in run.processes) == [0, 1],
        f"ranks: {[(e.label, e.info.device if e.info else '') for e in run.data.engines]}",
    )
    for truth in truths:
        process = next(p for p in run.processes if p.rank == truth["rank"])
        rows = run.rows(process)
        start = rows.kernels.start_ns + run.data.info.t0_ns
        phase = truth["phases"][0]
        inside = (start >= phase[2]) & (start <= phase[3])
        reduces = sum(n for name, n in names_of(rows, inside).items() if "AllReduce" in name)
        say(
            reduces == truth["reduces_a_step"] * phase[1],
            f"ranks: rank {truth['rank']}: all-reduces {reduces} in {phase[1]} steps",
        )


CHECKS: dict[str, Callable[[Path], None]] = {
    "toy": toy, "deaths": deaths, "loop": loop, "window": window, "profiler": profiler,
    "spawned": spawned, "generate": generate, "ranks": ranks,
    "static": lambda folder: generate(folder, "static"),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, comma separated")
    parser.add_argument("--keep", help="folder for the run files")
    parser.add_argument(
        "--static", action="store_true", help="generate with a static cache too (compiles)"
    )
    arguments = parser.parse_args()
    wanted = (
        arguments.only.split(",")
        if arguments.only
        else [n for n in CHECKS if n != "static" or arguments.static]
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            print(f"-- {name}", flush=True)
            try:
                CHECKS[name](folder)
            except Exception as why:  # noqa: BLE001 - the next check is still worth a try
                traceback.print_exc()
                say(False, f"{name}: {type(why).__name__}: {str(why)[:300]}")
        if arguments.keep:
            for path in folder.iterdir():
                if not path.name.endswith(".sqlite"):
                    path.unlink() if path.is_file() else shutil.rmtree(path)
    print(f"{len(failed)} failed" if failed else "all ok", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
