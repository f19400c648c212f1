"""Host stacks of the traced worker, by py-spy, from llmprof's own process.

py-spy reads the worker's memory from outside; nothing is loaded into the worker, and a worker of
the timing pass never meets it. How its samples get their times: ``pyspy_chrome`` and
``worker.metronome``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from llmprof.distribution import how_to_install
from llmprof.plaintext import one_line
from llmprof.records import Unavailable
from llmprof.tracers.pyspy.chrome import HostSamples, decode
from llmprof.tracers.pyspy.metronome import PR_SET_PTRACER, Board
from llmprof.tracers.pyspy.ptrace import why_denied, why_not_stopped

ATTACH_TIMEOUT_S = 20.0
NATIVE_ATTACH_TIMEOUT_S = 120.0
"""The unwinder reads every library of the process first; torch's are large."""
STOP_TIMEOUT_S = 60.0
SHORTEST_TICK_NS, LONGEST_TICK_NS = 200_000, 500_000
LOG = "py_spy::python_spy=info,py_spy::sampler=warn"
_REFUSED = "Failed to profile python from process "
"""py-spy logs this, with the process and the reason, and goes on without it."""
_READY = "looking up thread names"
"""py-spy logs this once for each process, with its first sample of it."""

_SUBJECT = """
import ctypes, sys, time
option, reader = map(int, sys.argv[1:])
ctypes.CDLL(None).prctl(option, ctypes.c_ulong(reader), 0, 0, 0)
print(flush=True)
time.sleep(20)
"""
"""Does what a worker does to be read, see ``worker.metronome.let_read``."""


@dataclass(frozen=True)
class HostPlan:
    """How host stacks are sampled. ``rate_hz`` 0: not at all."""

    rate_hz: int = 0
    native: bool = False
    blocking: bool = False
    """Stop the worker for each sample; ``native`` cannot do without."""

    @property
    def blocks(self) -> bool:
        return self.blocking or self.native

    @property
    def tick_ns(self) -> int:
        """A quarter of the mean distance of samples: 20 % then share a tick and are lost."""
        tick_ns = 10**9 // (4 * max(1, self.rate_hz))
        return min(LONGEST_TICK_NS, max(SHORTEST_TICK_NS, tick_ns))


NATIVE_RATE_HZ, BLOCKING_RATE_HZ = 20, 100
"""Where each sample stops the worker. Unwinding torch's libraries takes py-spy 5–50 ms: beside an
H100, 100 Hz native made an eager step 1.6 times as long, and at 1 kHz no sample could be dated.
Blocking made it 1.16 times as long at 100 Hz, 4.6 times at 1 kHz."""


MAX_RATE_HZ = 2000
"""py-spy falls behind above this."""


def default_rate_hz(native: bool = False, blocking: bool = False) -> int:
    """1 kHz where processors are to spare; on two, an engine would feel it."""
    if native or blocking:
        return NATIVE_RATE_HZ if native else BLOCKING_RATE_HZ
    return 1000 if len(os.sched_getaffinity(0)) >= 4 else 200


