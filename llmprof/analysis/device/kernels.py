"""What the devices did in each decode step of a traced round: busy, idle, kernels, categories.

Busy and idle time are a device's. Where an engine runs on several, its own busy and idle time,
categories and gaps are those of its *primary* device: the one with the most busy time, the lowest
number among equals. Kernels and launches are counted over all devices. ``KernelReport.devices``
has the numbers of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.attribution import Attribution, Check, Method
from llmprof.analysis.device.categories import COPY, OTHER, WHOLE_GRAPH, Rule, categorise
from llmprof.analysis.device.gaps import between_pieces
from llmprof.analysis.device.kernel_names import short_name
from llmprof.analysis.device.quality import Quality, check
from llmprof.analysis.device.sweep import (
    WHOLE_GRAPH_NAME,
    Timeline,
    Work,
    collect,
    covered_ns,
    lay_out,
    sums,
)
from llmprof.plaintext import one_line
from llmprof.records import Maybe, RoundRecord, Unavailable
from llmprof.runfile.trace.rows import Ints, KernelRows, TraceRows

Dim = tuple[int, int, int]
Spans = tuple[Ints, Ints]

NOT_SPLIT = Unavailable(
    "CUDA graphs were traced as a whole: which kernels ran is not known"
    " (nsys profile --cuda-graph-trace=node shows them)"
)
_DURATION_BITS = 40
"""18 minutes in ns: a duration and a label share one sortable int64."""


@dataclass(frozen=True)
class StepGpu:
    """The primary device in one decode step. ``busy_ns + idle_ns == wall_ns``."""

    step: int
    """From 1."""
    wall_ns: int
    busy_ns: int
    """Some kernel, copy or set is running: the union over streams."""
    idle_ns: int
    kernels: int
    """On all devices, like ``copies`` and ``launches``; without those in whole graphs."""
    copies: int
    """All other work: copies, sets, CUDA graphs that were traced as a whole."""
    launches: int
    """Calls that started kernels: a CUDA graph of 200 kernels is one."""
    unusual: bool
    """Ran other kernels, or other numbers of them, than most steps: graph capture, autotuning,
    allocation and other first-time work. Such steps stay in every sum and mean."""


@dataclass(frozen=True)
class KernelSummary:
    """All executions of one kernel (or kind of copy) in the decode steps, by total time."""

    short_name: str
    name: str
    """Demangled where the tracer could, on one printable line of at most 1000 characters."""
    category: str
    count: int
    count_per_step: Maybe
    mean_ns: float
    median_ns: float
    total_ns: int
    """Sum of durations; more than its part of the busy time where kernels overlap."""
    share: float
    """Of the sum of all durations, 0–1."""
    grid: Dim | None
    """Of the most common launch shape; ``None`` for a copy."""
    block: Dim | None
    graph_share: float
    """Executions that were nodes of a CUDA graph, 0–1."""


@dataclass(frozen=True)
class CategoryTime:
    """Busy time of one category; overlapping work counts for what started first."""

    category: str
    total_ns: int
    ms_per_step: Maybe
    """Mean over the traced decode steps: ms per token of each sequence."""
    share: float
    """Of the busy time, 0–1."""


@dataclass(frozen=True)
class DeviceReport:
    """One device of an engine in its traced round. ``busy_ns + idle_ns`` is the scope's length."""

    device: int
    primary: bool
    """The engine's own busy and idle time are this device's."""
    busy_ns: int | Unavailable
    """Over the scope."""
    idle_ns: int | Unavailable
    other_processes_ns: int | Unavailable
    """Of ``idle_ns``: other processes worked on the device."""
    busy_ms_per_step: Maybe
    """Median over the steps, like ``idle_ms_per_step``."""
    idle_ms_per_step: Maybe
    kernels: int
    """Over the scope, like ``copies``."""
    copies: int
    step_busy_ns: tuple[int, ...] | Unavailable
    """Of every decode step."""


