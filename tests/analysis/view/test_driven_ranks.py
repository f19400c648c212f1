"""A run of a tensor-parallel engine from its file to every output: all ranks are in it."""

from __future__ import annotations

import csv
import json
from array import array
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import ranks_factory
import rundata_factory as make
from numpy.typing import NDArray

from llmprof.analysis.ranks.members import Member
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json import schema
from llmprof.exports.json.report import to_document
from llmprof.exports.text import csv_tables
from llmprof.exports.text.table import render
from llmprof.process_records import RankProcess
from llmprof.records import Unavailable
from llmprof.runfile.schema import global_pid
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.step_records import AUTO_STEPS

STEPS = 8


def run_of(path: Path, members: list[Member]) -> Path:
    """The file that a session leaves behind, with the kernels of all ranks."""
    bounds = members[0].bounds_ns.tolist()
    info = make.engine_info(
        device="cuda:0,1",
        ranks=len(members),
        collective_bytes={"AllReduce": 10_240},
        warmup_min_steps=0,
    )
    engine = make.engine(0, "torch", info=info)
    engine.traced_pid = members[0].pid
    engine.traced_ranks = [RankProcess(m.rank, m.pid, f"cuda:{m.device}") for m in members]
    one = make.decode_round(0, 0, [1e6] * STEPS)
    record = replace(
        one,
        pass_name="traced",
        pid=members[0].pid,
        start_ns=bounds[0] - 2_000_000,
        prefill_start_ns=bounds[0] - 1_000_000,
        stamps_ns=array("q", bounds),
        end_ns=bounds[-1] + 1_000,
    )
    started = replace(make.run_info(), t0_ns=bounds[0] - 10_000_000, state="running")
    with RunFileWriter(path, started) as writer:
        writer.put_engine(engine)
        writer.put_round(record)
        for member in members:
            _put(writer, member)
        writer.set_state("finished")
    return path


def _put(writer: RunFileWriter, member: Member) -> None:
    """The kernels of one rank and the calls that launched them."""
    count = len(member.label)
    if not count:
        return
    number = np.array([writer.string_id(name) for name in member.names], np.int64)[member.label]
    correlation = (member.rank << 48) + 1 + np.arange(count, dtype=np.int64)
    pid = global_pid(member.pid)

    def same(value: int) -> NDArray[np.int64]:
        return np.full(count, value, np.int64)

    ones = ("gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ", "registersPerThread")
    kernel = {
        "start": member.start_ns,
        "end": member.end_ns,
        "deviceId": same(member.device),
        "contextId": same(1),
        "streamId": same(7),
        "correlationId": correlation,
        "globalPid": same(pid),
        "demangledName": number,
        "shortName": number,
        "mangledName": number,
        **{name: same(1) for name in ones},
    }
    needed = {"staticSharedMemory", "dynamicSharedMemory", "localMemoryPerThread"}
    needed |= {"localMemoryTotal", "gridId"}
    writer.bulk("CUPTI_ACTIVITY_KIND_KERNEL", kernel | {name: same(0) for name in needed})
    writer.bulk(
        "CUPTI_ACTIVITY_KIND_RUNTIME",
        {
            "start": member.launch_ns,
            "end": member.launch_ns + 500,
            "eventClass": same(0),
            "globalTid": same(pid | 1),
            "correlationId": correlation,
            "nameId": same(writer.string_id("cudaLaunchKernel")),
            "returnValue": same(0),
        },
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = ranks_factory.group(2, STEPS, host_ns={1: 400_000})
    return run_of(tmp_path_factory.mktemp("ranks") / "tp2.sqlite", members)


def test_every_rank_is_in_the_run_and_the_late_one_is_named(file: Path) -> None:
    data = open_run(file)
    assert [one.rank for one in data.engines[0].traced_ranks] == [0, 1]
    trace = RunTrace(file, data)
    assert trace.no_ranks == {}
    (group,) = trace.ranks
    assert (group.title, group.steps, group.world) == ("torch", STEPS, 2)
    assert group.reason is not None
    assert (group.reason.rank, group.reason.why) == (1, "host")
    assert [line.unmatched for line in group.ranks] == [0, 0]


def test_the_waterfall_has_wait_and_transfer_which_add_up(file: Path) -> None:
    data = open_run(file)
    trace = RunTrace(file, data)
    parts = trace.engines[0].parts
    assert not isinstance(parts, Unavailable)
    assert sum(parts.parts_ns.values()) == parts.step_ns
    assert "communication" not in parts.parts_ns
    assert parts.parts_ns["communication: wait"] == pytest.approx(400_000, rel=0.02)
    # Six all-reduces and an all-gather.
    transfer = 7 * ranks_factory.TRANSFER_NS
    assert parts.parts_ns["communication: transfer"] == pytest.approx(transfer, rel=0.1)


def test_json_text_and_tables(file: Path, tmp_path: Path) -> None:
    data = open_run(file)
    trace = RunTrace(file, data)
    document = to_document(build(data), data, trace)
    jsonschema.validate(document, json.loads(schema.text()))
    (group,) = document["ranks"]
    assert group["verdict"] == "late"
    assert np.array(group["late_ns_of_rank_and_step"]).shape == (2, STEPS)
    reduce = group["collectives"][0]
    assert reduce["bytes"] == 10_240
    text = render(build(data), 80, trace)
    assert "Ranks of torch" in text
    assert "rank 1 · GPU 1" in text
    assert max(map(len, text.splitlines())) <= 80
    csv_tables.write([file], tmp_path / "tables", lambda *_: None, AUTO_STEPS)
    with (tmp_path / "tables" / "rank_steps.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 * STEPS
    assert {row["critical"] for row in rows if row["rank"] == "1"} == {"True"}


def test_a_rank_without_kernels_is_said(tmp_path: Path) -> None:
    members = ranks_factory.group(2, STEPS)
    empty = replace(
        members[1],
        **{name: getattr(members[1], name)[:0] for name in ("start_ns", "end_ns", "label")},
        launch_ns=members[1].launch_ns[:0],
    )
    path = run_of(tmp_path / "half.sqlite", [members[0], empty])
    (group,) = RunTrace(path, open_run(path)).ranks
    assert group.provenance == "modelled"
    assert "rank 0 of 2 was recorded" in group.notes
