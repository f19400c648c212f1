"""py-spy's samples to rows of the run file: one event a thread and sample, one row a frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from llmprof.plaintext import one_line
from llmprof.records import HostFrame, HostRound, RoundRecord
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import global_tid
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.pyspy.chrome import Frame, HostSample, HostSamples
from llmprof.tracers.pyspy.tracer import HostPlan

SOURCE_LIMIT = 160
FILE_LIMIT_BYTES = 4 << 20
"""A longer file is no source that somebody wrote."""
IDS_A_ROUND = 1 << 32
"""Event ids of a round begin at its serial number times this."""
IDS_A_RANK = 1 << 24


def put_samples(
    writer: RunFileWriter,
    record: RoundRecord,
    plan: HostPlan,
    found: HostSamples,
    cpu_ns: dict[int, int],
    cpu_wall_ns: int,
) -> None:
    """Write what lies within the round.

    Raises:
        RunFileError: the run file cannot be written.
    """
    inside = [s for s in found.samples if record.start_ns <= s.time_ns <= record.end_ns]
    frames = _put(writer, inside, record.pid, record.round_id * IDS_A_ROUND)
    writer.put_host_round(
        HostRound(
            round_id=record.round_id,
            rate_hz=plan.rate_hz,
            native=plan.native,
            blocking=plan.blocks,
            samples=len(inside),
            undated=found.undated,
            errors=found.errors,
            error_ns=found.error_ns,
            tick_ns=found.tick_ns,
            first_ns=inside[0].time_ns if inside else record.start_ns,
            last_ns=inside[-1].time_ns if inside else record.start_ns,
            cpu_wall_ns=cpu_wall_ns,
            cpu_ns={str(tid): ns for tid, ns in cpu_ns.items()},
            threads={str(tid): one_line(name, 60) for tid, name in found.thread_names.items()},
        ),
        frames,
    )


def put_rank_samples(
    writer: RunFileWriter, record: RoundRecord, rank: RankProcess, found: HostSamples
) -> None:
    """Write those of a rank behind 0 that lie within rank 0's round, of which ``put_samples`` has
    written how it was sampled.

    Raises:
        RunFileError: the run file cannot be written.
    """
    inside = [s for s in found.samples if record.start_ns <= s.time_ns <= record.end_ns]
    first = record.round_id * IDS_A_ROUND + rank.rank * IDS_A_RANK
    writer.put_host_frames(_put(writer, inside, rank.pid, first))


def _put(
    writer: RunFileWriter, samples: Sequence[HostSample], pid: int, number: int
) -> list[HostFrame]:
    """One process' samples as events with ids above ``number``; their frames, still to be put."""
    frames: dict[Frame, HostFrame] = {}
    modules: dict[str, int] = {}
    events: dict[str, list[int]] = {"id": [], "start": [], "globalTid": [], "cpuCycles": []}
    chains: dict[str, list[int]] = {"id": [], "symbol": [], "module": [], "stackDepth": []}
    for sample in samples:
        for tid, stack in sample.stacks:
            number += 1
            events["id"].append(number)
            events["start"].append(sample.time_ns)
            events["globalTid"].append(global_tid(pid, tid))
            events["cpuCycles"].append(0)
            for depth, frame in enumerate(stack):
                if frame not in frames:
                    frames[frame] = _frame(writer, frame)
                    modules.setdefault(frame[1], writer.string_id(frame[1]))
                chains["id"].append(number)
                chains["symbol"].append(frames[frame].frame_id)
                chains["module"].append(modules[frame[1]])
                chains["stackDepth"].append(depth)
    writer.bulk("COMPOSITE_EVENTS", events)
    writer.bulk("SAMPLING_CALLCHAINS", chains)
    return list(frames.values())


def _frame(writer: RunFileWriter, frame: Frame) -> HostFrame:
    function, file, line = frame
    place = f"{Path(file).name}:{line}" if line else Path(file).name
    symbol = writer.string_id(f"{function} ({place}) in {file}")
    return HostFrame(symbol, function, file, line, _source(file, line))


def _source(file: str, line: int) -> str:
    lines = _lines(file) if line > 0 else ()
    return one_line(lines[line - 1], SOURCE_LIMIT) if line <= len(lines) and lines else ""


@lru_cache(maxsize=256)
def _lines(file: str) -> tuple[str, ...]:
    """The file as it is now; empty where it cannot be read (another container, no file at all)."""
    path = Path(file)
    try:
        if not path.is_absolute() or path.suffix != ".py" or not path.is_file():
            return ()
        if path.stat().st_size > FILE_LIMIT_BYTES:
            return ()
        return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()