@dataclass(frozen=True)
class KernelReport:
    """The traced round of one engine. Without attribution: totals over the round with prefill."""

    method: Method | None
    reason: str
    """Why kernels were attributed this way, or could not be."""
    checks: tuple[Check, ...]
    scope: str
    """What the totals are over: ``32 decode steps`` or ``the whole round``."""
    step_count: int
    """Decode steps that the totals are over; 0: steps are not known."""
    steps: tuple[StepGpu, ...] | Unavailable
    wall_ms_per_step: Maybe
    """Medians over the steps, from here on."""
    busy_ms_per_step: Maybe
    idle_ms_per_step: Maybe
    kernels_per_step: Maybe
    launches_per_step: Maybe
    busy_ns: int | Unavailable
    """Over the scope."""
    idle_ns: int | Unavailable
    idle_at_most: str
    """Why idle is an upper bound (lost records); empty: it is not."""
    kernels: tuple[KernelSummary, ...]
    categories: tuple[CategoryTime, ...]
    """By total time. Their sum is ``busy_ns``."""
    device: int
    """The primary one."""
    devices: tuple[DeviceReport, ...]
    """Each device that the engine's process used, ascending."""


@dataclass(frozen=True, eq=False)
class TracedRound:
    """A traced round made ready once for the reports on it."""

    work: Work
    """Of all devices."""
    laid: Timeline
    """Of the primary device: the decode steps; without attribution, the round from prefill on as if
    one step."""
    devices: tuple[Timeline, ...]
    """The same for each device, ascending; one of them is ``laid``."""
    attribution: Attribution
    rows: TraceRows
    categories: dict[int, str]
    """Label → category."""
    quality: Quality
    other_processes: dict[int, Spans]
    """Device → when other processes worked on it: (start, end), ns."""

    @property
    def timeline(self) -> Timeline | Unavailable:
        """Of the decode steps, on the primary device."""
        why = self.unknown
        return self.laid if why is None else why

    @property
    def unknown(self) -> Unavailable | None:
        """Why busy and idle time of the steps are not known."""
        why = self.attribution.unavailable  # false in itself, so no `or` here
        return self.quality.doubt if why is None else why

    @property
    def not_split(self) -> bool:
        """Are CUDA graphs among the work of the steps that were traced as a whole?"""
        work = self.work
        mine = work.whole_graph & _overlaps(work, self.laid.bounds_ns)
        return bool(mine.any())


def prepare(
    rows: TraceRows,
    record: RoundRecord,
    attribution: Attribution,
    engine: str,
    rules: Sequence[Rule] | None = None,
    lost: str = "",
    other_processes: dict[int, Spans] | None = None,
) -> TracedRound:
    """Lay out the round's work.

    Args:
        lost: what the recording says about lost records.
        other_processes: device → when other processes worked on it.
        record: on the time axis of the rows.
        engine: the engine's name, for rules that are only for it.
        rules: by default the shipped ones (``categories.load_rules`` adds the user's).
    """
    work = collect(rows, record.pid, attribution.kernel_step, attribution.copy_step)
    bounds = attribution.bounds_ns
    if attribution.unavailable is not None:
        end = max(record.end_ns, record.prefill_start_ns)
        bounds = np.array([record.prefill_start_ns, end], np.int64)
    devices = tuple(lay_out(work, bounds, device) for device in work.devices() or (0,))
    laid = max(devices, key=lambda timeline: int(timeline.busy_ns().sum()))
    categories = categorise(dict(enumerate(work.names)), engine, rules)
    for label, name in enumerate(work.names):
        # The user may say otherwise about kernels, but a transfer is a transfer.
        if name.startswith("[mem"):
            categories[label] = COPY
        elif name == WHOLE_GRAPH_NAME:
            categories[label] = WHOLE_GRAPH
    quality = check(rows, record, lost)
    return TracedRound(
        work, laid, devices, attribution, rows, categories, quality, other_processes or {}
    )


def kernel_report(traced: TracedRound) -> KernelReport:
    """Everything about the kernels of one traced round."""
    attribution, laid = traced.attribution, traced.laid
    steps: tuple[StepGpu, ...] | Unavailable
    if attribution.unavailable is not None:
        inside = _overlaps(traced.work, laid.bounds_ns)
        steps, per_step, scope = attribution.unavailable, 0, "the whole round"
    else:
        inside = traced.work.step > 0
        steps, per_step = _steps(traced.work, laid, traced.rows), laid.steps
        scope = f"{per_step} decode step{'s' * (per_step > 1)}"
    doubt = traced.quality.doubt
    busy = int(laid.busy_ns().sum())
    counted = steps
    if doubt is not None and not isinstance(steps, Unavailable):
        steps = doubt
    return KernelReport(
        method=attribution.method,
        reason=attribution.reason,
        checks=attribution.checks,
        scope=scope,
        step_count=per_step,
        steps=steps,
        wall_ms_per_step=_median(counted, "wall_ns", 1e6),
        busy_ms_per_step=_median(steps, "busy_ns", 1e6),
        idle_ms_per_step=_median(steps, "idle_ns", 1e6),
        kernels_per_step=NOT_SPLIT if traced.not_split else _median(counted, "kernels", 1),
        launches_per_step=_median(counted, "launches", 1),
        busy_ns=busy if doubt is None else doubt,
        idle_ns=int(laid.wall_ns().sum()) - busy if doubt is None else doubt,
        idle_at_most=traced.quality.at_most,
        kernels=_summaries(traced, np.flatnonzero(inside), per_step),
        categories=_category_times(traced, per_step),
        device=laid.device,
        devices=tuple(_device(traced, timeline, inside) for timeline in traced.devices),
    )


