"""The groups of ranks of a run: of its engines, as a program said, or found by matching."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.kernels import TracedRound
from llmprof.analysis.device.naming.categories import Rule
from llmprof.analysis.device.sweep import Spans
from llmprof.analysis.ranks.matched.joins import Joins, joins
from llmprof.analysis.ranks.matched.matching import match
from llmprof.analysis.ranks.matched.members import Member, member
from llmprof.analysis.ranks.matched.sizes import collective_sizes, main_communicator
from llmprof.analysis.ranks.matched.twins import SkewReport, twins
from llmprof.analysis.ranks.report import report
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.rank_facts import with_facts, with_host
from llmprof.records import EngineRecord, RoundRecord, RunData, Unavailable
from llmprof.runfile.foreign.source import TORCH
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.rows import Ints

_NO_BOUNDS = np.empty(0, np.int64)


class Traced(Protocol):
    """What is asked of an engine's trace (``traced.EngineTrace``)."""

    label: str
    record: RoundRecord | None
    round: TracedRound | Unavailable


@dataclass(frozen=True)
class Groups:
    """All groups of a run."""

    ranks: tuple[RanksReport, ...]
    skews: tuple[SkewReport, ...]
    """Processes that do the same and share no collective in the trace."""
    missing: dict[str, str]
    """Engine label → why a group that there should be is missing."""


def groups(
    reader: RunFileReader,
    data: RunData,
    traces: Sequence[Traced],
    rules: Sequence[Rule],
) -> Groups:
    """Of its engines, as a program said, or found by matching."""
    found: list[RanksReport] = []
    missing: dict[str, str] = {}
    if data.info.source != "driven":
        members = _members(reader, data, traces, rules)
        worlds = [p.world_size or 0 for p in data.processes]
        if (ranks := reader.source()[0].ranks) is not None:  # one rank's file
            worlds.append(ranks[1])
        world = max(worlds, default=0)
        same_host = data.info.environment.get("source") != TORCH
        communicating = [one for one in members if len(one.collectives)]
        clusters = _clusters(communicating, same_host)
        several = len(clusters) > 1 and min(map(len, clusters)) > 1
        for group in clusters:
            names = dict.fromkeys(one.engine for one in group)
            whole = group[0].communicator_ranks or world
            if (group[0].communicator or several) and len(members) >= world:
                whole = len(group)  # all ranks are here, and these are all of its own
            if len(group) == group[0].communicator_ranks == 1:
                continue  # it communicates with nobody
            made = report(group, ", ".join(names), {}, max(whole, len(group)), same_host)
            if isinstance(made, Unavailable):
                missing[group[0].engine] = made.reason
            else:
                theirs = [e for e in data.engines if e.label in names]
                found.append(with_facts(reader, data, theirs, made))
        return Groups(tuple(found), tuple(twins(members)) if same_host else (), missing)
    skews: list[SkewReport] = []
    for engine, trace in zip(data.engines, traces, strict=True):
        if engine.info is None or engine.info.ranks < 2:
            continue
        mine = _driven(reader, engine, trace, rules)
        if isinstance(mine, Unavailable):
            missing[engine.label] = mine.reason
            continue
        info = engine.info
        made = report(mine, engine.label, info.collective_bytes, info.ranks, same_host=True)
        if isinstance(made, Unavailable):
            missing[engine.label] = made.reason
            if not any(len(one.collectives) for one in mine):
                skews += twins([_without_arguments(one) for one in mine], ())
        else:
            assert trace.record is not None
            made = with_host(reader, trace.record, made)
            found.append(with_facts(reader, data, [engine], made))
    return Groups(tuple(found), tuple(skews), missing)


def _without_arguments(one: Member) -> Member:
    """GPUs of one engine may each have tuned their products to other arguments of a template."""
    names = tuple(name.partition("<")[0].partition("(")[0] for name in one.names)
    return replace(one, names=names)


