"""The traced pass of a run file: kernels, gaps and waterfalls of every engine, and single steps.

What the TUI's step and kernel views, the JSON document, the table and ``llmprof compare`` read.
Text in it (kernel names) is as recorded where a field is called ``name`` and printable where it is
called ``short_name``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Literal

import numpy as np

from llmprof.analysis.attribution import attribute
from llmprof.analysis.categories import Rule, load_rules
from llmprof.analysis.gap_causes import GapCauses, gap_causes
from llmprof.analysis.gaps import GapReport, idle_gaps
from llmprof.analysis.host import open_host
from llmprof.analysis.kernel_names import short_name
from llmprof.analysis.kernels import KernelReport, TracedRound, kernel_report, prepare
from llmprof.analysis.report import Report
from llmprof.analysis.sampled import SampledSteps, sampled_steps
from llmprof.analysis.steps import engine_steps
from llmprof.analysis.waterfall import (
    StepParts,
    Waterfall,
    step_parts,
    timing_waterfall,
    waterfall,
)
from llmprof.records import Maybe, RoundRecord, RunData, Unavailable
from llmprof.runfile.nvtx import OpTotal
from llmprof.runfile.reader import RunFileReader

ItemKind = Literal["kernel", "copy", "gap"]


@dataclass(frozen=True)
class StepItem:
    """One stretch of a step: work on a stream, or the device waiting."""

    kind: ItemKind
    start_ns: int
    """Since the start of the step; negative where work reaches into the step."""
    end_ns: int
    short_name: str
    """Of a gap: ``after → before``."""
    category: str
    """``idle`` for a gap."""
    stream: int
    """-1 for a gap."""
    in_graph: bool
    row: int
    """Of a kernel: its row in ``EngineTrace.kernel_rows``; else -1."""


@dataclass(frozen=True)
class StepView:
    """One decode step of one engine on its own time axis, items ordered by start."""

    label: str
    step: int
    """From 1."""
    wall_ns: int
    busy_ns: int
    idle_ns: int
    items: tuple[StepItem, ...]


class EngineTrace:
    """The traced round of one engine; everything is computed once, when first asked for."""

    def __init__(
        self,
        label: str,
        engine: str,
        record: RoundRecord | None,
        reader: RunFileReader,
        clock_error_ns: int,
        rules: Sequence[Rule],
        operators: tuple[OpTotal, ...],
        no_kernels: str,
        sampled: SampledSteps | Unavailable,
        no_host: str = "host stacks were not sampled",
    ) -> None:
        self.label = label
        self.host = open_host(reader.host_rows(record) if record else None, record, no_host)
        """Sampled host stacks of the decode steps."""
        self.sampled = sampled
        """Measured bandwidth of single steps."""
        self.record = record
        self.operators = operators
        """Host operators by self time, where they were recorded (engines on a CPU)."""
        self._steps: dict[int, StepView | Unavailable] = {}
        self.round: TracedRound | Unavailable
        if record is None:
            self.round = Unavailable("no traced pass")
            return
        rows = reader.trace_rows(record)
        if not len(rows.kernels):
            self.round = Unavailable(no_kernels)
            return
        self.kernel_rows = rows.kernels
        self.copy_rows = rows.copies
        self._rows = rows
        attribution = attribute(rows, record, clock_error_ns)
        self.round = prepare(rows, record, attribution, engine, rules)

    @cached_property
    def kernels(self) -> KernelReport | Unavailable:
        return self.round if isinstance(self.round, Unavailable) else kernel_report(self.round)

    @cached_property
    def gaps(self) -> GapReport | Unavailable:
        if isinstance(self.round, Unavailable):
            return self.round
        return idle_gaps(self.round.timeline)

    @cached_property
    def causes(self) -> GapCauses | Unavailable:
        """Why the device waited; adds up to ``gaps.total_ns``."""
        if isinstance(self.round, Unavailable):
            return self.round
        if self.record is None:
            return Unavailable("no traced pass")
        return gap_causes(self.round, self._rows, self.record, self.host)

    @cached_property
    def parts(self) -> StepParts | Unavailable:
        if isinstance(self.round, Unavailable):
            return self.round
        return step_parts(self.round, self.label)

    def step_view(self, step: int) -> StepView | Unavailable:
        """Everything that the device did in decode step ``step`` (from 1), gaps as gaps."""
        if step not in self._steps:
            self._steps[step] = self._step_view(step)
        return self._steps[step]

    def _step_view(self, step: int) -> StepView | Unavailable:
        if isinstance(self.round, Unavailable):
            return self.round
        timeline = self.round.timeline
        if isinstance(timeline, Unavailable):
            return timeline
        if not 1 <= step <= timeline.steps:
            return Unavailable(f"the traced pass has steps 1 to {timeline.steps}")
        origin, end = (int(t) for t in timeline.bounds_ns[step - 1 : step + 1])
        work = self.round.work
        mine = np.flatnonzero(work.step == step)
        mine = mine[np.argsort(work.start_ns[mine], kind="stable")]
        streams = np.concatenate([self.kernel_rows.stream, self.copy_rows.stream])
        nodes = np.concatenate([self.kernel_rows.graph_node, self.copy_rows.graph_node])
        items = [
            StepItem(
                kind="kernel" if work.is_kernel[i] else "copy",
                start_ns=int(work.start_ns[i]) - origin,
                end_ns=int(work.end_ns[i]) - origin,
                short_name=short_name(work.names[int(work.label[i])]),
                category=self.round.categories[int(work.label[i])],
                stream=int(streams[i]),
                in_graph=bool(nodes[i]),
                row=int(work.kernel_row[i]) if work.is_kernel[i] else -1,
            )
            for i in mine.tolist()
        ]
        gaps = _gaps(items, end - origin)
        idle = sum(gap.end_ns - gap.start_ns for gap in gaps)
        both = sorted([*items, *gaps], key=lambda item: (item.start_ns, item.end_ns))
        return StepView(self.label, step, end - origin, end - origin - idle, idle, tuple(both))


def _gaps(items: Sequence[StepItem], length_ns: int) -> list[StepItem]:
    """What no item covers between 0 and the step's end."""
    gaps, covered, last = [], 0, "step start"
    for item in items:
        if item.start_ns > covered:
            gaps.append(_gap(covered, item.start_ns, last, item.short_name))
        if item.end_ns >= covered:
            covered, last = item.end_ns, item.short_name
    if covered < length_ns:
        gaps.append(_gap(covered, length_ns, last, "step end"))
    return gaps