def _device(traced: TracedRound, timeline: Timeline, inside: NDArray[np.bool_]) -> DeviceReport:
    """``inside``: of every row of the work, is it in the scope?"""
    work, why, doubt = traced.work, traced.unknown, traced.quality.doubt
    mine = inside & (work.device == timeline.device)
    busy, wall = timeline.busy_ns(), timeline.wall_ns()
    others = int(others_ns(traced, timeline).sum()) if doubt is None else doubt
    return DeviceReport(
        device=timeline.device,
        primary=timeline is traced.laid,
        busy_ns=int(busy.sum()) if doubt is None else doubt,
        idle_ns=int(wall.sum() - busy.sum()) if doubt is None else doubt,
        other_processes_ns=others,
        busy_ms_per_step=float(np.median(busy)) / 1e6 if why is None else why,
        idle_ms_per_step=float(np.median(wall - busy)) / 1e6 if why is None else why,
        kernels=int(np.count_nonzero(mine & work.is_kernel)),
        copies=int(np.count_nonzero(mine & ~work.is_kernel)),
        step_busy_ns=tuple(busy.tolist()) if why is None else why,
    )


def others_ns(traced: TracedRound, timeline: Timeline) -> Ints:
    """Of every gap of a device's timeline: ns in which other processes worked on the device."""
    start, end, *_ = between_pieces(timeline)
    spans = traced.other_processes.get(timeline.device)
    return covered_ns([] if spans is None else [spans], start, end)


def category_ns(traced: TracedRound) -> dict[str, int]:
    """Busy ns of each category on the primary device, adding up to its busy time."""
    laid = traced.laid
    by_label = sums(laid.label, laid.end_ns - laid.start_ns, len(laid.names))
    totals: dict[str, int] = {}
    for label in np.flatnonzero(by_label):
        category = traced.categories.get(int(label), OTHER)
        totals[category] = totals.get(category, 0) + int(by_label[label])
    return totals


def _overlaps(work: Work, bounds_ns: Ints) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (work.end_ns > bounds_ns[0]) & (work.start_ns < bounds_ns[-1])
    return inside


def _median(steps: tuple[StepGpu, ...] | Unavailable, field: str, unit: float) -> Maybe:
    if isinstance(steps, Unavailable):
        return steps
    return float(np.median([getattr(s, field) for s in steps])) / unit


def _steps(work: Work, timeline: Timeline, rows: TraceRows) -> tuple[StepGpu, ...]:
    count = timeline.steps
    kernel_step = work.step[work.is_kernel]
    copy_step = work.step[~work.is_kernel]
    kernels = np.bincount(kernel_step[kernel_step > 0], minlength=count + 1)[1:]
    copies = np.bincount(copy_step[copy_step > 0], minlength=count + 1)[1:]
    graphs = work.whole_graph[~work.is_kernel]
    launched = np.concatenate(
        [rows.kernels.correlation[work.kernel_row], rows.copies.correlation[work.copy_row[graphs]]]
    )
    first = np.unique(launched, return_index=True)[1]
    launch_step = np.concatenate([kernel_step, copy_step[graphs]])[first]
    launches = np.bincount(launch_step[launch_step > 0], minlength=count + 1)[1:]
    wall, busy = timeline.wall_ns(), timeline.busy_ns()
    unusual = _unusual(work, count)
    return tuple(
        StepGpu(
            step=n + 1,
            wall_ns=int(wall[n]),
            busy_ns=int(busy[n]),
            idle_ns=int(wall[n] - busy[n]),
            kernels=int(kernels[n]),
            copies=int(copies[n]),
            launches=int(launches[n]),
            unusual=unusual[n],
        )
        for n in range(count)
    )


