"""Ranks of a recorded program, with what NCCL said of its calls: sizes, communicators, groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import ranks_factory
from ranks_run import put_member

from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import EngineInfo, EngineRecord, NvtxEvent, RunInfo
from llmprof.records.processes import RecordedProcess
from llmprof.runfile.schema import process_number
from llmprof.runfile.writing.writer import RunFileWriter

T0 = 900_000_000
TID = 1
_NAMES = {
    "id": "NCCL communicator ID",
    "ranks": "No. of ranks",
    "bytes": "Message size [bytes]",
}
SIZES = {ranks_factory.REDUCE: ("AllReduce", 8192), ranks_factory.GATHER: ("AllGather", 16)}


def said(member: Member, communicator: int, ranks: int) -> list[NvtxEvent]:
    """Steps of that rank, and NCCL's ranges just before each launch of a collective."""

    def event(at: int, text: str, **values: int) -> NvtxEvent:
        attached = {_NAMES[key]: value for key, value in values.items()}
        text_of = json.dumps(attached) if attached else ""
        return NvtxEvent(at, at + 1, text, member.pid, TID, "NCCL", text_of)

    bounds = member.bounds_ns.tolist()
    events = [
        NvtxEvent(a, b - 1, f"decode {n}", member.pid, TID, "")
        for n, (a, b) in enumerate(pairwise(bounds))
    ]
    if communicator:
        events.append(event(T0 + 10, "ncclCommInitRank", id=communicator, ranks=ranks))
    for launch, label in zip(member.launch_ns.tolist(), member.label.tolist(), strict=True):
        if member.names[label] in SIZES and communicator:
            kind, size = SIZES[member.names[label]]
            events.append(event(launch - 2, f"nccl{kind}", id=communicator, bytes=size))
    return sorted(events, key=lambda one: one.start_ns)


def recorded(path: Path, communicators: Sequence[int], ranks: int) -> RunTrace:
    """A program of four ranks of one rhythm; the communicator of each is given (0: not said)."""
    members = [
        replace(m, pid=process_number(700 + m.rank, 0))
        for m in ranks_factory.group(len(communicators), 12)
    ]
    whole = next(iter(ranks_factory.group(1, 12))).bounds_ns
    info = RunInfo(T0, 0, "0", None, ["x"], {}, {}, "full", state="finished", source="recorded")
    with RunFileWriter(path, info) as writer:
        for member, communicator in zip(members, communicators, strict=True):
            n = member.rank
            engine = EngineRecord(n, f"e{n}", "e", "", {}, "finished", traced_pid=member.pid)
            engine.info = EngineInfo(device=f"cuda:{n}")
            writer.put_engine(engine)
            stepping = member if len(member.bounds_ns) else replace(member, bounds_ns=whole)
            writer.put_nvtx(said(stepping, communicator, ranks))
            put_member(writer, member)
            writer.put_process(
                RecordedProcess(
                    member.pid, n, 700 + n, 1, f"e{n}", "/e", ["e"], n, T0, T0, T0 + 1_000_000,
                    len(member.label), 0, 0, 10, 0, True, "libcupti", world_size=len(communicators),
                    devices={"0": str(n)},
                )
            )  # fmt: skip
    return RunTrace(path, open_run(path))


def test_bytes_and_bandwidth_are_what_nccl_said(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run.sqlite", [5, 5, 5, 5], 4)
    (group,) = trace.ranks
    assert group.world == 4
    lines = {one.kind: one for one in group.collectives}
    assert lines["AllReduce"].bytes == 8192
    # nccl-tests count what all ranks gather.
    assert lines["AllGather"].bytes == 64
    bus = 8192 / (lines["AllReduce"].transfer_us * 1e3) * 1.5
    assert lines["AllReduce"].bus_gb_s == pytest.approx(bus)


def test_ranks_of_two_communicators_are_two_groups(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run.sqlite", [5, 5, 6, 6], 2)
    assert [[line.rank for line in group.ranks] for group in trace.ranks] == [[0, 1], [2, 3]]
    assert [group.world for group in trace.ranks] == [2, 2]
    # Without NCCL's word their common rhythm makes them one.
    trace = recorded(tmp_path / "other.sqlite", [0, 0, 0, 0], 0)
    assert [len(group.ranks) for group in trace.ranks] == [4]


def test_a_communicator_of_one_rank_is_no_group(tmp_path: Path) -> None:
    """torchrun with one process: its all-reduces wait for nobody."""
    assert recorded(tmp_path / "one.sqlite", [5], 1).ranks == ()
    # Of two ranks one was recorded.
    (group_of_two,) = recorded(tmp_path / "two.sqlite", [5], 2).ranks
    assert group_of_two.provenance == "modelled"
