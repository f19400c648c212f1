"""The second, untraced run of ``record --twice``: its NVTX ranges are the timing pass.

Only NVTX is recorded, so nothing slows the GPU's work down; the same ranges are steps as in the
first run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmprof.recording.control import RANGES, ControlPage
from llmprof.recording.image import command_name
from llmprof.recording.program import Program
from llmprof.recording.ranges import RangeReader
from llmprof.recording.tail import SpoolTail
from llmprof.records import EngineRecord, NvtxEvent, RoundRecord, RunData, Unavailable
from llmprof.runfile.foreign.tables import MAX_RANGES, StepRange, add_rounds, matches
from llmprof.tracers.cupti import spool

POLL_S = 0.05


def run_again(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], data: RunData
) -> tuple[list[RoundRecord], int] | Unavailable:
    """Run the command with NVTX recorded only.

    Args:
        folder: empty, for its spools.
        variables: its environment; the level is set here.
        data: the first run, as read, with its steps.

    Returns:
        Rounds of pass ``timing``, times on CLOCK_MONOTONIC, and the exit code; or why there are
        none.

    Raises:
        UsageError: the command cannot be started any more.
        OSError: the folder cannot be written.
    """
    pattern = data.info.environment.get("step_range")
    if not isinstance(pattern, str) or not pattern:
        return Unavailable("the program marks no steps with NVTX: untraced ones have no end")
    page = ControlPage(folder, RANGES)
    try:
        settings = {"LLMPROF_RECORD_DIR": str(folder.resolve()), "LLMPROF_RECORD_TRACE": "steps"}
        program = Program(command, {**variables, **settings})
        program.pass_signals()
        try:
            while program.poll() is None:
                time.sleep(POLL_S)
            if (program.returncode or 0) < 0 or program.signalled:
                program.end_group()
                return Unavailable("the second run was ended by a signal")
            deadline = time.monotonic() + 5.0
            while program.reap() and time.monotonic() < deadline:
                time.sleep(POLL_S)
        finally:
            program.keep_signals()
        page.want(0)
        return _rounds(folder, data, pattern), program.exit_code
    finally:
        page.close()


def _rounds(folder: Path, data: RunData, pattern: str) -> list[RoundRecord]:
    """Processes of both runs that are alike (rank and name, in order of their start) are paired."""
    waiting: dict[tuple[str, str], list[EngineRecord]] = {}
    ranks = {p.engine_id: p for p in data.processes}
    for engine in data.engines:
        process = ranks.get(engine.engine_id)
        key = engine.name, "" if process is None or process.rank is None else str(process.rank)
        waiting.setdefault(key, []).append(engine)
    found = RunData(data.info)
    paths = sorted(folder.glob("*.spool"), key=lambda p: int(p.stem.rpartition("-")[2]))
    for path in paths:
        name, rank, pid, steps = _steps(path, pattern)
        alike = waiting.get((name, rank), [])
        if steps and alike:
            add_rounds(found, alike.pop(0), pid, steps, pattern, lambda: None)
    return [replace(r, round_id=i + 1, pass_name="timing") for i, r in enumerate(found.rounds)]


def _steps(path: Path, pattern: str) -> tuple[str, str, int, list[StepRange]]:
    """Name, rank, process id and matching ranges of one spool."""
    import json

    tail = SpoolTail(path)
    pid = int(path.stem.partition("-")[0])
    reader = RangeReader(pid)
    name = rank = ""
    steps: list[StepRange] = []
    try:
        while frames := tail.read():
            for kind, payload in frames:
                if kind == spool.PROCESS:
                    facts = json.loads(payload)
                    words = str(facts.get("cmdline", "")).rstrip("\0").split("\0")
                    name, rank = command_name(words), str(facts.get("RANK", ""))
                elif kind == spool.NVTX and len(steps) < MAX_RANGES:
                    ranges = (_range(event) for event in reader.read(payload))
                    steps += [r for r in ranges if matches(r, pattern)]
    finally:
        tail.close()
    return name, rank, pid, steps


def _range(event: NvtxEvent) -> StepRange:
    return StepRange(event.start_ns, event.end_ns, event.domain, event.text, event.pid, event.tid)