def _driven(
    reader: RunFileReader, engine: EngineRecord, trace: Traced, rules: Sequence[Rule]
) -> list[Member] | Unavailable:
    """The ranks of one engine of llmprof's own: rank 0 is the worker, the others have own rows."""
    traced, record = trace.round, trace.record
    if isinstance(traced, Unavailable):
        return traced
    assert record is not None
    name = engine.label, engine.name
    members = []
    devices = traced.work.devices()
    if len(engine.traced_ranks) < 2:  # one process with several GPUs
        for rank, device in enumerate(devices):
            bounds = _bounds(traced)
            members.append(
                member(traced.rows, record.pid, device, rank, name, rules, bounds,
                       counted=_counted(traced))
            )  # fmt: skip
    for one in engine.traced_ranks:
        if not one.rank:
            rows, bounds, counted = traced.rows, _bounds(traced), _counted(traced)
        else:
            rows = reader.trace_rows(replace(record, pid=one.pid))
            bounds, counted = _NO_BOUNDS, None
            if record.end_ns and trace.record is not None:
                rows = rows.until(record.end_ns)
        used = [int(d) for d in np.unique(rows.kernels.device)]
        if used:
            members.append(
                member(rows, one.pid, used[0], one.rank, name, rules, bounds, counted=counted)
            )
    if not members:
        return Unavailable("no rank has kernels")
    return members


def _members(
    reader: RunFileReader, data: RunData, traces: Sequence[Traced], rules: Sequence[Rule]
) -> list[Member]:
    """Every (process, device) of a file that llmprof did not drive."""
    said: dict[int, int | None] = {p.process: p.rank for p in data.processes}
    found: list[Member] = []
    said_by_nccl = reader.collective_calls()
    for engine, trace in zip(data.engines, traces, strict=True):
        traced, record = trace.round, trace.record
        if isinstance(traced, Unavailable) or record is None:
            continue
        rows, (communicator, size) = traced.rows, (0, 0)
        if calls := said_by_nccl.get(record.pid):
            communicator, size = main_communicator(calls)
            sizes = collective_sizes(rows, calls)
            rows = replace(rows, kernels=replace(rows.kernels, collective_bytes=sizes))
        # Converted traces of torch.profiler have the rank in the process' name.
        named = re.fullmatch(r"rank (\d{1,7})", engine.label)
        for device in traced.work.devices():
            rank = said.get(record.pid, int(named[1]) if named else None)
            one = member(
                rows,
                record.pid,
                device,
                device if rank is None else rank,
                (engine.label, engine.name),
                rules,
                _bounds(traced),
                rank is not None,
                _counted(traced),
            )
            found.append(replace(one, communicator=communicator, communicator_ranks=size))
    return found


def _bounds(traced: TracedRound) -> Ints:
    known = traced.attribution.unavailable is None
    return traced.attribution.bounds_ns if known else _NO_BOUNDS


def _counted(traced: TracedRound) -> NDArray[np.bool_] | None:
    return traced.laid.counted if traced.attribution.unavailable is None else None


def _clusters(members: Sequence[Member], same_host: bool) -> list[list[Member]]:
    """Those whose collectives match are one group. Where two would have one number, all are
    numbered in order."""
    rest, found = list(members), []
    while rest:
        first, *others = rest
        group, rest = [first], []
        for other in others:
            named = {first.communicator, other.communicator} - {0}
            together = len(named) < 2 and not isinstance(
                match([first, other], same_host), Unavailable
            )
            (group if together else rest).append(other)
        if len({m.rank for m in group}) < len(group):
            group = [replace(m, rank=n, from_environment=False) for n, m in enumerate(group)]
        found.append(group)
    return found


class Waits(Protocol):
    """What takes the waits (``traced.EngineTrace``)."""

    label: str
    pid: int
    round: TracedRound | Unavailable
    waits: Spans | None
    joins: Joins | None
    further_ranks: tuple[Member, ...]


def lend_waits(group: RanksReport, traces: Sequence[Waits]) -> None:
    """Tell every engine of the group when its primary device waited, what joins it to the other
    ranks, and of its other processes."""
    for trace in traces:
        trace.further_ranks += tuple(
            one for one in group.members if one.engine == trace.label and one.pid != trace.pid
        )
    if group.provenance != "measured" or group.matched is None:
        return  # estimated waits are shown as such, and stay out of the waterfall
    ranks = {row: line.rank for row, line in zip(group.matched_rows, group.ranks, strict=True)}
    for trace in traces:
        if isinstance(trace.round, Unavailable):
            continue
        for one, spans, row in zip(
            group.members, group.wait_spans, group.matched_rows, strict=True
        ):
            if (one.pid, one.device) == (trace.pid, trace.round.laid.device):
                trace.waits = spans
                names = {m.device: m.name for m in group.members if m.engine == trace.label}
                by_row = tuple(ranks[n] for n in sorted(ranks))
                clock = group.matched.clocks[row]
                trace.joins = joins(group.matched, by_row, names, clock)
