"""All findings of one or several runs, the most time to be won first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llmprof.analysis.bandwidth.roofline import bandwidth
from llmprof.analysis.device.naming.categories import COMMUNICATION, IDLE
from llmprof.analysis.findings.communication_rules import bounding
from llmprof.analysis.findings.idle_rules import idle_findings
from llmprof.analysis.findings.kernel_rules import kernel_findings
from llmprof.analysis.findings.rank_rules import (
    rank_findings,
    told_as_lateness,
    without_lateness,
)
from llmprof.analysis.findings.subject import Finding, GroupSubject, Subject
from llmprof.analysis.findings.timing_rules import timing_findings
from llmprof.analysis.timing.compare import compare_to_first
from llmprof.analysis.timing.conditions import conditions
from llmprof.analysis.timing.cpu import cpu_conditions
from llmprof.analysis.timing.steps import engine_steps
from llmprof.analysis.view.falls import timing_step_ns
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import EngineRecord, Maybe, RunData, Unavailable

MOST: Final = 10
PARTS: Final = 4
"""Of a step, in words."""


@dataclass(frozen=True)
class StepWords:
    """Where the step of one engine goes."""

    label: str
    step_ms: Maybe
    basis: str
    """``untraced`` or ``as traced``."""
    parts: tuple[tuple[str, float], ...]
    """(category or ``idle``, ms), the most time first; empty where kernels are not known."""
    why: str
    """Why there are no parts."""
    whole_ms: float | None = None
    """Where no step is known: the length of the trace, which the parts are of."""

    @property
    def length_ms(self) -> float | None:
        """What the parts add up to."""
        if self.whole_ms is not None:
            return self.whole_ms
        return None if isinstance(self.step_ms, Unavailable) else self.step_ms

    @property
    def words(self) -> str:
        """``8.39 ms a step: 71 % quantised GEMV/GEMM, 20 % idle, …``."""
        if self.whole_ms is not None:
            shown = ", ".join(f"{ms / self.whole_ms:.0%} {name}" for name, ms in self.parts[:PARTS])
            return f"no step is known; all {self.whole_ms:.2f} ms of it: {shown}"
        if isinstance(self.step_ms, Unavailable):
            return f"no step is known: {self.step_ms.reason}"
        head = f"{self.step_ms:.2f} ms a step"
        if not self.parts:
            return f"{head}; {self.why}"
        shown = ", ".join(f"{ms / self.step_ms:.0%} {name}" for name, ms in self.parts[:PARTS])
        return f"{head}{'' if self.basis == 'untraced' else ' as traced'}: {shown}"


@dataclass(frozen=True)
class Findings:
    """What matters about a run."""

    verdicts: tuple[str, ...]
    """Engines against the first one; of one engine its rate."""
    steps: tuple[StepWords, ...]
    """One an engine."""
    found: tuple[Finding, ...]
    """At most ``MOST``, the most ms to be won first; those without a number last."""
    dropped: int
    """Weaker ones that were left out."""
    missing: tuple[tuple[str, str], ...]
    """(engine, what could not be looked at, and why)."""


def find(trace: RunTrace) -> Findings:
    """Look at every engine of every run.

    Raises:
        RunFileError: a file is damaged.
    """
    verdicts: list[str] = []
    words: list[StepWords] = []
    found: list[Finding] = []
    missing: list[tuple[str, str]] = []
    subjects: dict[str, Subject] = {}
    for data, traces in trace.runs:
        verdicts += _verdicts(data)
        for engine, traced in zip(data.engines, traces, strict=True):
            subject = subject_of(data, engine, traced)
            subjects[subject.label] = subject
            words.append(step_words(subject))
            found += rules(subject)
            if isinstance(traced.kernels, Unavailable):
                missing.append((traced.label, f"no kernels: {traced.kernels.reason}"))
    for group in group_subjects(trace, subjects):
        of_group = list(rank_findings(group))
        for label, late_ms in told_as_lateness(group, of_group).items():
            found = without_lateness(found, subjects[label], late_ms)
        found += of_group
    ordered = ranked(found)
    return Findings(
        verdicts=tuple(verdicts),
        steps=tuple(words),
        found=ordered[:MOST],
        dropped=len(ordered[MOST:]),
        missing=tuple(missing),
    )


def group_subjects(trace: RunTrace, subjects: Mapping[str, Subject]) -> list[GroupSubject]:
    """Every group of ranks of every run.

    Args:
        subjects: of all engines of all runs, by label.
    """
    made = []
    for (data, traces), groups in zip(trace.runs, trace.groups, strict=True):
        primary = {
            one.label: (one.pid, one.round.laid.device)
            for one in traces
            if not isinstance(one.round, Unavailable)
        }
        driven, recorded = data.info.source == "driven", data.info.source == "recorded"
        command = tuple(data.info.command)
        for group in groups:
            own = subjects.get(group.members[0].engine)
            step = own.step_ms if own is not None and own.timed else None
            made.append(
                GroupSubject(
                    group,
                    str(data.shown_path),
                    group.step_ms if step is None else step,
                    step is not None,
                    command if driven else (),
                    command if recorded else (),
                    primary,
                )
            )
    return [replace(one, beside=tuple(_beside(one, made, subjects))) for one in made]


def _beside(
    subject: GroupSubject, groups: Sequence[GroupSubject], subjects: Mapping[str, Subject]
) -> Iterator[str]:
    """What communication costs the other engines: of other numbers of GPUs, or none at all."""
    for other in groups:
        if other is not subject:
            group = other.report
            exposed = bounding(group).exposed_ms
            yield (
                f"{group.title}, {group.world} GPUs: {exposed:.2f} ms of communication alone in a"
                f" step of {other.step_ms:.2f} ms ({exposed / other.step_ms:.0%})"
            )
    within = {m.engine for one in groups for m in one.report.members}
    for label, one in subjects.items():
        kernels = one.kernels
        if label in within or isinstance(kernels, Unavailable) or not one.step_ms:
            continue
        if len(kernels.devices) == 1 and COMMUNICATION not in {
            c.category for c in kernels.categories
        }:
            yield f"{label}, 1 GPU: no collective in a step of {one.step_ms:.2f} ms"


def rules(subject: Subject) -> list[Finding]:
    """What all rules say about one engine."""
    return [
        *idle_findings(subject),
        *kernel_findings(subject),
        *timing_findings(subject),
    ]


def ranked(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The most to be won first; a low confidence counts half; without a number last."""
    weight = {"high": 1.0, "medium": 1.0, "low": 0.5}

    def key(item: Finding) -> tuple[bool, float]:
        ms = item.ms_per_token
        unknown = isinstance(ms, Unavailable)
        return unknown, 0.0 if isinstance(ms, Unavailable) else -ms * weight[item.confidence]

    return tuple(sorted(found, key=key))


