"""``--host``: host stacks of the processes that launch GPU work, by py-spy.

py-spy dates its samples by a process that ticks (``tracers.pyspy.metronome``) and must see it
beside the program, in one tree: so the tree is llmprof's own. It begins when the first kernel was
seen, since before there is nothing to explain, and ends after ``LONGEST_S``, since py-spy keeps all
in memory.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from array import array
from pathlib import Path

from llmprof.ingest.host_stacks import put_samples
from llmprof.records import EngineRecord, Missing, RoundRecord, Unavailable
from llmprof.runfile.schema import HOST_ROUNDS
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pyspy.metronome import spawn
from llmprof.tracers.pyspy.tracer import HostPlan, PySpyTracer

LONGEST_S = 60.0


class HostStacks:
    """``begin`` once, ``stop`` at the end; what fails is a reason, never the recording's end."""

    def __init__(self, plan: HostPlan, folder: Path) -> None:
        self._plan = plan
        self._tracer = PySpyTracer(plan, folder)
        self._metronome: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._why: Unavailable | None = None
        self._begun = 0.0
        self._ended = False

    @property
    def begun(self) -> bool:
        return self._thread is not None

    @property
    def pids(self) -> list[int]:
        """Children of llmprof that are no part of the program."""
        own = [] if self._metronome is None else [self._metronome.pid]
        return own if self._tracer.pid is None else [*own, self._tracer.pid]

    def begin(self, pid: int) -> None:
        """Attach, on a thread: it takes seconds.

        Args:
            pid: a process that launched; others of its tree are sampled too.
        """
        tracer = self._tracer
        self._begun = time.monotonic()
        self._why = tracer.probe()
        if self._why is None:
            self._why = tracer.open_board()
        if self._why is None:
            try:
                # Not on the thread: the metronome dies with the thread that started it.
                self._metronome = spawn(str(tracer.board_path), self._plan.tick_ns, os.getpid())
            except OSError as why:
                self._why = Unavailable(f"the metronome does not start: {why.strerror}")
        self._thread = threading.Thread(target=self._attach, args=(pid,), name="llmprof-host")
        self._thread.start()

    def _attach(self, pid: int) -> None:
        if self._metronome is not None:
            self._why = self._tracer.start(pid, self._metronome.pid, root=os.getpid())

    def follow(self) -> None:
        """End it when it has lasted long enough."""
        if self.begun and not self._ended and time.monotonic() - self._begun > LONGEST_S:
            self._end()

    def _end(self) -> None:
        if self._thread is not None and not self._ended:
            self._thread.join()
            self._ended = True
            if self._why is None:
                self._why = self._tracer.finish()

    def stop(self, writer: RunFileWriter | None, engines: list[EngineRecord]) -> None:
        """Write the stacks of each engine's process, or why there are none.

        Raises:
            RunFileError: the run file cannot be written.
        """
        try:
            self._end()
            if writer is not None:
                for engine in engines:
                    why = self._put(writer, engine)
                    if why is not None:
                        writer.put_missing([Missing(engine.label, "host", why.reason)])
        finally:
            self._tracer.close()
            if self._metronome is not None:
                self._metronome.kill()
                self._metronome.wait()

    def _put(self, writer: RunFileWriter, engine: EngineRecord) -> Unavailable | None:
        if self._why is not None:
            return self._why
        process = engine.traced_pid or 0
        found = self._tracer.samples_of(process & 0xFFFFFF)
        if isinstance(found, Unavailable):
            return found
        if not found.samples:
            return Unavailable("py-spy took no sample of it: no Python, or it ended too soon")
        first, last = found.samples[0].time_ns, found.samples[-1].time_ns
        number = HOST_ROUNDS + engine.engine_id
        span = RoundRecord(
            number, engine.engine_id, "traced", 0, process, 0, first, first, array("q"), last, True
        )
        put_samples(writer, span, self._plan, found, {}, 0)
        return None
