"""Made-up traces with known truth: TraceRows and the RoundRecord that goes with them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

import numpy as np

from llmprof.records import RoundRecord
from llmprof.runfile.trace.rows import ApiRows, CopyRows, Ints, KernelRows, TraceRows

PID, TID = 4001, 4002
GEMV = "void gemm_half_q_half_gptq_kernel<1, true>(__half const*)"
ATTENTION = "void flash::flash_fwd_splitkv_kernel<T>(flash::Flash_fwd_params)"
NORM = "rms_norm_kernel(__half const*, __half*)"
ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::Half>, "
    "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::Half>)"
)


@dataclass(frozen=True)
class K:
    """One kernel of a step: times in ns after the step's begin, on the device."""

    at: int
    length: int
    name: str = GEMV
    stream: int = 7
    graph: bool = False
    """Joined with the graph kernel before it into one launch."""
    grid: tuple[int, int, int] = (1, 1, 1)


LAYER = (K(20, 50, NORM), K(80, 300, GEMV), K(390, 100, ATTENTION), K(500, 40, ADD))
"""Covers 490 of its first 540 ns; the gaps are 20, 10, 10, 10 and whatever follows."""


@dataclass
class Made:
    """A trace and what is true about it."""

    rows: TraceRows
    record: RoundRecord
    kernel_step: Ints
    copy_step: Ints


@dataclass
class _Columns:
    kernels: list[tuple[int, ...]] = field(default_factory=list)
    copies: list[tuple[int, ...]] = field(default_factory=list)
    api: list[tuple[int, ...]] = field(default_factory=list)


def make_trace(
    steps: int = 4,
    kernels: tuple[K, ...] = LAYER,
    step_ns: int = 1000,
    prefill: tuple[K, ...] = (K(0, 700, GEMV),),
    lag_ns: int = 0,
    synchronous: bool = True,
    api: bool = False,
    copy_at: int | None = None,
    origin: int = 10_000,
) -> Made:
    """Every decode step runs the same kernels; prefill its own.

    Args:
        lag_ns: how long after its launch's step the device gets to the work.
        api: with one launch call per kernel (per graph), 1 ns apart at the step's start.
        copy_at: with a copy of 30 ns to the host, so many ns after the step's begin.
    """
    names = {n: i for i, n in enumerate(dict.fromkeys(k.name for k in (*prefill, *kernels)), 1)}
    columns, correlation = _Columns(), 0
    for step in range(steps + 1):
        begin = origin + step * step_ns
        in_graph = False
        for nth, k in enumerate(kernels if step else prefill):
            if not (k.graph and in_graph):
                correlation += 1
                columns.api.append((begin + 1 + nth, begin + 2 + nth, PID, TID, correlation))
            in_graph = k.graph
            start = begin + lag_ns + k.at
            node = nth + 1 if k.graph else 0
            columns.kernels.append(
                (start, start + k.length, k.stream, correlation, names[k.name], *k.grid, node, step)
            )
        if copy_at is not None:
            correlation += 1
            start = begin + lag_ns + copy_at
            columns.api.append((begin + 100, begin + 101, PID, TID, correlation))
            columns.copies.append((start, start + 30, correlation, step))
    stamps = array("q", [origin + (step + 1) * step_ns for step in range(steps + 1)])
    record = RoundRecord(
        round_id=1,
        engine_id=0,
        pass_name="traced",
        index=0,
        pid=PID,
        tid=TID,
        start_ns=origin - 100,
        prefill_start_ns=origin,
        stamps_ns=stamps,
        end_ns=stamps[-1] + lag_ns + 1,
        complete=True,
        synchronous=synchronous,
    )
    return _assemble(columns, record, {i: n for n, i in names.items()}, api)


def with_error(made: Made, offset_ns: int) -> Made:
    """The same with the tracer's clock off by ``offset_ns`` against the stamps' clock."""
    k, c, a = made.rows.kernels, made.rows.copies, made.rows.api
    moved = TraceRows(
        replace(k, start_ns=k.start_ns + offset_ns, end_ns=k.end_ns + offset_ns),
        replace(c, start_ns=c.start_ns + offset_ns, end_ns=c.end_ns + offset_ns),
        replace(a, start_ns=a.start_ns + offset_ns, end_ns=a.end_ns + offset_ns),
    )
    return replace(made, rows=moved)


def _sorted(rows: list[tuple[int, ...]], width: int) -> list[Ints]:
    table = np.array(rows, np.int64).reshape(len(rows), width)
    return list(table[np.argsort(table[:, 0], kind="stable")].T)


def _assemble(columns: _Columns, record: RoundRecord, names: dict[int, str], api: bool) -> Made:
    start, end, stream, correlation, name, gx, gy, gz, node, step = _sorted(columns.kernels, 10)
    one, zero = np.ones_like(start), np.zeros_like(start)
    kernels = KernelRows(
        start_ns=start,
        end_ns=end,
        pid=one * PID,
        device=zero,
        context=one,
        stream=stream,
        correlation=correlation,
        name_id=name,
        grid_x=gx,
        grid_y=gy,
        grid_z=gz,
        block_x=one * 128,
        block_y=one,
        block_z=one,
        registers=one * 32,
        static_shared=zero,
        dynamic_shared=zero,
        graph_node=node,
        graph=(node > 0).astype(np.int64),
        names=names,
    )
    c_start, c_end, c_correlation, c_step = _sorted(columns.copies, 4)
    ones = np.ones_like(c_start)
    copies = CopyRows(
        start_ns=c_start,
        end_ns=c_end,
        pid=ones * PID,
        device=ones * 0,
        context=ones,
        stream=ones * 7,
        correlation=c_correlation,
        bytes=ones * 4,
        kind=ones * 2,
        graph_node=ones * 0,
    )
    calls = ApiRows()
    if api:
        a_start, a_end, a_pid, a_tid, a_correlation = _sorted(columns.api, 5)
        calls = ApiRows(
            start_ns=a_start,
            end_ns=a_end,
            pid=a_pid,
            tid=a_tid,
            correlation=a_correlation,
            event_class=np.zeros_like(a_start),
            name_id=np.ones_like(a_start),
            names={1: "cudaLaunchKernel_v7000"},
        )
    return Made(TraceRows(kernels, copies, calls), record, step, c_step)
