"""One recording: the program runs, its spools are read as they grow, a run file is left."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from llmprof import __version__, environment
from llmprof.errors import RunFileError, UsageError
from llmprof.native.build import BuildError, library
from llmprof.plaintext import one_line
from llmprof.recording import closing
from llmprof.recording.control import ControlPage, spool_folder
from llmprof.recording.plan import RecordPlan
from llmprof.recording.program import Program, why_not
from llmprof.recording.sampled.bandwidth import BandwidthSampling, copies
from llmprof.recording.sampled.gpus import GpuSamples
from llmprof.recording.sampled.host import HostStacks
from llmprof.recording.spooled.devices import DeviceMap
from llmprof.recording.spooled.spools import Spools
from llmprof.recording.status import Lane, Outcome, Status
from llmprof.recording.terminal import OwnTerminal
from llmprof.recording.window import Window, steps_seen
from llmprof.records import (
    GpuDevice,
    Missing,
    RunInfo,
    RunState,
    Unavailable,
    Warned,
)
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti.library import candidates
from llmprof.tracers.nvml.tracer import NvmlTracer

POLL_S = 0.05
SAMPLES_S = 1.0
GRACE_S = 5.0
"""Children of the program that outlive it are recorded so much longer, not for ever: they may be
daemons."""
INJECTED = ("CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH")


def check_environment(variables: Mapping[str, str]) -> None:
    """Refuse to be the second profiler.

    Raises:
        UsageError: another tool's injection is set; the text names it.
    """
    for name in INJECTED:
        if variables.get(name):
            raise UsageError(
                f"{name}={one_line(variables[name])} is set: another profiler (nsys, ncu) started"
                " this process, and CUPTI serves one client a process; unset it, or run without"
            )


def check(plan: RecordPlan) -> None:
    """What can be checked before anything starts.

    Raises:
        UsageError: another tool's injection is set, or there is no such command.
    """
    check_environment(os.environ)
    if shutil.which(plan.command[0]) is None:
        raise UsageError(f"cannot run {one_line(plan.command[0])}: {why_not(plan.command[0])}")


def cache_folder() -> Path:
    try:
        home = Path.home()
    except RuntimeError:  # a user without an entry and without HOME, as containers have
        home = Path("/")
    base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "llmprof"


class Recording:
    """``run()`` once: from the main thread, or from another one with a terminal of its own.

    ``toggle_window``, ``signal`` and ``status`` are for any thread.

    Args:
        terminal: what the program gets instead of the real one, which a live view has.
    """

    def __init__(self, plan: RecordPlan, terminal: OwnTerminal | None = None) -> None:
        self._plan = plan
        self._terminal = terminal
        self._said: list[str] = []
        self._toggle = threading.Event()
        self._program: Program | None = None
        self._host: HostStacks | None = None
        self._sampling: BandwidthSampling | None = None
        self.status: Status | None = None
        """Replaced about ten times a second."""
        self.made = False
        """The run file is ours: another recording may have been quicker with its name."""
        self._ended_by_signal = False
        self._samples = GpuSamples()
        self._full = ""
        self._cut = ""
        """Why the recording ended before the program."""
        self._saved_at = 0.0
        self._ended_at: float | None = None
        self.outcome = Outcome(0)

    def toggle_window(self) -> None:
        """Open the window, or close it; ``--after`` and ``--for`` are void from then on."""
        self._toggle.set()

    def signal(self, number: int) -> None:
        """To the program's group."""
        if self._program is not None:
            self._program.signal(number)

    def _say(self, text: str) -> None:
        self._said.append(text)
        if self._terminal is None:
            print(f"llmprof: {one_line(text, 400)}", file=sys.stderr, flush=True)

    def run(self) -> Outcome:
        """Raises:
        UsageError: nothing was started: the text says why.
        RunFileError: the run file could not be created.
        """
        plan = self._plan
        check(plan)
        try:
            recorder = library(cache_folder())
        except BuildError as why:
            raise UsageError(str(why)) from None
        nvml = NvmlTracer(on_samples=self._samples.take, on_warning=self._samples.hear)
        reason = nvml.probe()
        found: list[GpuDevice] | Unavailable = (
            reason if isinstance(reason, Unavailable) else nvml.devices()
        )
        self._known = [] if isinstance(found, Unavailable) else found
        info = RunInfo(
            t0_ns=time.monotonic_ns(),
            t0_utc_ns=time.time_ns(),
            tool_version=__version__,
            tool_commit=environment.tool_commit(),
            command=list(plan.command),
            workload={},
            environment={
                **environment.collect(found),
                **({"copy_gb_s": copies(self._known, plan.gpus)} if plan.bandwidth else {}),
            },
            trace_level=plan.level,
            schedule="single",
            source="recorded",
        )
        with RunFileWriter(plan.output, info) as writer:
            self._writer, self.made = writer, True
            if isinstance(found, Unavailable):
                writer.put_missing([Missing("run", "nvml", found.reason)])
            elif found:
                writer.put_gpu_devices(found)
            with ExitStack() as stack:
                try:
                    folder = stack.enter_context(spool_folder(plan.output))
                except OSError as why:
                    raise RunFileError(f"no spools beside {plan.output}: {why.strerror}") from None
                stack.callback(nvml.stop)
                self._record(folder, recorder, info, nvml)
            self._end(nvml.missing())
            if plan.twice and not self._ended_by_signal:
                self._again(writer, recorder)
        return self.outcome

    def _again(self, writer: RunFileWriter, recorder: Path) -> None:
        """The timing pass: the command once more, untraced."""
        from llmprof.analysis.view.opening import open_run
        from llmprof.recording.again import run_again

        data = open_run(self._plan.output)
        self._say("running the command again, untraced")
        if self.status is not None:
            self.status = replace(self.status, window_open=False, said=tuple(self._said[-5:]))

        def started(program: Program) -> None:
            self._program = program

        with spool_folder(self._plan.output) as folder:
            variables = {**os.environ, **self._variables(folder, recorder)}
            command, terminal = self._plan.command, self._terminal
            found = run_again(command, folder, variables, data, terminal, started)
        if isinstance(found, Unavailable):
            writer.put_missing([Missing("run", "timing pass", found.reason)])
            self.outcome.warnings.append(f"no timing pass: {found.reason}")
            return
        rounds, code = found
        for record in rounds:
            writer.put_round(record)
        if not rounds:
            reason = "the second run had no process with steps like those of the first"
            writer.put_missing([Missing("run", "timing pass", reason)])
            self.outcome.warnings.append(f"no timing pass: {reason}")
        if code != self.outcome.exit_code:
            self._warn(f"the second run ended with {code}, the first with {self.outcome.exit_code}")

    def _record(self, folder: Path, recorder: Path, info: RunInfo, nvml: NvmlTracer) -> None:
        plan = self._plan
        page = self._page = ControlPage(folder, 0)  # the window sets it
        self._spools = Spools(
            folder, self._writer, DeviceMap(self._known), plan.gpus, lambda engine: None
        )
        self.window = Window(page, plan.after, plan.length, plan.detach)
        variables = {**os.environ, **self._variables(folder, recorder)}
        sampling = BandwidthSampling(self._known, plan.gpus) if plan.bandwidth else None
        self._sampling = sampling
        if sampling is not None:
            sampling.open()
        host = HostStacks(plan.host, folder, self._adopt) if plan.host else None
        self._host = host
        program = self._program = Program(plan.command, variables, self._terminal)
        started_ns = time.monotonic_ns()
        program.pass_signals()
        try:
            if self._known:
                nvml.start()
            self._follow(program, started_ns)
            if (program.returncode or 0) < 0 or program.signalled:
                program.end_group(self._helpers())
            self._finish()
            passed_ns = time.monotonic_ns() - started_ns
            self.status = self._status(passed_ns, steps_seen(self._spools.steps_source))
        finally:
            program.keep_signals()
            self.window.close(time.monotonic_ns())
            self._keep(lambda writer: closing.keep_window(writer, info, self.window), [])
            if sampling is not None:
                self._keep(lambda writer: sampling.stop(writer), sampling.missing)
            if host is not None:
                self._keep(lambda writer: host.stop(writer, self._spools.engines), [])
            self._spools.close()
            page.close()
        self.outcome.exit_code = program.exit_code
        self._ended_by_signal = (program.returncode or 0) < 0 or program.signalled

    def _variables(self, folder: Path, recorder: Path) -> dict[str, str]:
        ours = {name: str(recorder) for name in INJECTED}
        found = [path for path in candidates() if "/" in path]
        return {
            **ours,
            "LLMPROF_RECORD_DIR": str(folder.resolve()),
            "LLMPROF_RECORD_TRACE": self._plan.level,
            **({"LLMPROF_RECORD_CUPTI": found[0]} if found else {}),
        }

    # -- while it runs -----------------------------------------------------------------------

    def _follow(self, program: Program, started_ns: int) -> None:
        self._saved_at = time.monotonic()
        while True:
            try:
                busy = self._look(started_ns)
                if self._is_over(program):
                    return
            except MemoryError as why:
                busy = False
                self._give_up(_text(why))
            if not busy:
                time.sleep(POLL_S)

    def _look(self, started_ns: int) -> bool:
        """What is new in the spools, window and status; ``False``: nothing."""
        busy = self._read()
        now_ns = time.monotonic_ns()
        steps = steps_seen(self._spools.steps_source)
        self.window.follow(now_ns, started_ns, steps)
        if self._toggle.is_set():
            self._toggle.clear()
            self.window.toggle(now_ns, steps)
        if time.monotonic() - self._saved_at >= SAMPLES_S:
            self._saved_at = time.monotonic()
            self._save_samples()
        self._follow_samplers()
        self.status = self._status(now_ns - started_ns, steps)
        return busy

    def _is_over(self, program: Program) -> bool:
        """The program has ended, and those it left behind have too, or had the time to."""
        if program.poll() is None:
            return False
        self._ended_at = self._ended_at or time.monotonic()
        alive = program.reap(self._helpers())
        late = time.monotonic() - self._ended_at > GRACE_S
        if alive and late:
            self._warn(
                f"{len(alive)} processes outlived the program by {GRACE_S:.0f} s and"
                " go on without being recorded"
            )
        return late or not alive

    def _helpers(self) -> frozenset[int]:
        """Children of ours that are no part of the program."""
        own = [] if self._host is None else self._host.pids
        return frozenset(own + ([] if self._sampling is None else self._sampling.pids))

    def _follow_samplers(self) -> None:
        if self._full:
            return
        now_s, is_open, said = time.monotonic(), self.window.is_open, []
        try:
            if self._host is not None:
                engines = self._spools.engines
                pid = self._program.pid if self._program is not None else 0
                said.append(self._host.follow(is_open, now_s, self._writer, engines, pid))
            if self._sampling is not None:
                said.append(self._sampling.follow(is_open, now_s, self._writer))
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))
        for text in filter(None, said):
            self._say(text)
            self._warn(text)

    def _adopt(self) -> None:
        if self._program is not None:
            self._spools.adopt(self._program.pid, list(self._plan.command))

    def _read(self) -> bool:
        """A full disk, or no memory, ends the recording, never the program."""
        if self._full:
            return False
        try:
            return self._spools.read()
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))
            return False

    def _give_up(self, why: str) -> None:
        if self._full:
            return
        self._full = self._cut = why
        self._spools.drop()  # what was read and not written: there is no place for it
        self.window.close(time.monotonic_ns())
        self._say(f"the recording ends here, the program goes on: {why}")

    def _finish(self) -> None:
        """What is left in the spools. Whoever still runs is told to stop first."""
        lost = self._page.lost()
        self.window.close(time.monotonic_ns())
        if lost is not None:
            after_s = (lost.when_ns - self._writer.t0_ns) / 1e9
            count = "a spool" if lost.count == 1 else f"{lost.count} spools"
            text = f"{count} ended {after_s:.1f} s after the start: {os.strerror(lost.errno)}"
            self._cut = self._cut or text
            self._warn(f"{text}; the program went on unrecorded")
        if self._full:
            return
        try:
            self._spools.read(final=True)
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))

    def _status(self, passed_ns: int, steps: int) -> Status:
        lanes = [
            Lane(
                recorded.engine.label if recorded.engine else recorded.image.name,
                recorded.image.kernels,
                recorded.image.range_count,
                recorded.image.worked,
            )
            for recorded in self._spools.all
            if recorded.image.worked or recorded.image.range_count
        ]
        return Status(
            seconds=passed_ns / 1e9,
            kernels=sum(lane.kernels for lane in lanes),
            steps=steps,
            window_open=self.window.is_open,
            lanes=tuple(lanes),
            bytes_read=self._spools.bytes_read,
            samples=self._samples.newest(),
            said=tuple(self._said[-5:]),
        )

    def _save_samples(self) -> None:
        try:
            self._samples.save(None if self._full else self._writer)
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))

    # -- the end -----------------------------------------------------------------------------

    def _keep(self, stop: Callable[[RunFileWriter | None], None], missing: list[Missing]) -> None:
        """End a sampler of ours and write what it has."""
        try:
            stop(None if self._full else self._writer)
            if not self._full:
                self._writer.put_missing(missing)
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))

    def _warn(self, text: str, scope: str = "run") -> None:
        self.outcome.warnings.append(text if scope == "run" else f"{scope}: {text}")
        if self._full:
            return
        try:
            self._writer.put_warning(Warned(scope, text))
        except (RunFileError, MemoryError) as why:
            self._give_up(_text(why))

    def _end(self, missing: list[Missing]) -> None:
        """Processes, engines, losses, state. The spools are gone by now: there is room again."""
        full, self._full = self._full, ""
        state: RunState = "failed" if full else "finished"
        try:
            self._save_samples()
            self._writer.put_missing(missing)
            with self._writer.batch():
                closing.close(
                    self._plan, self._writer, self._spools, self._known, self._warn, self._cut
                )
            self._writer.set_state(state, full)
            if self._plan.bandwidth and not full:
                closing.fit_bandwidth(self._writer, self._say)
        except (RunFileError, MemoryError) as why:
            text = f"the end of the recording could not be written: {_text(why)}"
            self.outcome.warnings.append(text)
        self.outcome.engines = self._spools.engines
        self.outcome.summary += closing.summary(self._spools)


def _text(why: RunFileError | MemoryError) -> str:
    return "llmprof is out of memory" if isinstance(why, MemoryError) else str(why)
