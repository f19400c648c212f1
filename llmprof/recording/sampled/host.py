"""``--host``: host stacks of the processes that launch GPU work, by py-spy.

py-spy dates its samples by a process that ticks (``tracers.pyspy.metronome``) and must see it
beside the program, in one tree: so the tree is llmprof's own. It begins when the window is open
and the first kernel was seen, since before there is nothing to explain; of a program that uses no
GPU after ``ALONE_S``. py-spy keeps all in memory until it ends, so it runs in stretches
(``Stretches``), each a py-spy and a metronome of its own.
"""

from __future__ import annotations

import os
import subprocess
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from llmprof.ingest.host_stacks import put_samples
from llmprof.recording.sampled.stretches import Spread, Stretches
from llmprof.records import EngineRecord, Missing, RoundRecord, Unavailable
from llmprof.runfile.schema import HOST_ROUNDS
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pyspy.chrome import HostSamples
from llmprof.tracers.pyspy.metronome import spawn
from llmprof.tracers.pyspy.tracer import HostPlan, PySpyTracer

SPREAD = Spread(first_s=60, each_s=20, every_s=60, most_s=600)
ALONE_S = 3.0
"""Loading torch takes longer, and is sampled then: it is what the program does."""
TOO_SHORT = (
    "the program ended before py-spy began, which waits"
    f" {ALONE_S:.0f} s for a process that launches"
)
NO_SAMPLE = "py-spy took no sample of it: no Python, or it ended too soon"


class Stretch:
    """One py-spy from its start to its samples; both take seconds, so a thread does them."""

    def __init__(self, plan: HostPlan, folder: Path) -> None:
        self.why: Unavailable | None = None
        self.found: dict[int, HostSamples | Unavailable] = {}
        """By process id, once ``done``."""
        self._plan = plan
        self._tracer = PySpyTracer(plan, folder)
        self._metronome: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._pids: Sequence[int] = ()
        self._ending = threading.Event()

    @property
    def pids(self) -> list[int]:
        own = [] if self._metronome is None else [self._metronome.pid]
        return own if self._tracer.pid is None else [*own, self._tracer.pid]

    def begin(self, pid: int) -> None:
        """Attach.

        Args:
            pid: a process that launched; others of its tree are sampled too.
        """
        tracer = self._tracer
        self.why = tracer.probe() or tracer.open_board()
        if self.why is None:
            try:
                # Not on the thread: the metronome dies with the thread that started it.
                self._metronome = spawn(str(tracer.board_path), self._plan.tick_ns, os.getpid())
            except OSError as why:
                self.why = Unavailable(f"the metronome does not start: {why.strerror}")
        if self._metronome is not None:
            arguments = (pid, self._metronome.pid)
            self._thread = threading.Thread(target=self._sample, args=arguments, daemon=True)
            self._thread.start()

    def _sample(self, pid: int, metronome: int) -> None:
        why = self._tracer.start(pid, metronome, root=os.getpid())
        if why is None:
            self._ending.wait()
            why = self._tracer.finish()
        if why is None:
            self.found = {one: self._tracer.samples_of(one) for one in self._pids}
        self.why = why

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def end(self, pids: Sequence[int]) -> None:
        """Stop sampling; the samples of these processes are wanted."""
        self._pids = pids
        self._ending.set()

    @property
    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def close(self) -> None:
        """Wait for it and leave nothing running."""
        if self._thread is not None:
            self._thread.join()
        self._tracer.close()
        if self._metronome is not None:
            self._metronome.kill()
            self._metronome.wait()


