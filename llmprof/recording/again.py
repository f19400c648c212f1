"""The second, untraced run of ``record --twice``: its NVTX ranges are the timing pass.

Only NVTX is recorded, so nothing slows the GPU's work down; the same ranges are steps as in the
first run.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from llmprof.analysis.steps.marked import mark
from llmprof.analysis.steps.stretch import round_of
from llmprof.errors import UsageError
from llmprof.recording.control import RANGES, ControlPage
from llmprof.recording.program import Program
from llmprof.recording.spooled.image import command_name
from llmprof.recording.spooled.ranges import RangeReader
from llmprof.recording.spooled.tail import SpoolTail
from llmprof.recording.terminal import OwnTerminal
from llmprof.records import EngineRecord, NvtxEvent, RoundRecord, RunData, Unavailable
from llmprof.runfile.trace.ranges import MAX_RANGES, range_rows
from llmprof.tracers.cupti import spool

POLL_S = 0.05


def run_again(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    data: RunData,
    terminal: OwnTerminal | None = None,
    started: Callable[[Program], None] = lambda program: None,
) -> tuple[list[RoundRecord], int] | Unavailable:
    """Run the command with NVTX recorded only.

    Args:
        folder: empty, for its spools.
        variables: its environment; the level is set here.
        data: the first run, as read, with its steps.
        terminal: what the program gets instead of the real one, which a live view has.
        started: told of the program, whose signals are the caller's from then on.

    Returns:
        Rounds of pass ``timing``, times on CLOCK_MONOTONIC, and the exit code; or why there are
        none.

    Raises:
        OSError: the folder cannot be written.
    """
    pattern = data.info.environment.get("step_range")
    if not isinstance(pattern, str) or not pattern:
        return Unavailable(
            "the program marks no steps with NVTX, so untraced steps cannot be timed"
        )
    page = ControlPage(folder, RANGES)
    try:
        settings = {"LLMPROF_RECORD_DIR": str(folder.resolve()), "LLMPROF_RECORD_TRACE": "steps"}
        try:
            program = Program(command, {**variables, **settings}, terminal)
        except UsageError as why:  # a first run may have removed what it was started from
            return Unavailable(f"the second run could not be started: {why}")
        started(program)
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
    found: list[RoundRecord] = []
    paths = sorted(folder.glob("*.spool"), key=lambda p: int(p.stem.rpartition("-")[2]))
    for path in paths:
        name, rank, events = _events(path)
        alike = waiting.get((name, rank), [])
        rounds = list(decoding(events, pattern)) if alike else []
        engine_id = alike.pop(0).engine_id if rounds else 0
        for index, record in enumerate(rounds):
            made = replace(record, round_id=len(found) + 1, index=index, engine_id=engine_id)
            found.append(made)
    return found


def decoding(events: Sequence[NvtxEvent], pattern: str) -> Iterator[RoundRecord]:
    """Rounds of pass ``timing`` of one process: decode steps that follow one another. What its
    ranges say to be prefill or something else parts them, since nothing keeps labels of rounds."""
    ranges = range_rows(
        [(e.start_ns, e.end_ns, e.pid, e.tid) for e in events],
        [(e.domain, e.text) for e in events],
    )
    for one in mark(ranges, pattern):
        for part in one.rounds:
            for counts, group in groupby(part, lambda stretch: stretch.label.phase == "decode"):
                if counts:
                    stretches = tuple(group)
                    whole = RoundRecord(
                        0, 0, "timing", 0, one.process, one.tid, stretches[0].start_ns,
                        stretches[0].start_ns, array("q"), stretches[-1].end_ns, True,
                    )  # fmt: skip
                    made = round_of(stretches, whole, 0, 0, one.tid)
                    yield replace(made, pass_name="timing", steps_from="driven", labels=())


def _events(path: Path) -> tuple[str, str, list[NvtxEvent]]:
    """Name, rank and ranges of one spool."""
    import json

    tail = SpoolTail(path)
    reader = RangeReader(int(path.stem.partition("-")[0]))
    name = rank = ""
    events: list[NvtxEvent] = []
    try:
        while frames := tail.read():
            for kind, payload in frames:
                if kind == spool.PROCESS:
                    facts = json.loads(payload)
                    words = str(facts.get("cmdline", "")).rstrip("\0").split("\0")
                    name, rank = command_name(words), str(facts.get("RANK", ""))
                elif kind == spool.NVTX and len(events) < MAX_RANGES:
                    events += reader.read(payload)
    finally:
        tail.close()
    return name, rank, events
