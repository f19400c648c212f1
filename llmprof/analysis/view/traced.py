"""The traced pass of a run file: kernels, gaps and waterfalls of every engine, and single steps.

What the TUI's step and kernel views, the JSON document, the table and ``llmprof compare`` read.
Text in it (kernel names) is as recorded where a field is called ``name`` and printable where it is
called ``short_name``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from llmprof.analysis.bandwidth.kept import measured_bandwidth
from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.bandwidth.sampled import SampledSteps, sampled_steps
from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.gaps import GapReport, idle_gaps
from llmprof.analysis.device.kernels import (
    KernelReport,
    TracedRound,
    kernel_report,
    prepare,
)
from llmprof.analysis.device.naming.categories import OTHER, Rule, categorise, load_rules
from llmprof.analysis.device.roles import RoleReport, roles_of
from llmprof.analysis.device.sweep import Spans, merged_spans
from llmprof.analysis.device.waterfall import StepParts, step_parts
from llmprof.analysis.host.causes import GapCauses, GapJudge, judge
from llmprof.analysis.host.stacks import open_host
from llmprof.analysis.ranks.matched.joins import Joins
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.twins import SkewReport
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.timeline.axis import RunLanes
from llmprof.analysis.timeline.build import build_lane
from llmprof.analysis.view.falls import Fall, fall_between, timing_step_ns
from llmprof.analysis.view.ranks import groups, lend_waits
from llmprof.analysis.view.report import Report
from llmprof.analysis.view.roles import RoleRow, role_rows
from llmprof.analysis.view.traced_round import (
    cut_words,
    longest,
    of_threads,
    sharing,
    shortened,
    why_no_host,
    why_no_kernels,
)
from llmprof.records import (
    LOST_RECORDS,
    EngineInfo,
    EngineRecord,
    Maybe,
    RoundRecord,
    RunData,
    Unavailable,
    Warned,
)
from llmprof.records.steps import DRIVEN
from llmprof.runfile.nvtx import OpTotal
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace.chunks import Advance, silent
from llmprof.runfile.trace.overview import Cells, walk
from llmprof.runfile.trace.reader import ProcessTotals
from llmprof.runfile.trace.rows import ApiRows

MAX_KERNELS = 1_000_000
"""Of one run file that are analysed one by one; a longer trace is cut at a step."""
LEAST_KERNELS = 100_000
"""Of one engine, however many there are."""
PENDING = Unavailable("the kernels are being read")

Tell = Callable[[str, float | None], None]
"""Told what is read and the share of it that is done (``None``: unknown); may raise to stop."""


def quiet(_what: str, _share: float | None) -> None:
    """Nobody looks on."""


class EngineTrace:
    """The traced round of one engine; everything is computed once, when first asked for.

    Args:
        reader: ``None``: nothing is read, the steps alone are known.
        limit: kernels that are analysed at most, from the round's first on.
        no_trace: why, where ``record`` is ``None``.
        lost: what the recording says about lost records.
        shared: other processes may use the same device at the same time.
    """

    def __init__(
        self,
        label: str,
        engine: str,
        record: RoundRecord | None,
        reader: RunFileReader | None,
        clock_error_ns: int,
        rules: Sequence[Rule],
        operators: tuple[OpTotal, ...],
        no_kernels: str,
        no_trace: Unavailable,
        sampled: SampledSteps | Unavailable,
        dram: KernelBandwidth | Unavailable,
        no_host: str = "host stacks were not sampled",
        limit: int = MAX_KERNELS,
        advance: Advance = silent,
        lost: str = "",
        shared: bool = False,
    ) -> None:
        self.label = label
        self.warnings: tuple[str, ...] = ()
        """What makes the numbers of its trace doubtful."""
        self.cut = ""
        """What of the round is analysed, where that is not all."""
        self.cells: Cells | None = None
        """Kernel time of what is not analysed."""
        self.waits: Spans | None = None
        """When its primary device waited for other ranks in a collective, where that is known."""
        self.joins: Joins | None = None
        """The collectives that it shares with other ranks."""
        self.further_ranks: tuple[Member, ...] = ()
        """Ranks behind 0 of an engine that llmprof drove: their processes are the engine's too."""
        self.host = open_host(
            reader.host_rows(record) if record and reader else None, record, no_host
        )
        """Sampled host stacks of the decode steps."""
        self.totals: ProcessTotals | None = None
        """Of the whole file, where llmprof did not drive the engine."""
        self.info: EngineInfo | None = None
        """What the engine said about itself."""
        self.steps_found = DRIVEN
        """How the steps are known."""
        self.sampled = sampled
        """Measured bandwidth of single steps."""
        self.dram = dram
        """Measured bandwidth of single kernels."""
        self.record = record
        self.operators = operators
        """Host operators by self time, where they were recorded (engines on a CPU)."""
        self.pid = 0 if record is None else record.pid
        self.api_rows = ApiRows()
        self.round: TracedRound | Unavailable
        if record is None:
            self.round = no_trace
            return
        if reader is None:
            self.round = PENDING
            return
        rows, theirs, self.warnings = of_threads(reader.trace_rows(record, limit, advance), record)
        if not (len(rows.kernels) or len(rows.copies)):
            self.round = Unavailable(no_kernels)
            return
        if rows.complete_ns is not None:
            whole, record = record, shortened(record, rows.complete_ns)
            self.record = record
            rows = rows.until(record.end_ns)
            self.cut = cut_words(whole, record, limit)
            self.cells = Cells(
                record.pid,
                record.end_ns,
                whole.end_ns,
                # Asked for every cell: the rules are regular expressions.
                cache(lambda name: categorise({0: name}, engine, rules).get(0, OTHER)),
            )
            if whole.steps and not record.steps:
                self.round = Unavailable(self.cut)
                return
        self.kernel_rows = rows.kernels
        self.copy_rows = rows.copies
        self.api_rows = rows.api
        self._rows = rows
        attribution = attribute(rows, record, clock_error_ns)
        shared_with = reader.other_processes(record) if shared else {}
        others = merged_spans([shared_with, theirs])
        self.round = prepare(rows, record, attribution, engine, rules, lost, others)
        if self.cells is not None:
            self.cells.device = self.round.laid.device
        self.warnings += (*self.round.quality.warnings, *sharing(self.round))

    @cached_property
    def kernels(self) -> KernelReport | Unavailable:
        return self.round if isinstance(self.round, Unavailable) else kernel_report(self.round)

    @cached_property
    def roles(self) -> RoleReport | Unavailable:
        """What each kernel is for."""
        if isinstance(self.round, Unavailable):
            return self.round
        return roles_of(self.round, None if self.info is None else self.info.projections)

    @cached_property
    def role_rows(self) -> tuple[RoleRow, ...] | Unavailable:
        """What a step spends on each purpose."""
        return role_rows(self.roles, self.info, self.dram)

    @cached_property
    def gaps(self) -> GapReport | Unavailable:
        if isinstance(self.round, Unavailable):
            return self.round
        return idle_gaps(self.round.timeline)

    @cached_property
    def judge(self) -> GapJudge | Unavailable:
        """Tells the cause of every single gap."""
        if isinstance(self.round, Unavailable):
            return self.round
        assert self.record is not None
        return judge(self.round, self._rows, self.record, self.host)

    @property
    def causes(self) -> GapCauses | Unavailable:
        """Why the device waited; adds up to ``gaps.total_ns``."""
        found = self.judge
        return found if isinstance(found, Unavailable) else found.report

    @cached_property
    def parts(self) -> StepParts | Unavailable:
        if isinstance(self.round, Unavailable):
            return self.round
        return step_parts(self.round, self.label, self.waits)


