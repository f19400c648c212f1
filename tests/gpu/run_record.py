"""``llmprof record`` on a real GPU. About five minutes on one with 16 cores.

    python3 tests/gpu/run_record.py [--only toy,deaths,loop,vllm,…] [--keep DIR]

Programs (record_toy.cu, record_targets.py, record_vllm.py) that know nothing of llmprof are
recorded by one and the same command, and the recording is compared with what they know themselves
or with torch.profiler on the same program in another process. Prints one line a check, tables of
deaths and of kernels, and exits 1 where a check failed.

The interpreter needs torch for CUDA and numpy; transformers for ``generate``; vLLM 0.24 for
``vllm``; nvcc for ``toy`` and ``deaths``; a C compiler for the recorder. textual is not needed.
``ranks`` needs two GPUs. Programs whose kernels are compared start at once and take turns on the
GPU (``recorded/turns.py``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "recorded"
sys.path[:0] = [str(HERE.parents[1]), str(PROGRAMS)]

import record_torch_checks  # noqa: E402
import record_vllm_checks  # noqa: E402
from recorded_truth import (  # noqa: E402
    Ahead,
    Recorded,
    clock,
    failed,
    matched_share,
    names_of,
    say,
)
from recorded_truth import reopened as reopened_truth  # noqa: E402

TARGETS = str(PROGRAMS / "record_targets.py")
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
        str(PROGRAMS / "record_toy.cu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(False, f"nvcc: {done.stderr[-600:]}")
        return None
    return out


def toy(folder: Path, ahead: Ahead) -> None:
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


def deaths(folder: Path, ahead: Ahead) -> None:
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


def window(folder: Path, ahead: Ahead) -> None:
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
        copied = np.searchsorted(stamps, rows.copies.start_ns) - 1
        copies = np.bincount(copied[copied >= 0], minlength=len(stamps))[:-1][counts > 0]
        counts = counts[counts > 0]
        # A copy within a graph is a kernel where CUPTI was not there when the graph was made.
        print(f"       {np.median(counts):.0f} kernels, {np.median(copies):.0f} copies", flush=True)
        return float(np.median((counts + copies)[5:-5])), len(counts)

    (a, n), (b, m) = per_step(whole), per_step(part)
    called = matched_share(part.rows(part.processes[0]))
    say(called > 0.999, f"window: kernels with their launching call {called:.4f}")
    say(
        a == b,
        f"window: kernels and copies a step {b:.0f} in {m} steps of a graph that is older than"
        " the window,"
        f" {a:.0f} in {n} steps recorded from the start",
    )
    truth = part.truths()
    if truth:
        say(m < truth[0]["steps"], f"window: {m} of {truth[0]['steps']} steps have kernels")


LATE = 6


def late(folder: Path, ahead: Ahead) -> None:
    """CUPTI is attached in the middle of two busy threads, of several processes at once."""

    def one(number: int) -> Recorded:
        options = ("--after", f"{200 + 370 * number}steps", "--for", "1s")
        return Recorded(
            folder, f"late-{number}", sys.executable, TARGETS, "busy", options=options,
            TARGET_SECONDS="5",
        )  # fmt: skip

    with ThreadPoolExecutor(LATE) as pool:
        runs = list(pool.map(one, range(LATE)))
    shares, sizes = [], set()
    for run in runs:
        say(run.code == 0 and len(run.processes) == 1, f"late: exit {run.code}")
        with closing(sqlite3.connect(run.path)) as sql:
            counts = sql.execute(
                "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE graphNodeId IS NOT NULL"
                " GROUP BY correlationId"
            ).fetchall()
            (eager,) = sql.execute(
                "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE graphNodeId IS NULL"
            ).fetchone()
        most = Counter(n for (n,) in counts).most_common(1)
        if not most or not eager:
            say(False, f"late: {len(counts)} replays, {eager} kernels of the other thread")
            continue
        called = matched_share(run.rows(run.processes[0]))
        say(called > 0.99, f"{run.path.stem}: kernels with their launching call {called:.4f}")
        sizes.add(most[0][0])
        shares.append(most[0][1] / len(counts))
    say(
        len(sizes) == 1 and len(shares) == LATE and min(shares) > 0.98,
        f"late: a window opened in {LATE} busy processes: replays of {sizes} kernels, whole in"
        f" {min(shares, default=0):.4f} of them at least",
    )


def reopened(folder: Path, ahead: Ahead) -> None:
    """CUPTI leaves and comes again, many times in a process."""

    def one(name: str, target: str, seconds: str) -> Recorded:
        return Recorded(
            folder, name, sys.executable, TARGETS, target, reopening=True,
            TARGET_SECONDS=seconds, REOPEN_S="0.4",
        )  # fmt: skip

    with ThreadPoolExecutor(LATE // 2) as pool:
        busy = list(pool.map(lambda n: one(f"reopened-busy-{n}", "busy", "6"), range(LATE // 2)))
    for run in [one("reopened", "window", "8"), *busy]:
        reopened_truth(run, 5)


def profiler(folder: Path, ahead: Ahead) -> None:
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


def spawned(folder: Path, ahead: Ahead) -> None:
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


def ranks(folder: Path, ahead: Ahead) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        print("skip ranks: one GPU only", flush=True)
        return
    command = (
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        TARGETS, "ranks",
    )  # fmt: skip
    again = Recorded(
        folder, "reopened-ranks", *command, reopening=True, RANK_STEPS="2500", REOPEN_S="0.4"
    )
    say(len(again.processes) == 2, f"reopened-ranks: processes {len(again.processes)}")
    reopened_truth(again, 4)
    run = Recorded(folder, "ranks", *command)
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


def vllm(folder: Path, ahead: Ahead) -> None:
    record_vllm_checks.judge(ahead, folder)


def vllm_reopened(folder: Path, ahead: Ahead) -> None:
    record_vllm_checks.judge_reopened(ahead, folder)


CHECKS: dict[str, Callable[[Path, Ahead], None]] = {
    "bandwidth": record_torch_checks.bandwidth, "loop": record_torch_checks.loop,
    "generate": record_torch_checks.generate, "static": record_torch_checks.static, "vllm": vllm,
    "vllm_reopened": vllm_reopened, "window": window, "late": late, "reopened": reopened,
    "profiler": profiler, "spawned": spawned, "ranks": ranks, "toy": toy, "deaths": deaths,
}  # fmt: skip
AHEAD: dict[str, Callable[[Ahead, Path], None]] = {
    "loop": partial(record_torch_checks.start, target="loop"),
    "generate": partial(record_torch_checks.start, target="generate"),
    "static": lambda ahead, folder: record_torch_checks.start(
        ahead, folder, "generate", "static"
    ),
    "vllm": record_vllm_checks.start, "vllm_reopened": record_vllm_checks.start_reopened,
}  # fmt: skip
"""Checks whose programs take turns on the GPU, and so can be started before they are judged."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, comma separated")
    parser.add_argument("--keep", help="folder for the run files")
    parser.add_argument("--budget", type=float, default=1e9, help="in s: no program starts later")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(CHECKS)
    if unknown := set(wanted) - set(CHECKS):
        parser.error(f"no check {', '.join(sorted(unknown))}")
    begun = time.monotonic()

    def check(name: str) -> None:
        print(f"-- {name} ({time.monotonic() - begun:.0f} s)", flush=True)
        try:
            CHECKS[name](folder, ahead)
        except Exception as why:  # noqa: BLE001 - the next check is still worth a try
            traceback.print_exc()
            say(False, f"{name}: {type(why).__name__}: {str(why)[:300]}")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        ahead = Ahead(folder, arguments.budget)
        with ahead.alone():  # the counters are the whole GPU's
            for name in wanted:
                if name in AHEAD:
                    AHEAD[name](ahead, folder)
            if "bandwidth" in wanted:
                check("bandwidth")
        for name in wanted:
            if name in AHEAD:
                check(name)
        for name in wanted:
            if name not in AHEAD and name != "bandwidth":
                with ahead.alone():
                    check(name)
        if arguments.keep:
            for path in folder.iterdir():
                if path.suffix != ".sqlite":
                    path.unlink() if path.is_file() else shutil.rmtree(path)
    for text in failed:
        print(f"FAILED {text[:160]}", flush=True)
    took = f"{time.monotonic() - begun:.0f} s"
    print(f"{len(failed)} failed, {took}" if failed else f"all ok, {took}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