def subject_of(data: RunData, engine: EngineRecord, trace: EngineTrace) -> Subject:
    """Everything that is known of one engine."""
    steps = engine_steps(data, engine)
    seen = conditions(data, engine)
    clock = None
    if not isinstance(seen, Unavailable):
        clock = next((d.max_sm_clock_mhz for d in data.gpu_devices if d.index == seen.device), None)
    return Subject(
        label=trace.label,
        file=str(data.shown_path),
        engine=engine.name,
        command=tuple(data.info.command) if data.info.source == "driven" else (),
        program=tuple(data.info.command) if data.info.source == "recorded" else (),
        info=engine.info,
        steps=steps,
        timed_ns=timing_step_ns(data, engine.label, trace),
        conditions=seen,
        cpu=cpu_conditions(data, engine),
        max_sm_clock_mhz=clock,
        bandwidth=bandwidth(data, engine, steps),
        round=trace.round,
        kernels=trace.kernels,
        gaps=trace.gaps,
        causes=trace.causes,
        roles=trace.role_rows,
        dram=trace.dram,
    )


def step_words(subject: Subject) -> StepWords:
    """Categories and idle time of a step."""
    step = subject.step_ms
    basis = "as traced" if subject.traced_ms is not None and not subject.timed else "untraced"
    if step is None:
        if (whole := _whole(subject)) is not None:
            return whole
        reason = subject.steps.step_ns
        why = reason if isinstance(reason, Unavailable) else Unavailable("no step is known")
        return StepWords(subject.label, why, basis, (), why.reason)
    kernels, idle = subject.kernels, subject.idle_ms
    if isinstance(kernels, Unavailable):
        return StepWords(subject.label, step, basis, (), kernels.reason)
    if idle is None:
        why_not = kernels.busy_ms_per_step
        text = why_not.reason if isinstance(why_not, Unavailable) else ""
        return StepWords(subject.label, step, basis, (), text)
    parts = [
        (c.category, c.ms_per_step * subject.work_scale)
        for c in kernels.categories
        if not isinstance(c.ms_per_step, Unavailable)
    ]
    parts.append((IDLE, idle))
    return StepWords(
        subject.label, step, basis, tuple(sorted(parts, key=lambda part: -part[1])), ""
    )


def _whole(subject: Subject) -> StepWords | None:
    """Of a trace whose steps are not known: where all of its time goes."""
    kernels = subject.kernels
    if isinstance(kernels, Unavailable) or kernels.step_count:
        return None
    busy, idle = kernels.busy_ns, kernels.idle_ns
    if isinstance(busy, Unavailable) or isinstance(idle, Unavailable) or not busy:
        return None
    parts = [(c.category, c.total_ns / 1e6) for c in kernels.categories]
    ordered = sorted([*parts, (IDLE, idle / 1e6)], key=lambda part: -part[1])
    none = Unavailable("nobody marked a step, and none was found")
    return StepWords(
        subject.label, none, "as traced", tuple(ordered), "", whole_ms=(busy + idle) / 1e6
    )


def _verdicts(data: RunData) -> list[str]:
    if len(data.engines) > 1:
        return [pair.verdict for pair in compare_to_first(data)]
    made = []
    for engine in data.engines:
        rate = engine_steps(data, engine).tok_s.value
        if not isinstance(rate, Unavailable):
            made.append(f"{engine.label} decodes {rate:.1f} tok/s")
    return made
