"""Runs the stub program with the recorder in it, and reads what spools hold."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import recorder_build
from waiting import until

from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import Trace

KINDS = ("_Z4gemvPfS_", "_Z7softmaxPf", "_Z4copyPKfPf")


def run(
    built: recorder_build.Built, spools: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [built.program, *arguments],
        env=built.environment(spools, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return done


def started(
    built: recorder_build.Built, spools: Path, *arguments: str, **more: str
) -> subprocess.Popen[bytes]:
    """The program, once it has a spool."""
    process = subprocess.Popen([built.program, *arguments], env=built.environment(spools, **more))
    until(lambda: list(spools.glob("*.spool")))
    return process


def frames(path: Path) -> list[tuple[int, dict[str, object] | None]]:
    with spool.SpoolReader(path) as reader:
        found = [
            (f.kind, reader.json(f) if f.kind not in (spool.RECORDS, spool.NVTX) else None)
            for f in reader.frames()
        ]
        assert reader.lost == ""
    return found


def marks(spools: Path) -> list[object]:
    """Where the window was when the recorder said so."""
    return [value["where"] for kind, value in frames(only(spools)) if kind == 3 and value]


def has(spools: Path, wanted: str | int) -> bool:
    """A mark, or a kind of frame, in a spool that is being written."""
    with spool.SpoolReader(only(spools)) as reader:
        found = list(reader.frames())
        return any(
            f.kind == wanted or (f.kind == 3 and reader.json(f).get("where") == wanted)
            for f in found
        )


def marks_of(spools: Path) -> list[object]:
    """As ``marks``, in a spool that is being written; ``tick`` left out."""
    with spool.SpoolReader(only(spools)) as reader:
        found = [reader.json(f)["where"] for f in reader.frames() if f.kind == spool.MARK]
    return [where for where in found if where != "tick"] or [""]


def only(spools: Path) -> Path:
    (path,) = spools.glob("*.spool")
    return path


def kernels(path: Path) -> tuple[int, int]:
    """Kernels and API records; every one has its name and a time on CLOCK_MONOTONIC."""
    trace = Trace(path)
    now = time.monotonic_ns()
    counts = Counter[str]()
    for records in trace.records():
        assert all(trace.kernel_names[int(p)] in KINDS for p in records.kernels["name_ptr"])
        assert (records.kernels["end"] < now).all()
        assert (records.kernels["start"] > now - 120 * 10**9).all()
        counts["kernels"] += len(records.kernels)
        counts["api"] += len(records.api)
    trace.close()
    return counts["kernels"], counts["api"]


def kinds_in(spools: Path) -> Counter[int]:
    """Frames so far of the only spool, which still grows."""
    with spool.SpoolReader(only(spools)) as reader:
        return Counter(frame.kind for frame in reader.frames())
