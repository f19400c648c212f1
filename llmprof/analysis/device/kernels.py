"""What the devices did in each decode step of a traced round: busy, idle, kernels, categories.

Busy and idle time are a device's. Where an engine runs on several, its own busy and idle time,
categories and gaps are those of its *primary* device: the one with the most busy time, the lowest
number among equals. Kernels and launches are counted over all devices. ``KernelReport.devices``
has the numbers of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.attribution import Attribution, Check, Method
from llmprof.analysis.device.gaps import between_pieces
from llmprof.analysis.device.kernel_sums import KernelSummary, summaries
from llmprof.analysis.device.naming.categories import COPY, OTHER, WHOLE_GRAPH, Rule, categorise
from llmprof.analysis.device.quality import Quality, check
from llmprof.analysis.device.step_kinds import (
    Launched,
    Outlier,
    StepGroup,
    StepKind,
    groups,
    kinds,
    launched,
    outliers,
    unusual_steps,
)
from llmprof.analysis.device.sweep import (
    WHOLE_GRAPH_NAME,
    Spans,
    Timeline,
    Work,
    collect,
    covered_ns,
    lay_out,
    sums,
)
from llmprof.plaintext import one_line
from llmprof.records import (
    Maybe,
    RoundRecord,
    Unavailable,
)
from llmprof.records.steps import (
    Composition,
    StepLabel,
    main_phase,
)
from llmprof.records.steps import counted as counted_steps
from llmprof.runfile.trace.rows import Ints, TraceRows

NOT_SPLIT = Unavailable(
    "CUDA graphs were traced as a whole: which kernels ran is not known"
    " (nsys profile --cuda-graph-trace=node shows them)"
)


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
    kind: StepKind
    """How it was launched, or what it was for."""
    graphs: int
    """Launches of whole CUDA graphs among ``launches``."""
    counted: bool
    """Is it one of those that means and medians are over?"""
    text: str
    """Of the range that the step is, on one printable line; empty without one."""
    composition: Composition | None
    """What it computed, where its range says so."""
    unusual: bool
    """Ran other kernels, or other numbers of them, than most steps: graph capture, autotuning,
    allocation and other first-time work. Such steps stay in every sum and mean."""


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
    """Of ``idle_ns``: other processes, or threads with steps of their own, worked on the device."""
    busy_ms_per_step: Maybe
    """Mean over the steps, like ``idle_ms_per_step``."""
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
    """Means over the steps, so busy + idle = step; the idle time of an engine is this one number
    wherever it is shown, unless it says otherwise."""
    busy_ms_per_step: Maybe
    idle_ms_per_step: Maybe
    kernels_per_step: Maybe
    """Median, like ``launches_per_step``."""
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
    groups: tuple[StepGroup, ...]
    """Steps by kind, the most frequent kind first; empty without steps."""
    outliers: tuple[Outlier, ...]
    """The slowest first."""
    unattributed_kernels: int
    """In the round, of steps that are not known: counts a step may be too low by these."""
    unattributed_ns: int


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
    whole: Timeline
    """``laid`` with the steps that do not count (prefill of a trace that llmprof did not drive)."""
    attribution: Attribution
    rows: TraceRows
    categories: dict[int, str]
    """Label → category."""
    quality: Quality
    other_processes: dict[int, Spans]
    """Device → when work that is not the engine's was on it: (start, end), ns. Of other processes,
    and of threads with steps of their own."""
    labels: tuple[StepLabel, ...]
    """``RoundRecord.labels``."""

    @cached_property
    def launched(self) -> Launched:
        """How each step's kernels were launched."""
        return launched(self.work, self.rows, self.whole.steps)

    @cached_property
    def kinds(self) -> tuple[StepKind, ...]:
        """Of every step; empty where the steps are not known."""
        known = self.attribution.unavailable is None
        return kinds(self.launched, self.labels) if known else ()

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Of every step: is it one of those that means and medians are over?"""
        if self.laid.counted is not None:
            return self.laid.counted
        return np.ones(self.whole.steps, bool)

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
    every = tuple(lay_out(work, bounds, device) for device in work.devices() or (0,))
    whole = max(every, key=lambda timeline: int(timeline.busy_ns().sum()))
    counted = None
    if attribution.unavailable is None and record.labels:
        counted = np.array(counted_steps(record.labels, record.steps), bool)
        # Marks may go on while nothing is recorded.
        seen = np.bincount(work.step[work.step > 0], minlength=record.steps + 1)[1:] > 0
        counted = counted & seen if (counted & seen).any() else counted
    devices = tuple(timeline.only(counted) for timeline in every)
    laid = devices[every.index(whole)]
    categories = categorise(dict(enumerate(work.names)), engine, rules)
    for label, name in enumerate(work.names):
        # The user may say otherwise about kernels, but a transfer is a transfer.
        if name.startswith("[mem"):
            categories[label] = COPY
        elif name == WHOLE_GRAPH_NAME:
            categories[label] = WHOLE_GRAPH
    quality = check(rows, record, lost)
    return TracedRound(
        work,
        laid,
        devices,
        whole,
        attribution,
        rows,
        categories,
        quality,
        other_processes or {},
        record.labels,
    )


def kernel_report(traced: TracedRound) -> KernelReport:
    """Everything about the kernels of one traced round."""
    attribution, laid = traced.attribution, traced.laid
    steps: tuple[StepGpu, ...] | Unavailable
    found: tuple[tuple[StepGroup, ...], tuple[Outlier, ...]] = (), ()
    if attribution.unavailable is not None:
        inside = _overlaps(traced.work, laid.bounds_ns)
        steps, per_step, scope = attribution.unavailable, 0, "the whole round"
    else:
        inside = traced.work.step > 0
        if laid.counted is not None:
            inside &= np.concatenate([[False], laid.counted])[np.maximum(traced.work.step, 0)]
        steps, per_step = _steps(traced), laid.count
        scope = f"{per_step} {main_phase(traced.labels)} step{'s' * (per_step > 1)}"
        if laid.counted is not None:
            scope += f" of {laid.steps}"
        found = _by_kind(traced, steps)
    doubt = traced.quality.doubt
    busy = int(laid.busy_ns().sum())
    counted = steps
    if doubt is not None and not isinstance(steps, Unavailable):
        steps, found = doubt, ((), ())
    return KernelReport(
        method=attribution.method,
        reason=attribution.reason,
        checks=attribution.checks,
        scope=scope,
        step_count=per_step,
        steps=steps,
        wall_ms_per_step=_over(counted, "wall_ns", np.mean, 1e6),
        busy_ms_per_step=_over(steps, "busy_ns", np.mean, 1e6),
        idle_ms_per_step=_over(steps, "idle_ns", np.mean, 1e6),
        kernels_per_step=NOT_SPLIT if traced.not_split else _over(counted, "kernels", np.median),
        launches_per_step=_over(counted, "launches", np.median),
        busy_ns=busy if doubt is None else doubt,
        idle_ns=int(laid.wall_ns().sum()) - busy if doubt is None else doubt,
        idle_at_most=traced.quality.at_most,
        kernels=summaries(
            traced.work,
            traced.rows.kernels,
            traced.categories,
            np.flatnonzero(inside),
            per_step,
            _no_steps(traced),
        ),
        categories=_category_times(traced, per_step),
        device=laid.device,
        devices=tuple(_device(traced, timeline, inside) for timeline in traced.devices),
        groups=found[0],
        outliers=found[1],
        unattributed_kernels=attribution.lost_kernels,
        unattributed_ns=attribution.lost_ns,
    )


def _by_kind(
    traced: TracedRound, steps: tuple[StepGpu, ...]
) -> tuple[tuple[StepGroup, ...], tuple[Outlier, ...]]:
    wall, busy = traced.whole.wall_ns(), traced.whole.busy_ns()
    of, counted, calls, labels = traced.kinds, traced.counted, traced.launched, traced.labels
    unusual = [step.unusual for step in steps]
    return (
        groups(of, counted, wall, busy, calls, labels),
        outliers(of, counted, wall, busy, calls, labels, unusual),
    )


def _device(traced: TracedRound, timeline: Timeline, inside: NDArray[np.bool_]) -> DeviceReport:
    """``inside``: of every row of the work, is it in the scope?"""
    work, why, doubt = traced.work, traced.unknown, traced.quality.doubt
    mine = inside & (work.device == timeline.device)
    busy, wall = timeline.busy_ns(), timeline.wall_ns()
    others = int(others_ns(traced, timeline).sum()) if doubt is None else doubt
    counted = slice(None) if timeline.counted is None else timeline.counted
    return DeviceReport(
        device=timeline.device,
        primary=timeline is traced.laid,
        busy_ns=int(busy.sum()) if doubt is None else doubt,
        idle_ns=int(wall.sum() - busy.sum()) if doubt is None else doubt,
        other_processes_ns=others,
        busy_ms_per_step=float(np.mean(busy[counted])) / 1e6 if why is None else why,
        idle_ms_per_step=float(np.mean((wall - busy)[counted])) / 1e6 if why is None else why,
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


def _over(
    steps: tuple[StepGpu, ...] | Unavailable, field: str, of: Callable[..., Any], unit: float = 1
) -> Maybe:
    if isinstance(steps, Unavailable):
        return steps
    return float(of([getattr(s, field) for s in steps if s.counted])) / unit


def _steps(traced: TracedRound) -> tuple[StepGpu, ...]:
    work, timeline, calls = traced.work, traced.whole, traced.launched
    count = timeline.steps
    copy_step = work.step[~work.is_kernel]
    copies = np.bincount(copy_step[copy_step > 0], minlength=count + 1)[1:]
    wall, busy = timeline.wall_ns(), timeline.busy_ns()
    counted, kind = traced.counted, traced.kinds
    labels = traced.labels or (StepLabel("decode"),) * count
    unusual = unusual_steps(work, count, [label.phase for label in labels])
    return tuple(
        StepGpu(
            step=n + 1,
            wall_ns=int(wall[n]),
            busy_ns=int(busy[n]),
            idle_ns=int(wall[n] - busy[n]),
            kernels=int(calls.kernels[n]),
            copies=int(copies[n]),
            launches=int(calls.launches[n]),
            kind=kind[n],
            graphs=int(calls.graphs[n]),
            counted=bool(counted[n]),
            text=one_line(labels[n].text, 200),
            composition=labels[n].composition,
            unusual=unusual[n],
        )
        for n in range(count)
    )


def _no_steps(traced: TracedRound) -> Unavailable:
    why = traced.attribution.unavailable  # false in itself, so no `or` here
    return Unavailable("no decode step") if why is None else why


def _category_times(traced: TracedRound, steps: int) -> tuple[CategoryTime, ...]:
    totals = category_ns(traced)
    busy = max(1, sum(totals.values()))
    missing = _no_steps(traced)
    return tuple(
        CategoryTime(name, ns, ns / steps / 1e6 if steps else missing, ns / busy)
        for name, ns in sorted(totals.items(), key=lambda item: -item[1])
    )