def _unusual(work: Work, count: int) -> list[bool]:
    """Steps whose multiset of kernels is not that of most steps; none where most steps differ.

    A multiset's mark is the wrapping sum of a random 64-bit number a kernel: equal multisets have
    equal marks, and different ones the same mark with a chance of 2**-64.
    """
    inside = work.is_kernel & (work.step > 0)
    numbers = np.random.default_rng(0).integers(0, 2**63, len(work.names), np.uint64)
    marks = np.zeros(count, np.uint64)
    np.add.at(marks, work.step[inside] - 1, numbers[work.label[inside]])
    values, counts = np.unique(marks, return_counts=True)
    usual = int(np.argmax(counts))
    if counts[usual] * 2 <= count:
        return [False] * count
    return [bool(mark != values[usual]) for mark in marks]


def _summaries(traced: TracedRound, inside: Ints, steps: int) -> tuple[KernelSummary, ...]:
    work, rows = traced.work, traced.rows.kernels
    label = work.label[inside]
    duration = (work.end_ns - work.start_ns)[inside]
    size = len(work.names)
    count, total = np.bincount(label, minlength=size), sums(label, duration, size)
    medians = _medians(label, duration, count)
    # Kernels come first in the work, so the kernels among `inside` lead there too.
    of_kernels = work.kernel_row[inside[work.is_kernel[inside]]]
    kernel_label = label[: len(of_kernels)]
    in_graph = sums(kernel_label, (rows.graph_node[of_kernels] != 0).astype(np.int64), size)
    shapes = _common_shapes(rows, of_kernels, kernel_label)
    everything = max(1, int(total.sum()))
    order = np.argsort(-total, kind="stable")
    return tuple(
        KernelSummary(
            short_name=short_name(work.names[n]),
            name=one_line(work.names[n], 1000),
            category=traced.categories.get(n, OTHER),
            count=int(count[n]),
            count_per_step=int(count[n]) / steps if steps else _no_steps(traced),
            mean_ns=float(total[n] / count[n]),
            median_ns=float(medians[n]),
            total_ns=int(total[n]),
            share=float(total[n] / everything),
            grid=shapes[n][0] if n in shapes else None,
            block=shapes[n][1] if n in shapes else None,
            graph_share=float(in_graph[n] / count[n]),
        )
        for n in order.tolist()
        if count[n]
    )


def _no_steps(traced: TracedRound) -> Unavailable:
    why = traced.attribution.unavailable  # false in itself, so no `or` here
    return Unavailable("no decode step") if why is None else why


def _medians(label: Ints, duration: Ints, count: Ints) -> NDArray[np.float64]:
    """Median duration of each label, by one sort of label and duration in one integer."""
    longest = np.int64((1 << _DURATION_BITS) - 1)
    key = np.sort((label << _DURATION_BITS) | np.minimum(duration, longest)) & longest
    begin = np.cumsum(count) - count
    if not len(key):
        return np.zeros(len(count))
    last = len(key) - 1
    low = key[np.minimum(begin + np.maximum(count - 1, 0) // 2, last)]
    high = key[np.minimum(begin + count // 2, last)]
    medians: NDArray[np.float64] = (low + high) / 2
    return medians


def _common_shapes(rows: KernelRows, of_kernels: Ints, label: Ints) -> dict[int, tuple[Dim, Dim]]:
    """Grid and block of each label's most common launch."""
    columns = (rows.grid_x, rows.grid_y, rows.grid_z, rows.block_x, rows.block_y, rows.block_z)
    # Seven columns as one 64-bit hash: sorting that is ten times faster than sorting rows.
    mixed = label.astype(np.uint64)
    for column in columns:
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        mixed += column[of_kernels].astype(np.uint64)
    _, first, count = np.unique(mixed, return_index=True, return_counts=True)
    shapes: dict[int, tuple[Dim, Dim]] = {}
    for at in first[np.argsort(count, kind="stable")].tolist():  # the most common comes last
        x, y, z, bx, by, bz = (int(column[of_kernels[at]]) for column in columns)
        shapes[int(label[at])] = ((x, y, z), (bx, by, bz))
    return shapes


def _category_times(traced: TracedRound, steps: int) -> tuple[CategoryTime, ...]:
    totals = category_ns(traced)
    busy = max(1, sum(totals.values()))
    missing = _no_steps(traced)
    return tuple(
        CategoryTime(name, ns, ns / steps / 1e6 if steps else missing, ns / busy)
        for name, ns in sorted(totals.items(), key=lambda item: -item[1])
    )
