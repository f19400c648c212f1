"""From a worker's spool of raw CUPTI buffers to rows of the run file, one buffer at a time.

Memory stays flat whatever the trace's length: a buffer is decoded, written and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmprof.ingest.activities import ActivityRows
from llmprof.plaintext import one_line
from llmprof.records import ClockReading, Unavailable
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti.decode import ClockMap, Records, Trace
from llmprof.tracers.cupti.times import TimeCheck


@dataclass
class Imported:
    """What came out of one round's trace."""

    kernels: int = 0
    copies: int = 0
    api: int = 0
    lost: list[str] = field(default_factory=list)
    error_ns: int = 0
    """Bound on the distance between CUPTI's and the monotonic clock."""


class TraceImport:
    """Writes the traced round of one worker.

    Args:
        engine_id: correlation ids are made unique over the file with it (readers join by them).
        rank: of the processes of one engine; clocks are kept of rank 0.
    """

    def __init__(self, writer: RunFileWriter, engine_id: int, pid: int, rank: int = 0) -> None:
        self._writer = writer
        self._engine_id = engine_id
        self._rank = rank
        self._rows = ActivityRows(writer, engine_id, pid, rank)

    def round(self, path: Path, round_id: int) -> Imported | Unavailable:
        """Decode and write everything that belongs to ``round_id``.

        Raises:
            RunFileError: the run file cannot be written.
        """
        try:
            trace = Trace(path)
        except OSError as why:
            return Unavailable(f"no trace: {why.strerror}")
        try:
            clock = trace.clock(round_id)
            if isinstance(clock, Unavailable):
                return clock
            if isinstance(trace.layout, Unavailable):
                return trace.layout
            if not self._rank:
                self._put_clocks(clock)
            done = Imported(error_ns=clock.error_ns)
            times = TimeCheck(clock.begin.cupti_ns, clock.end.cupti_ns)
            for found in trace.records(round_id):
                records = times.of(found)
                self._rows.put(trace, clock, records)
                done.kernels += len(records.kernels)
                done.copies += len(records.memcpy) + len(records.memset)
                done.api += len(records.api)
                _note_other(records, done)
            done.lost += [one_line(text) for text in trace.lost] + times.texts()
            return done
        finally:
            trace.close()

    def _put_clocks(self, clock: ClockMap) -> None:
        for mark in (clock.begin, clock.end):
            self._writer.put_clock(
                ClockReading(
                    engine_id=self._engine_id,
                    round_id=mark.round_id,
                    where=mark.where,
                    monotonic_ns=mark.monotonic_ns,
                    wall_ns=mark.wall_ns,
                    cupti_ns=mark.cupti_ns,
                    error_ns=mark.error_ns,
                )
            )


def _note_other(records: Records, done: Imported) -> None:
    for kind, count in records.other.items():
        done.lost.append(f"{count} records of kind {kind} are not read")