def find() -> str | None:
    """The py-spy beside this interpreter, or on PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def attempt(path: str) -> str | Unavailable:
    """Read the stack of a process of this user: py-spy's version, or why it cannot.

    Raises:
        OSError, subprocess.SubprocessError: it does not start, or hangs.
    """
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    version = one_line(said.stdout or said.stderr, 60)
    if said.returncode:
        return Unavailable(f"does not run: {version}")
    command = [sys.executable, "-I", "-S", "-c", _SUBJECT, str(PR_SET_PTRACER), str(os.getpid())]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        done = subprocess.run(
            [path, "dump", "--nonblocking", "--pid", str(child.pid)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
        )
        reason = _explain(done.stderr, child.pid)
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    return version if done.returncode == 0 else Unavailable(reason)


class PySpyTracer:
    """One recording of one worker (``tracers.base.Tracer``).

    Args:
        folder: where its files may lie; the caller removes it.
    """

    name = "py-spy"
    cost = (
        "nonblocking: no stop of the worker, up to a quarter of a processor beside it at 1 kHz"
        " (py-spy and the process that dates its samples); blocking and native stop the worker for"
        " each sample; benchmarks/host_overhead.py measures it"
    )

    def __init__(self, plan: HostPlan, folder: Path) -> None:
        self.plan = plan
        self.board_path = folder / "metronome"
        self._output = folder / "pyspy.json"
        self._folder = folder
        self._board: Board | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pids = (0, 0)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the tracer)

    @property
    def pid(self) -> int | None:
        """py-spy's process, while it runs."""
        return None if self._process is None else self._process.pid

    def probe(self) -> Unavailable | None:
        if find() is None:
            return Unavailable(f"py-spy is not installed: {how_to_install('host')}")
        return None

    def open_board(self) -> Unavailable | None:
        """Make the mapping that the metronome writes; before the worker starts it."""
        try:
            self._board = Board(self.board_path, create=True)
        except OSError as why:
            return Unavailable(f"no room for the sampler's clock: {why.strerror}")
        return None

    def start(self, pid: int, metronome_pid: int, root: int | None = None) -> Unavailable | None:
        """Attach, and return once both processes have been sampled.

        Args:
            root: sample the tree of this process, which holds both; by default that of ``pid``.
        """
        path = find()
        if path is None or self._board is None:
            refused = self.probe()
            return Unavailable("the sampler was not opened") if refused is None else refused
        self._pids = (pid, metronome_pid)
        deadline = time.monotonic() + 10.0
        while not self._board.running:
            if time.monotonic() > deadline:
                return Unavailable("the process that dates py-spy's samples did not start")
            time.sleep(0.005)
        plan = self.plan
        command = [
            path,
            "record",
            "--pid",
            str(root or pid),
            "--subprocesses",
            "--idle",
            "--threads",
        ]
        command += ["--rate", str(plan.rate_hz), "--format", "chrometrace"]
        command += ["--output", str(self._output)]
        command += ["--native"] if plan.native else []
        command += [] if plan.blocks else ["--nonblocking"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                # Ctrl-C in the terminal is llmprof's to judge.
                start_new_session=True,
                env={**os.environ, "RUST_LOG": LOG, "RUST_BACKTRACE": "0"},
            )
        except OSError as why:
            return Unavailable(f"py-spy does not start: {why.strerror}")
        return self._wait_attached()

    def stop(self) -> HostSamples | Unavailable:
        """End the recording; what it brought. The worker may be gone by now."""
        why = self.finish()
        return self.samples_of(self._pids[0]) if why is None else why

    def finish(self) -> Unavailable | None:
        """End the recording; why it brought nothing."""
        process, board = self._process, self._board
        if process is None or board is None:
            return Unavailable("py-spy was not started")
        early = process.poll()
        try:
            if early is None:
                process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Unavailable(f"py-spy did not end within {STOP_TIMEOUT_S:.0f} s")
        board.stop()
        if process.returncode or not self._output.exists():
            return Unavailable(self._death(process.returncode))
        return None

    def samples_of(self, pid: int) -> HostSamples | Unavailable:
        """What the finished recording holds of one process."""
        if self._board is None:
            return Unavailable("py-spy was not started")
        ticks, metronome = self._board.ticks(), self._pids[1]
        try:
            found = decode(self._output, pid, metronome, ticks, self.plan.blocks)
        except (OSError, ValueError) as why:
            slow = "; the worker stood still for each stack: give a lower --host-rate"
            return Unavailable(one_line(str(why)) + (slow if self.plan.blocks else ""))
        found.errors = self._text().count("Failed to get stack trace")
        return found

    def close(self) -> None:
        """End whatever still runs; closing twice is fine."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None
        if self._board is not None:
            self._board.stop()
            self._board.close()
            self._board = None
        self._said.close()

    def _wait_attached(self) -> Unavailable | None:
        assert self._process is not None
        limit = NATIVE_ATTACH_TIMEOUT_S if self.plan.native else ATTACH_TIMEOUT_S
        deadline = time.monotonic() + limit
        while self._process.poll() is None:
            text = self._text()
            if f"{_REFUSED}{self._pids[0]}:" in text:
                return Unavailable(_explain(text, self._pids[0]))
            if text.count(_READY) >= 2 and "Sampling process" in text:
                return None
            if time.monotonic() > deadline:
                return Unavailable(f"py-spy did not attach within {limit:.0f} s")
            time.sleep(0.01)
        return Unavailable(self._death(self._process.returncode))

    def _text(self) -> str:
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), min(size, 1 << 20), 0).decode(errors="replace")

    def _death(self, code: int) -> str:
        if code < 0:
            return f"py-spy was killed by {signal.Signals(-code).name}"
        return _explain(self._text(), self._pids[0])


_DENIED = ("permission denied", "operation not permitted", "process executable name")
"""The last is what py-spy says when it may not read the link ``/proc/PID/exe``."""
_NO_STOP = "failed to suspend process"
"""It may read the worker, but not stop it."""


def _explain(said: str, pid: int) -> str:
    """Why py-spy gave up, from its own words."""
    lowered = said.lower()
    if Path(f"/proc/{pid}").exists():
        if _NO_STOP in lowered:
            return f"ptrace was denied: {why_not_stopped()}"
        if any(word in lowered for word in _DENIED):
            return f"ptrace was denied: {why_denied()}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("[") and "py-spy>" not in line]
    return "py-spy gave up" + (f": {one_line(' '.join(told), 200)}" if told else "")