def _gap(start_ns: int, end_ns: int, after: str, before: str) -> StepItem:
    return StepItem("gap", start_ns, end_ns, f"{after} → {before}", "idle", -1, False, -1)


@dataclass(frozen=True)
class Fall:
    """From engine ``a`` to engine ``b``: as traced, and scaled to the timing pass."""

    a: str
    b: str
    traced: Waterfall | Unavailable
    timing: Waterfall | Unavailable


class RunTrace:
    """The traced passes of all engines of one run file.

    Raises:
        RunFileError: the file is damaged.
    """

    def __init__(self, path: Path, data: RunData) -> None:
        self._data = data
        rules = load_rules()
        with RunFileReader(path) as reader:
            self.engines = tuple(
                EngineTrace(
                    label=engine.label,
                    engine=engine.name,
                    record=next(iter(data.rounds_of(engine.engine_id, "traced")), None),
                    reader=reader,
                    clock_error_ns=max(
                        (c.error_ns for c in data.clocks if c.engine_id == engine.engine_id),
                        default=0,
                    ),
                    rules=rules,
                    operators=tuple(reader.nvtx_op_totals(engine.engine_id)),
                    no_kernels=_why_no_kernels(data, engine.label),
                    no_host=_why_no_host(data, engine.label),
                    sampled=sampled_steps(reader, data, engine),
                )
                for engine in data.engines
            )

    def engine(self, label: str) -> EngineTrace:
        """The trace of the engine with that label (``KeyError`` otherwise)."""
        return {trace.label: trace for trace in self.engines}[label]

    @cached_property
    def falls(self) -> tuple[Fall, ...]:
        """From the first engine to each other one."""
        if not self.engines:
            return ()
        base, *others = self.engines
        return tuple(
            fall_between(base, self._step_ns(base.label), other, self._step_ns(other.label))
            for other in others
        )

    def _step_ns(self, label: str) -> Maybe:
        return timing_step_ns(self._data, label, self.engine(label))


def timing_step_ns(data: RunData, label: str, trace: EngineTrace) -> Maybe:
    """Mean step of the timing pass at the positions that were traced, median over rounds, ns.

    Means add up with the traced parts, and steps grow with the context: step 1 to N of both.
    """
    depth = 0 if trace.record is None else trace.record.steps
    for engine in data.engines:
        if engine.label == label and depth:
            rounds = engine_steps(data, engine).rounds
            means = [mean(r.step_ns[:depth]) for r in rounds if len(r.step_ns) >= depth]
            return median(means) if means else Unavailable("no timing round is that long")
    return Unavailable(f"no traced steps of {label}")


def fall_between(a: EngineTrace, a_step_ns: Maybe, b: EngineTrace, b_step_ns: Maybe) -> Fall:
    """The way from one engine's step to another's, of one run or of two."""
    return Fall(
        a=a.label,
        b=b.label,
        traced=waterfall(a.parts, b.parts),
        timing=timing_waterfall(a.parts, b.parts, a_step_ns, b_step_ns),
    )


def _why_no_kernels(data: RunData, label: str) -> str:
    for row in data.missing:
        if row.scope == label and row.name == "kernels":
            return row.reason
    if data.info.trace_level == "steps":
        return "kernels were not traced (--trace steps)"
    return "the trace holds no kernel"


def _why_no_host(data: RunData, label: str) -> str:
    for row in data.missing:
        if row.scope == label and row.name == "host":
            return row.reason
    if data.info.trace_level == "steps":
        return "host stacks were not sampled (--trace steps)"
    return "host stacks were not sampled"


def load_trace(report: Report, data: RunData) -> RunTrace | Unavailable:
    """The trace behind a report; ``Unavailable`` for a run that is not in a file."""
    if not report.file:
        return Unavailable("the run was not saved")
    return RunTrace(Path(report.file), data)
