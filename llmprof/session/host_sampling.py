"""Host stacks around one traced round: start py-spy before it, keep what it brought after it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmprof.errors import EngineFailure
from llmprof.records import RoundRecord, Unavailable
from llmprof.records.processes import RankProcess
from llmprof.session.recorder import Recorder
from llmprof.tracers.pyspy.tracer import HostPlan, PySpyTracer


class HostSampling:
    """One round of one worker. Whatever fails here is a reason, never an engine's failure.

    Each rank behind 0 has a py-spy and a metronome of its own: of many processes py-spy reads one
    after the other, and on a machine with two H100s what it read of rank 1 was 0.8 ms newer than
    the tick that rank 0's metronome showed.

    Args:
        ask: sends the worker a request and returns the facts of its answer.
        further: ranks behind 0; children of the worker.
    """

    def __init__(
        self, plan: HostPlan, folder: Path, pid: int, further: Sequence[RankProcess] = ()
    ) -> None:
        self.why: Unavailable | None = None
        self.missing: dict[int, str] = {}
        """Rank behind 0 → why it has no samples."""
        self._plan = plan
        self._pid = pid
        self._tracer = PySpyTracer(plan, folder)
        self._further: dict[int, tuple[RankProcess, PySpyTracer]] = {}
        for rank in further:
            place = folder / f"rank{rank.rank}"
            place.mkdir()
            self._further[rank.rank] = (rank, PySpyTracer(plan, place))
        self._before: dict[int, int] = {}
        self._begun_ns = 0

    def start(self, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Attach; ``why`` says so where that was not possible.

        Raises:
            EngineFailure, Cancelled: the worker died meanwhile, or the user asked to stop.
        """
        tracer = self._tracer
        self.why = tracer.probe()
        if self.why is None:
            self.why = tracer.open_board()
        for _, other in self._further.values():
            self.why = self.why or other.open_board()
        if self.why is not None:
            return
        request = {
            "do": "metronome",
            "board": str(tracer.board_path),
            "ranks": {rank: str(other.board_path) for rank, (_, other) in self._further.items()},
            "tick_ns": self._plan.tick_ns,
            "reader": os.getpid(),
        }
        try:
            facts = ask(request)
        except EngineFailure as failure:
            if failure.kind != "exception":
                raise
            self.why = Unavailable(f"the worker could not start a child: {failure}")
            return
        # It sees the worker's whole tree, the ranks and their metronomes too, for which it has time
        # while theirs attach.
        self.why = tracer.start(self._pid, facts["pid"])
        for number, (rank, other) in self._further.items():
            beat = facts["ranks"].get(str(number))
            why = Unavailable("it started no metronome")
            refused = why if beat is None else other.start(rank.pid, beat)
            if refused is not None:
                self.missing[number] = refused.reason
        self._before, self._begun_ns = processor_time(self._pid), time.monotonic_ns()

    def finish(self, recorder: Recorder, record: RoundRecord | None) -> None:
        """Stop, and write the samples that lie in the round. A dead worker is fine."""
        spent = {
            tid: ns - self._before.get(tid, 0) for tid, ns in processor_time(self._pid).items()
        }
        wall_ns = time.monotonic_ns() - self._begun_ns
        if self.why is None:
            found = self._tracer.stop()
            if isinstance(found, Unavailable):
                self.why = found
            elif record is None:
                self.why = Unavailable("the worker ended before the round began")
            elif not any(record.start_ns <= s.time_ns <= record.end_ns for s in found.samples):
                took = (record.end_ns - record.start_ns) / 1e6
                text = f"no sample in a round of {took:.1f} ms: give more --traced-steps"
                self.why = Unavailable(text)
            else:
                recorder.host_samples(record, self._plan, found, spent, wall_ns)
                self._finish_further(recorder, record)
        self.close()

    def _finish_further(self, recorder: Recorder, record: RoundRecord) -> None:
        for number, (rank, tracer) in self._further.items():
            if number in self.missing:
                continue
            found = tracer.stop()
            if isinstance(found, Unavailable):
                self.missing[number] = found.reason
            elif not found.samples:
                self.missing[number] = "py-spy took no sample of it"
            else:
                recorder.rank_samples(record, rank, found)

    def close(self) -> None:
        self._tracer.close()
        for _, tracer in self._further.values():
            tracer.close()


def processor_time(pid: int) -> dict[int, int]:
    """ns on a processor so far, of each thread (proc(5), /proc/PID/task/TID/schedstat)."""
    found = {}
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return {}
    for task in tasks:
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile, or the kernel counts nothing
    return found