class HostStacks:
    """``follow`` while the program runs, ``stop`` at the end; what fails is a reason, never the
    recording's end."""

    def __init__(self, plan: HostPlan, folder: Path, adopt: Callable[[], None]) -> None:
        """
        Args:
            adopt: called where samples of a program without an engine are to be kept: makes one.
        """
        self._plan = plan
        self._folder = folder
        self._adopt = adopt
        self._first_s: float | None = None
        self._stretches = Stretches(SPREAD)
        self._now: Stretch | None = None
        self._number = 0
        self._why: dict[int, Unavailable] = {}
        self._sampled: set[int] = set()
        """Engines that have samples."""
        self._failed: Unavailable | None = None

    @property
    def pids(self) -> list[int]:
        """Children of llmprof that are no part of the program."""
        return [] if self._now is None else self._now.pids

    def follow(
        self,
        window_open: bool,
        now_s: float,
        writer: RunFileWriter,
        engines: Sequence[EngineRecord],
        program: int,
    ) -> str:
        """Begin and end stretches, write what one brought.

        Args:
            now_s: ``time.monotonic()``.
            engines: processes that launched, so far.
            program: process id of the command.

        Returns:
            What is to be told, or nothing.

        Raises:
            RunFileError: the run file cannot be written.
        """
        if self._first_s is None:
            self._first_s = now_s
        is_early = not engines and now_s - self._first_s < ALONE_S
        if is_early or self._failed is not None:
            return ""
        told = self._stretches.thinned
        wanted = self._stretches.wanted(window_open, now_s)
        if self._now is None:
            if wanted:
                self._begin(_pid(engines[0]) if engines else program)
        elif not self._now.ending:
            if not wanted or self._now.done:  # done before it was ended: it failed
                self._end(self._now, engines)
        elif self._now.done:
            self._collect(writer, engines)
        is_thinned = self._stretches.thinned and not told
        return f"host stacks are sampled in {SPREAD.words}" if is_thinned else ""

    def _end(self, stretch: Stretch, engines: Sequence[EngineRecord]) -> None:
        if not engines:
            self._adopt()
        stretch.end([_pid(engine) for engine in engines])

    def _begin(self, pid: int) -> None:
        folder = self._folder / f"host{self._number}"
        try:
            folder.mkdir()
        except OSError as why:
            self._failed = Unavailable(f"no room for the sampler's files: {why.strerror}")
            return
        self._now = Stretch(self._plan, folder)
        self._now.begin(pid)

    def _collect(self, writer: RunFileWriter | None, engines: Sequence[EngineRecord]) -> None:
        stretch, self._now = self._now, None
        if stretch is None:
            return
        stretch.close()
        number, self._number = self._number, self._number + 1
        for path in sorted((self._folder / f"host{number}").glob("*")):
            path.unlink(missing_ok=True)
        if stretch.why is not None:
            self._failed = stretch.why  # what refused once refuses again
        for engine in engines:
            found = stretch.found.get(_pid(engine), Unavailable(NO_SAMPLE))
            if isinstance(found, Unavailable):
                self._why[engine.engine_id] = found
            elif not found.samples:
                self._why[engine.engine_id] = Unavailable(NO_SAMPLE)
            elif writer is not None:
                self._sampled.add(engine.engine_id)
                self._put(writer, engine, number, found)

    def _put(
        self, writer: RunFileWriter, engine: EngineRecord, number: int, found: HostSamples
    ) -> None:
        first, last = found.samples[0].time_ns, found.samples[-1].time_ns
        span = RoundRecord(
            HOST_ROUNDS * (number + 1) + engine.engine_id, engine.engine_id, "traced", 0,
            engine.traced_pid or 0, 0, first, first, array("q"), last, True,
        )  # fmt: skip
        put_samples(writer, span, self._plan, found, {}, 0)

    def stop(self, writer: RunFileWriter | None, engines: Sequence[EngineRecord]) -> None:
        """Write the last stretch, and why an engine has no stacks.

        Args:
            writer: ``None``: nothing can be written any more.

        Raises:
            RunFileError: the run file cannot be written.
        """
        if self._now is not None and not self._now.ending:
            self._end(self._now, engines)
        try:
            self._collect(writer, engines)
        finally:
            if self._now is not None:
                self._now.close()
        if writer is None:
            return
        if not engines:
            why = self._failed or Unavailable(TOO_SHORT)
            writer.put_missing([Missing("run", "host", why.reason)])
        for engine in engines:
            if engine.engine_id in self._sampled:
                continue
            never = Unavailable("the window closed, or it ended, before py-spy could attach")
            why = self._failed or self._why.get(engine.engine_id, never)
            writer.put_missing([Missing(engine.label, "host", why.reason)])


def _pid(engine: EngineRecord) -> int:
    return (engine.traced_pid or 0) & 0xFFFFFF
