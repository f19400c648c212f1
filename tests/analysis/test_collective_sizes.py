"""Bytes of a recorded program's collectives, from what NCCL said of its calls."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import rundata_factory as make

from llmprof.analysis.ranks.matched.sizes import collective_sizes, main_communicator
from llmprof.records import NvtxEvent
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.schema import global_pid
from llmprof.runfile.trace.collective_calls import CollectiveCalls
from llmprof.runfile.trace.rows import ApiRows, KernelRows, TraceRows
from llmprof.runfile.writing.writer import RunFileWriter

REDUCE = "ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
HASH = 0xABCDEF0123456789


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def calls(*made: tuple[int, str, int], tid: int = 7, ranks: int = 4) -> CollectiveCalls:
    """(start, kind, bytes) of each, on one communicator."""
    start = ints(*(one[0] for one in made))
    return CollectiveCalls(
        start_ns=start,
        end_ns=start + 5,
        tid=np.full(len(made), tid),
        kind=tuple(one[1] for one in made),
        bytes=ints(*(one[2] for one in made)),
        communicator=np.zeros(len(made), np.int64),
        communicators=(HASH,),
        ranks=(ranks,),
        launch_ns=ints(),
        launch_tid=ints(),
    )


def sizes(seen: TraceRows, said: CollectiveCalls, *others: int) -> list[int]:
    """Of each kernel; ``others``: launches of thread 7 that are not among the rows."""
    named = {n for n, name in seen.kernels.names.items() if "nccl" in name}
    mine = np.isin(seen.kernels.name_id, list(named)) & (seen.kernels.graph_node == 0)
    launched = [(at, 7) for at in others]
    if len(seen.api):
        launched += zip(seen.api.start_ns[mine].tolist(), seen.api.tid[mine].tolist(), strict=True)
    table = np.array(sorted(launched), np.int64).reshape(-1, 2)
    return collective_sizes(
        seen, replace(said, launch_ns=table[:, 0], launch_tid=table[:, 1])
    ).tolist()


def rows(*kernels: tuple[int, str, int], launched: bool = True, tid: int = 7) -> TraceRows:
    """(start of the launching call, name, graph node) of each; the kernel starts 100 later."""
    names = dict(enumerate(dict.fromkeys(one[1] for one in kernels), 1))
    number = {name: n for n, name in names.items()}
    launch = ints(*(one[0] for one in kernels))
    count = len(kernels)
    correlation = np.arange(1, count + 1)
    return TraceRows(
        kernels=KernelRows(
            start_ns=launch + 100,
            end_ns=launch + 150,
            correlation=correlation,
            name_id=ints(*(number[one[1]] for one in kernels)),
            graph_node=ints(*(one[2] for one in kernels)),
            names=names,
        ),
        api=ApiRows(start_ns=launch, end_ns=launch + 3, tid=np.full(count, tid),
                    correlation=correlation)
        if launched
        else ApiRows(),
    )  # fmt: skip


def test_each_kernel_has_the_bytes_of_the_call_before_its_launch() -> None:
    seen = rows((20, REDUCE, 0), (40, "gemm", 0), (60, GATHER, 0), (80, REDUCE, 0))
    said = calls((10, "AllReduce", 8192), (50, "AllGather", 16), (70, "AllReduce", 64))
    # nccl-tests count what all ranks of an all-gather send together.
    assert sizes(seen, said) == [8192, 0, 64, 64]
    assert sizes(seen, replace(said, ranks=(0,))) == [8192, 0, 0, 64]


def test_a_group_of_calls_in_one_kernel_has_no_size() -> None:
    seen = rows((20, REDUCE, 0), (60, REDUCE, 0), (80, REDUCE, 0))
    said = calls(
        (10, "AllReduce", 8192), (30, "AllReduce", 64), (40, "AllReduce", 64), (70, "AllReduce", 32)
    )  # fmt: skip
    assert sizes(seen, said) == [8192, 0, 32]


def test_calls_of_another_thread_are_not_taken() -> None:
    seen = rows((20, REDUCE, 0), tid=9)
    said = calls((10, "AllReduce", 8192))
    assert sizes(seen, said) == [0]


def test_a_graph_has_the_size_of_the_calls_that_captured_it() -> None:
    # An eager call of another size, two captured ones, then two replays.
    said = calls((1, "AllReduce", 64), (10, "AllReduce", 8192), (11, "AllReduce", 8192))
    seen = rows((5, REDUCE, 0), (60, REDUCE, 3), (60, REDUCE, 4))
    assert sizes(seen, said) == [64, 8192, 8192]
    # The eager one may lie outside of the stretch that is looked at.
    seen = rows((60, REDUCE, 3), (60, REDUCE, 4))
    assert sizes(seen, said, 5) == [8192, 8192]
    assert sizes(seen, said) == [0, 0]
    # A launch after two captured calls: which call is its own is not known.
    seen = rows((5, REDUCE, 0), (20, REDUCE, 0), (60, REDUCE, 3))
    assert sizes(seen, calls((1, "AllReduce", 64), (10, "AllReduce", 32), (12, "AllReduce", 8)))[
        1:
    ] == [0, 0]
    said = calls((1, "AllReduce", 8192), (2, "AllReduce", 8192))
    seen = rows((60, REDUCE, 3), (60, REDUCE, 4))
    assert sizes(seen, said) == [8192, 8192]
    mixed = calls((1, "AllReduce", 8192), (2, "AllReduce", 64))
    assert sizes(seen, mixed) == [0, 0]


def test_without_calls_of_cuda_one_size_is_enough() -> None:
    seen = rows((20, REDUCE, 0), (60, REDUCE, 0), launched=False)
    said = calls((10, "AllReduce", 8192), (50, "AllReduce", 8192))
    assert sizes(seen, said) == [8192, 8192]
    said = calls((10, "AllReduce", 8192), (50, "AllReduce", 64))
    assert sizes(seen, said) == [0, 0]


def test_calls_come_out_of_the_run_file_as_nccl_made_them(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    info = make.run_info()
    comm = {"NCCL communicator ID": HASH, "No. of ranks": 4, "Rank": 2, "CUDA device": 2}
    sent = {"NCCL communicator ID": HASH, "Message size [bytes]": 8192}
    at = info.t0_ns

    def event(start: int, text: str, values: object) -> NvtxEvent:
        said = json.dumps(values) if values else ""
        return NvtxEvent(at + start, at + start + 5, text, 11, 7, "NCCL", said)

    with RunFileWriter(path, info) as writer:
        writer.put_nvtx(
            [
                event(1, "ncclCommInitRank", comm),
                event(10, "ncclAllReduce", sent),
                # Of a communicator that is split off: its parent's number of ranks.
                event(15, "ncclCommSplit", {**comm, "NCCL communicator ID": 3, "Key": 0}),
                event(20, "ncclGroupEnd", None),
                event(30, "step", sent),
                event(40, "ncclAllReduce", {**sent, "Message size [bytes]": "many"}),
                event(50, "ncclBroadcast", {**sent, "NCCL communicator ID": 3}),
                event(60, "ncclAllReduce", sent),
            ]
        )
        writer.set_state("finished")
    with RunFileReader(path) as reader:
        ((process, found),) = reader.collective_calls().items()
    assert process == global_pid(11) >> 24
    assert found.kind == ("AllReduce", "Broadcast", "AllReduce")
    assert found.start_ns.tolist() == [10, 50, 60]
    assert found.bytes.tolist() == [8192] * 3
    assert found.communicator.tolist() == [0, 1, 0]
    assert (found.communicators, found.ranks) == ((HASH, 3), (4, 0))
    assert found.tid.tolist() == [7, 7, 7]
    assert main_communicator(found) == (HASH, 4)


def test_a_file_of_other_columns_says_nothing(tmp_path: Path) -> None:
    """Exports of other versions, and of a file's own making."""
    for number, columns in enumerate(
        ('start, "end", eventType, globalTid, jsonText', 'start, "end", "text", globalTid')
    ):
        path = tmp_path / f"{number}.sqlite"
        with RunFileWriter(path, make.run_info()) as writer:
            writer.set_state("finished")
        with closing(sqlite3.connect(path)) as sql, sql:
            sql.execute("DROP TABLE IF EXISTS NVTX_EVENTS")
            sql.execute(f"CREATE TABLE NVTX_EVENTS ({columns})")
        with RunFileReader(path) as reader:
            assert reader.collective_calls() == {}
