"""Four engines whose host does one known thing, run through the command and told right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmprof.tracers.pyspy import tracer as pyspy
from llmprof.tracers.pyspy.ptrace import permission

pytestmark = [
    pytest.mark.skipif(pyspy.find() is None, reason="py-spy is not installed"),
    pytest.mark.skipif(not permission().allowed, reason=permission().text),
]
RUN = ("--headless", "--json", "--rounds", "1", "--decode-len", "64", "--traced-steps", "64")
RATE = ("--host-rate", "1000")


def tracing(llmprof, what: str, *more: str) -> dict[str, Any]:
    done = llmprof(*RUN, "--engine", f"hosts:what={what}", "--model", "none", *(more or RATE))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["engines"][0]["tracing"]
    return found


@pytest.mark.parametrize(
    ("what", "kind", "frame"),
    [
        ("sleep", "wait", "HostEngine._sleep (llmprof_hosts.py)"),
        ("sync", "sync", "Stream.synchronize (llmprof_hosts.py)"),
        ("launch", "launch", "HostEngine._launch (llmprof_hosts.py)"),
        ("gil", "gil", "HostEngine._gil (llmprof_hosts.py)"),
        ("compute", "host", "HostEngine._compute (llmprof_hosts.py)"),
    ],
)
def test_the_known_cause_is_told(llmprof, what: str, kind: str, frame: str) -> None:
    if what == "launch":
        pytest.importorskip("torch")
    host = tracing(llmprof, what)["host"]
    assert host is not None
    kinds = {k["kind"]: k["ms_per_step"] for k in host["kinds"]}
    assert max(kinds, key=lambda name: kinds[name]) == kind
    assert sum(kinds.values()) == pytest.approx(host["step_ms"])
    assert kinds[kind] > 0.6 * host["step_ms"]
    # The engine's own code is listed first, and its function is on nearly every stack.
    own = [f for f in host["frames"] if f["origin"] == "engine"]
    assert host["frames"][: len(own)] == own
    assert {f["frame"]: f["inclusive_share"] for f in own}[frame] > 0.9
    assert ("rival" in host["verdict"]) == (what == "gil")


def test_samples_lie_in_nsys_tables(llmprof, tmp_path: Path) -> None:
    tracing(llmprof, "sleep", "-o", "run.sqlite")
    with sqlite3.connect(tmp_path / "run.sqlite") as sql:
        (events,) = sql.execute("SELECT count(*) FROM COMPOSITE_EVENTS").fetchone()
        (pid,) = sql.execute("SELECT traced_pid FROM LLMPROF_ENGINE").fetchone()
        threads = sql.execute("SELECT DISTINCT globalTid FROM COMPOSITE_EVENTS").fetchall()
        symbols = sql.execute(
            "SELECT DISTINCT s.value FROM SAMPLING_CALLCHAINS AS c JOIN StringIds AS s"
            " ON s.id = c.symbol"
        ).fetchall()
        rounds = sql.execute(
            "SELECT min(e.start) >= min(r.start_ns) AND max(e.start) <= max(r.end_ns)"
            " FROM COMPOSITE_EVENTS AS e, LLMPROF_ROUND AS r WHERE r.pass_name = 'traced'"
        ).fetchone()
    assert events > 5  # of 2,000 and more on a quiet machine
    assert {t >> 24 & 0xFFFFFF for (t,) in threads} == {pid}
    assert any("_sleep (llmprof_hosts.py:" in text for (text,) in symbols)
    assert rounds == (1,)


def test_native_frames(llmprof) -> None:
    host = tracing(llmprof, "sleep", "--host-native", "--host-rate", "100")["host"]
    assert host["sampler"]["native"] and host["sampler"]["blocking"]
    assert any("nanosleep" in f["frame"] for f in host["frames"] if f["origin"] == "native")


def test_switched_off_is_a_reason(llmprof) -> None:
    found = tracing(llmprof, "sleep", "--no-host")
    assert found["host"] is None and "--no-host" in found["host_reason"]


def test_a_worker_that_crashes_in_the_traced_pass(llmprof, tmp_path: Path) -> None:
    engine = "hosts:what=sleep,crash_traced=1"
    done = llmprof(*RUN, "--engine", engine, "--model", "none", "-o", "run.sqlite")
    found = json.loads(done.stdout)["engines"][0]
    assert done.returncode == 3
    assert "SIGKILL" in found["failure"]["message"]
    assert 0 < found["tracing"]["steps"] < 64
    assert not _left_over(tmp_path)


def _left_over(home: Path) -> list[str]:
    """py-spy and metronome processes of this test that are children of nobody who waits for them.

    Other tests, and other users of the machine, have theirs: a home of its own tells a test's.
    """
    time.sleep(0.2)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                ours = f"HOME={home}\0".encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if ours and parent == 1 and ("metronome.py" in command or "py-spy\0record" in command):
                found.append(command)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a capability away")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is missing")
def test_denied_without_the_capability(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """A worker that is not dumpable may be read with CAP_SYS_PTRACE only: the kernel says no."""
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--no-new-privs"]
    done = subprocess.run(
        [
            *(*drop, sys.executable, "-m", "llmprof", *RUN, "--model", "none"),
            *("--engine", "hosts:what=sleep,undumpable=1"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_env,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    denied = json.loads(done.stdout)["engines"][0]["tracing"]
    assert denied["host"] is None and denied["steps"] == 64
    assert "ptrace was denied" in denied["host_reason"]
    assert "SYS_PTRACE" in denied["host_reason"] or "ptrace_scope" in denied["host_reason"]


def test_as_a_child_subreaper(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """A container's first process adopts orphans; that must not confuse who waits for whom."""
    script = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"
        "from llmprof.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *RUN, "--engine", "hosts:what=sleep", "--model", "none"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_env,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engines"][0]["tracing"]["host"] is not None


def test_killed_parent_leaves_no_process(tmp_path: Path, clean_env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "llmprof", *RUN[:-1], "2000", "--decode-len", "2000"]
    command += ["--engine", "hosts:what=sleep", "--model", "none", "-o", "run.sqlite"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not _metronome_under(process.pid):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while (left := _left_over(tmp_path)) and time.monotonic() < deadline:
        pass  # it sleeps itself
    assert not left


def _metronome_under(pid: int) -> bool:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(
            b"metronome.py" in Path(f"/proc/{child}/cmdline").read_bytes()
            or _metronome_under(int(child))
            for child in children
        )
    except OSError:
        return False
