"""py-spy and the metronome: times that are right, files that are not, and every way to fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.records import Unavailable
from llmprof.tracers.pyspy import tracer as pyspy
from llmprof.tracers.pyspy.chrome import HostSamples, decode
from llmprof.tracers.pyspy.metronome import BEATS, FILE_NAME
from llmprof.tracers.pyspy.ptrace import permission
from llmprof.tracers.pyspy.tracer import HostPlan, PySpyTracer

needs_pyspy = pytest.mark.skipif(
    pyspy.find() is None or not permission().allowed,
    reason="py-spy is not installed, or ptrace is not allowed",
)

TARGET = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from llmprof.tracers.pyspy import metronome
metronome.let_read(os.getppid())
child = metronome.spawn(sys.argv[2], int(sys.argv[3]), os.getppid())
def busy():
    end = time.monotonic() + 0.004
    while time.monotonic() < end: pass
def idle():
    time.sleep(0.007)
print(child.pid, flush=True)
marks, end = [], time.monotonic() + float(sys.argv[4])
while time.monotonic() < end:
    marks.append((time.monotonic_ns(), "busy")); busy()
    marks.append((time.monotonic_ns(), "idle")); idle()
print(json.dumps(marks), flush=True)
"""


class Target:
    def __init__(self, tracer: PySpyTracer, seconds: float) -> None:
        root = str(Path(pyspy.__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", TARGET, root, str(tracer.board_path)),
                *(str(tracer.plan.tick_ns), str(seconds)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.metronome = int(self.process.stdout.readline())

    def marks(self) -> list[tuple[int, str]]:
        assert self.process.stdout is not None
        found: list[tuple[int, str]] = json.loads(self.process.stdout.readline())
        return found

    def compared(
        self, found: HostSamples, marks: list[tuple[int, str]], slack_ns: int
    ) -> tuple[int, int]:
        """How many samples show a function, and how many another one than ran at their time,
        further than the slack from the moment of change."""
        times = [t for t, _ in marks]
        checked = wrong = 0
        for sample in found.samples:
            stack = dict(sample.stacks).get(self.process.pid, ())
            shown = next((f[0] for f in stack if f[0] in ("busy", "idle")), None)
            at = bisect_right(times, sample.time_ns) - 1
            if shown is None or not 0 <= at < len(marks) - 1:
                continue
            checked += 1
            near = min(sample.time_ns - times[at], times[at + 1] - sample.time_ns)
            wrong += marks[at][1] != shown and near > slack_ns
        return checked, wrong


@pytest.fixture
def tracer(tmp_path: Path) -> Iterator[PySpyTracer]:
    made = PySpyTracer(HostPlan(500), tmp_path)
    assert made.open_board() is None
    yield made
    made.close()
    made.close()


@needs_pyspy
def test_samples_are_on_the_monotonic_clock(tracer: PySpyTracer) -> None:
    """The function that a sample shows is the one that ran at its time, give or take the bound."""
    target = Target(tracer, 3.0)
    assert tracer.start(target.process.pid, target.metronome) is None
    marks = target.marks()
    found = tracer.stop()
    target.process.kill()
    target.process.wait()
    assert not isinstance(found, Unavailable)
    checked, wrong = target.compared(found, marks, found.error_ns)
    assert checked > 200
    # A machine that takes the processor away between two reads may break a few.
    assert wrong <= checked * 0.02
    # Unchanged stacks are there too: idle takes 7 of 11 ms, and most samples repeat the last.
    idle = sum("idle" in [f[0] for _, stack in s.stacks for f in stack] for s in found.samples)
    # On one busy processor the sampler runs while the target sleeps, and idle's share grows.
    assert 0.45 < idle / len(found.samples) < 0.95


@needs_pyspy
@pytest.mark.parametrize("native", [False, True])
def test_samples_that_stop_the_worker_are_dated_too(tmp_path: Path, native: bool) -> None:
    """They may take many ticks: the worker stands still meanwhile, so its stack is the tick's."""
    tracer = PySpyTracer(HostPlan(100, native=native, blocking=True), tmp_path)
    assert tracer.open_board() is None
    target = Target(tracer, 3.0)
    try:
        assert tracer.start(target.process.pid, target.metronome) is None
        marks = target.marks()
        found = tracer.stop()
    finally:
        target.process.kill()
        target.process.wait()
        tracer.close()
    assert not isinstance(found, Unavailable)
    assert len(found.samples) > 2 * found.undated
    checked, wrong = target.compared(found, marks, 2_000_000)
    assert checked > 50
    assert wrong <= checked * 0.05


@needs_pyspy
def test_a_dying_worker_leaves_its_samples(tracer: PySpyTracer) -> None:
    target = Target(tracer, 60.0)
    assert tracer.start(target.process.pid, target.metronome) is None
    time.sleep(0.3)
    target.process.kill()
    target.process.wait()
    found = tracer.stop()
    assert not isinstance(found, Unavailable) and len(found.samples) > 10
    # The metronome dies with it (nobody may be there to reap it).
    deadline = time.monotonic() + 5
    while (state := _state(target.metronome)) not in "ZX" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state in "ZX"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@needs_pyspy
def test_a_dying_sampler_is_a_reason(tracer: PySpyTracer) -> None:
    target = Target(tracer, 60.0)
    try:
        assert tracer.start(target.process.pid, target.metronome) is None
        assert tracer._process is not None
        os.kill(tracer._process.pid, signal.SIGKILL)
        found = tracer.stop()
        assert isinstance(found, Unavailable) and "SIGKILL" in found.reason
        assert target.process.poll() is None
    finally:
        target.process.kill()
        target.process.wait()


@needs_pyspy
def test_no_python_at_that_pid(tracer: PySpyTracer) -> None:
    target = Target(tracer, 30.0)
    other = subprocess.Popen(["sleep", "30"])
    try:
        why = tracer.start(other.pid, target.metronome)
        assert why is not None and "py-spy gave up" in why.reason and "\n" not in why.reason
    finally:
        for process in (other, target.process):
            process.kill()
            process.wait()


@needs_pyspy
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is missing")
def test_denied_to_another_user(
    tracer: PySpyTracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """py-spy as nobody, the worker as root."""
    real = pyspy.find()
    assert real is not None
    script = tmp_path / "py-spy"
    copy = shutil.copy(real, Path(tempfile.mkdtemp(dir="/tmp")) / "py-spy")
    Path(copy).parent.chmod(0o755)
    script.write_text(
        f'#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {copy} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(pyspy, "find", lambda: str(script))
    target = Target(tracer, 60.0)
    try:
        why = tracer.start(target.process.pid, target.metronome)
        assert why is not None and "ptrace was denied" in why.reason
        assert "SYS_PTRACE" in why.reason or "ptrace_scope" in why.reason
        assert target.process.poll() is None
    finally:
        target.process.kill()
        target.process.wait()
        shutil.rmtree(Path(copy).parent)


def test_missing_py_spy_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspy.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    why = PySpyTracer(HostPlan(), tmp_path).probe()
    assert why is not None and "[host]'" in why.reason


# -- made-up files ---------------------------------------------------------------------------

WORKER, CLOCK, ZERO = 50, 60, 1_000_000_000


def event(pid: int, ts: int, ph: str, name: str, file: str, line: int = 1) -> dict[str, Any]:
    args = {"filename": file, "line": line}
    return {"args": args, "cat": "py-spy", "name": name, "ph": ph, "pid": pid, "tid": 7, "ts": ts}


def recording(ticks: list[int], seen: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """``seen``: (tick, function of the worker) of each sample, as py-spy would write them."""
    events, last, beat = [], None, None
    for tick, function in seen:
        ts = (ticks[tick] - ZERO) // 1000 + 50
        name = f"beat_{tick % BEATS}"
        if name != beat:
            if beat is not None:
                events.append(event(CLOCK, ts, "E", beat, FILE_NAME))
            events.append(event(CLOCK, ts, "B", name, FILE_NAME))
            beat = name
        if function != last:
            if last is None:
                events.append(event(WORKER, ts + 3, "B", "thread (77): MainThread", "", 0))
                events.append(event(WORKER, ts + 3, "B", "main", "/x/e.py"))
            else:
                events.append(event(WORKER, ts + 3, "E", last, "/x/e.py"))
            events.append(event(WORKER, ts + 3, "B", function, "/x/e.py", tick))
            last = function
    return events


def uneven(count: int) -> list[int]:
    ticks, now = [], ZERO + 5_000_000
    for i in range(count):
        ticks.append(now)
        now += 250_000 + (i * 7919) % 60_011
    return ticks


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from("abc")), min_size=3, max_size=200),
    st.integers(0, 3 * BEATS),
)
@settings(max_examples=50, deadline=None)
def test_every_sample_gets_its_tick(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[tuple[int, str]], first: int
) -> None:
    ticks = uneven(first + 40 * len(jumps) + 50)
    seen, at = [], first
    for jump, function in jumps:
        at += jump
        seen.append((at, function))
    path = tmp_path_factory.getbasetemp() / "made.json"
    path.write_text(json.dumps(recording(ticks, seen)))
    found = decode(path, WORKER, CLOCK, ticks)
    assert len(found.samples) + found.undated == len(seen)
    assert found.thread_names == {77: "MainThread"}
    if first + 40 * len(jumps) < BEATS or len(seen) > 20:
        assert [s.stacks[0][1][0][0] for s in found.samples] == [f for _, f in seen]
        for sample, (tick, _) in zip(found.samples, seen, strict=True):
            assert ticks[tick] <= sample.time_ns <= ticks[tick + 1]


def test_a_first_sample_that_took_long_costs_only_itself(tmp_path: Path) -> None:
    """py-spy reads the libraries of a large process when it first unwinds it: seconds."""
    ticks = uneven(6 * BEATS)
    seen = [(100, "a"), *((3 * BEATS + 30 * n, "ba"[n % 2]) for n in range(59))]
    events = recording(ticks, seen)
    begun = events[0]["ts"]
    for e in events:
        if e["ts"] <= begun + 3:
            e["ts"] += (ticks[3 * BEATS] - ticks[100]) // 1000 - 10  # written 0.8 s late
    path = tmp_path / "made.json"
    path.write_text(json.dumps(events))
    found = decode(path, WORKER, CLOCK, ticks)
    assert found.undated <= 1 and len(found.samples) >= 59
    for sample, (tick, function) in zip(found.samples[-59:], seen[-59:], strict=True):
        assert ticks[tick] <= sample.time_ns <= ticks[tick + 1]
        assert sample.stacks[0][1][0][0] == function


KEYS = st.sampled_from(["pid", "tid", "ph", "ts", "name", "args", "filename", "line"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(KEYS, x)
)


@given(VALUES)
@settings(deadline=None)
def test_any_other_file_is_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "bad.json"
    for text in (json.dumps(value), json.dumps([value]), json.dumps(value)[:-1]):
        path.write_text(text)
        with pytest.raises(ValueError, match="py-spy"):
            decode(path, WORKER, CLOCK, [1, 2, 3, 4])


def test_samples_that_stop_the_worker_are_few_unless_asked_for(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert pyspy.default_rate_hz() == 1000
    assert pyspy.default_rate_hz(blocking=True) == pyspy.BLOCKING_RATE_HZ == 100
    assert pyspy.default_rate_hz(native=True, blocking=True) == pyspy.NATIVE_RATE_HZ == 20
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert pyspy.default_rate_hz() == 200