class RunTrace:
    """The traced passes of all engines of one run file.

    Raises:
        RunFileError: the file is damaged.
    """

    groups: tuple[tuple[RanksReport, ...], ...]
    """Of each run: the groups of processes and GPUs that compute one step together."""
    skews: tuple[SkewReport, ...]
    """Processes that run the same kernels and share no collective in the trace."""
    no_ranks: dict[str, str]
    """Engine label → why its group is not there."""

    def __init__(self, path: Path, data: RunData, tell: Tell = quiet) -> None:
        rules = load_rules()
        traced = {r.engine_id for r in data.rounds if r.pass_name == "traced"}
        limit = max(LEAST_KERNELS, MAX_KERNELS // max(1, len(traced)))
        with RunFileReader(path) as reader:
            total, done = max(1, reader.trace_size() * len(traced)), 0
            # Of the engines that llmprof drives, one at a time is traced.
            shared = data.info.source != "driven"

            def advance(rows: int) -> None:
                nonlocal done
                done += rows
                tell("reading kernels", min(1.0, done / total))

            def measured(
                engine: EngineRecord, reader: RunFileReader
            ) -> KernelBandwidth | Unavailable:
                if data.rounds_of(engine.engine_id, "sampled"):
                    tell(f"fitting DRAM samples to kernels of {engine.label}", None)
                return measured_bandwidth(reader, data, engine, rules)

            self.engines = tuple(
                EngineTrace(
                    label=engine.label,
                    engine=engine.name,
                    record=longest(data, engine),
                    reader=reader,
                    clock_error_ns=max(
                        (c.error_ns for c in data.clocks if c.engine_id == engine.engine_id),
                        default=0,
                    ),
                    rules=rules,
                    operators=tuple(reader.nvtx_op_totals(engine.engine_id)),
                    no_kernels=why_no_kernels(data, engine.label),
                    no_trace=data.no_traced_pass(engine.label),
                    no_host=why_no_host(data, engine.label),
                    sampled=sampled_steps(reader, data, engine),
                    dram=measured(engine, reader),
                    limit=limit,
                    advance=advance,
                    lost=data.why_missing("run", LOST_RECORDS)
                    or data.why_missing(engine.label, LOST_RECORDS)
                    or "",
                    shared=shared,
                )
                for engine in data.engines
            )
            for engine, trace in zip(data.engines, self.engines, strict=True):
                trace.info = engine.info
                found = data.steps_found.get(engine.engine_id)
                if found is not None:
                    trace.steps_found = found
                    trace.totals = reader.process_totals(trace.pid)
            grouped = groups(reader, data, self.engines, rules)
            self.groups, self.no_ranks = (grouped.ranks,), grouped.missing
            self.skews = grouped.skews
            for group in self.ranks:
                lend_waits(group, self.engines)
        self._parts: tuple[tuple[Path, RunData, tuple[EngineTrace, ...]], ...]
        self._parts = ((path, data, self.engines),)

    @classmethod
    def outline(cls, path: Path, data: RunData) -> RunTrace:
        """The steps alone: nothing is read for it."""
        made = cls.__new__(cls)
        made.engines = tuple(
            EngineTrace(
                label=engine.label,
                engine=engine.name,
                record=longest(data, engine),
                reader=None,
                clock_error_ns=0,
                rules=(),
                operators=(),
                no_kernels="",
                no_trace=data.no_traced_pass(engine.label),
                sampled=PENDING,
                dram=PENDING,
                no_host=PENDING.reason,
            )
            for engine in data.engines
        )
        made._parts = ((path, data, made.engines),)
        made.groups, made.skews, made.no_ranks = ((),), (), {}
        return made

    @property
    def ranks(self) -> tuple[RanksReport, ...]:
        """The groups of all runs."""
        return tuple(group for groups in self.groups for group in groups)

    @property
    def runs(self) -> tuple[tuple[RunData, tuple[EngineTrace, ...]], ...]:
        """Each run that is shown, with its engines' traces."""
        return tuple((data, traces) for _, data, traces in self._parts)

    @property
    def cuts(self) -> tuple[Warned, ...]:
        """What was not analysed, by engine."""
        return tuple(Warned(engine.label, engine.cut) for engine in self.engines if engine.cut)

    @property
    def doubts(self) -> tuple[Warned, ...]:
        """What makes numbers doubtful, by engine."""
        return tuple(Warned(e.label, text) for e in self.engines for text in e.warnings)

    def refine(self, tell: Tell = quiet) -> Iterator[None]:
        """Add up the kernels that are not analysed one by one, for the timeline; yields whenever
        there is more to be seen.

        Raises:
            RunFileError: the file is damaged.
        """
        for path, _, traces in self._parts:
            wanted = [trace.cells for trace in traces if trace.cells is not None]
            if wanted:
                yield from walk(path, wanted, lambda share: tell("adding up kernels", share))

    @classmethod
    def joined(cls, traces: Sequence[RunTrace], labels: Sequence[Sequence[str]]) -> RunTrace:
        """Several runs side by side.

        Args:
            labels: of every engine of every run, unique over all; the traces are relabelled.
        """
        made = cls.__new__(cls)
        made._parts = tuple(part for trace in traces for part in trace._parts)
        made.engines = tuple(engine for trace in traces for engine in trace.engines)
        flat = [label for run in labels for label in run]
        names = [
            dict(zip((engine.label for engine in trace.engines), run, strict=True))
            for trace, run in zip(traces, labels, strict=True)
        ]
        made.groups = tuple(
            tuple(group.renamed(named) for group in groups)
            for trace, named in zip(traces, names, strict=True)
            for groups in trace.groups
        )
        made.skews = tuple(
            replace(group, title=named.get(group.title, group.title))
            for trace, named in zip(traces, names, strict=True)
            for group in trace.skews
        )
        made.no_ranks = {
            named.get(label, label): why
            for trace, named in zip(traces, names, strict=True)
            for label, why in trace.no_ranks.items()
        }
        for engine, label in zip(made.engines, flat, strict=True):
            engine.label = label
        return made

    def engine(self, label: str) -> EngineTrace:
        """The trace of the engine with that label (``KeyError`` otherwise)."""
        return {trace.label: trace for trace in self.engines}[label]

    @cached_property
    def lanes(self) -> RunLanes:
        """For the timeline.

        Raises:
            RunFileError: the file is damaged.
        """
        lanes = []
        for path, data, traces in self._parts:
            with RunFileReader(path) as reader:
                for engine, trace in zip(data.engines, traces, strict=True):
                    lanes.append(build_lane(data, engine, trace, reader))
        return RunLanes(lanes)

    @cached_property
    def falls(self) -> tuple[Fall, ...]:
        """From the first engine to each other one."""
        if not self.engines:
            return ()
        base, *others = self.engines
        return tuple(self.fall(base.label, other.label) for other in others)

    def fall(self, a: str, b: str) -> Fall:
        """From one engine to another (labels)."""
        one, two = self.engine(a), self.engine(b)
        return fall_between(one, self._step_ns(one), two, self._step_ns(two))

    def _step_ns(self, wanted: EngineTrace) -> Maybe:
        for _, data, traces in self._parts:
            for engine, trace in zip(data.engines, traces, strict=True):
                if trace is wanted:
                    return timing_step_ns(data, engine.label, trace)
        return Unavailable(f"no traced steps of {wanted.label}")


def all_warnings(report: Report, trace: RunTrace | Unavailable) -> tuple[Warned, ...]:
    """Of the run, and what of its trace was not analysed or is doubtful."""
    if not isinstance(trace, RunTrace):
        return report.warnings
    return (*report.warnings, *trace.cuts, *trace.doubts)


def load_trace(report: Report, data: RunData) -> RunTrace | Unavailable:
    """The trace behind a report; ``Unavailable`` for a run that is not in a file."""
    if not report.file:
        return Unavailable("the run was not saved")
    return RunTrace(Path(report.file), data)
