"""Single steps of the timing pass: the first ones, slow ones, growth with the context, clocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmprof.analysis.findings.subject import Confidence, Finding, Subject
from llmprof.analysis.timing.steps import RoundSteps
from llmprof.records import Unavailable

FIRST = 4
"""Steps of a round that may be its warm-up."""
LEAST_ROUNDS = 4
SLOW = 1.5
"""Times the median of its position: an outlier."""
LEAST_STEPS = 32
CLOCK = 0.97
"""Of the highest clock: below it while a reason to throttle was active."""


def timing_findings(subject: Subject) -> Iterator[Finding]:
    """All that the timing pass says."""
    yield from throttled(subject)
    rounds = [r for r in subject.steps.rounds if r.step_ns]
    if not rounds:
        return
    depth = (
        min(len(r.step_ns) for r in rounds if r.complete) if any(r.complete for r in rounds) else 0
    )
    if depth < 2:
        return
    whole = [r for r in rounds if len(r.step_ns) >= depth]
    table = np.array([r.step_ns[:depth] for r in whole], float) / 1e6
    yield from warm_up(subject, table)
    yield from outliers(subject, table, whole)
    yield from context(subject, table)


def throttled(subject: Subject) -> Iterator[Finding]:
    """The GPU ran below the clocks that it was asked for."""
    seen = subject.conditions
    if isinstance(seen, Unavailable) or not seen.throttle:
        return
    reasons = ", ".join(f"{name} in {share:.0%}" for name, share in seen.throttle)
    clock, top = seen.sm_clock_mhz, subject.max_sm_clock_mhz
    below = clock is not None and top and clock.median < CLOCK * top
    evidence = [f"{reasons} of {seen.samples} samples while it decoded"]
    if clock is not None:
        most = f" of {top:.0f}" if top else ""
        evidence.append(f"SM clock {clock.min:.0f} to {clock.max:.0f} MHz, median"
                        f" {clock.median:.0f}{most}")  # fmt: skip
    yield Finding(
        cause="throttled",
        engine=subject.label,
        says=f"the GPU throttled while decoding: {reasons} of the samples",
        ms_per_token=Unavailable("steps at full clocks were not measured"),
        share=Unavailable("steps at full clocks were not measured"),
        how="",
        evidence=tuple(evidence),
        confidence="high" if below else "medium",
        why="NVML's reasons" + (" and clocks below the highest" if below else ""),
        next="nvidia-smi -q -d PERFORMANCE,CLOCK,POWER",
    )


def warm_up(subject: Subject, table: np.ndarray) -> Iterator[Finding]:
    """The first steps of every round are longer than the later ones.

    Args:
        table: ms of every step, shape (rounds, steps).
    """
    rounds, depth = table.shape
    if rounds < LEAST_ROUNDS or depth < 4 * FIRST:
        return
    middle = np.median(table, axis=0)
    # Steps grow with the context: the line through the later ones says what the first should take.
    later = np.arange(FIRST, depth)
    slope, level = np.polyfit(later, middle[FIRST:], 1)
    expected = level + slope * np.arange(FIRST)
    excess = middle[:FIRST] - expected
    often = (table[:, :FIRST] > 1.1 * expected).mean(axis=0)
    count = 0
    while count < FIRST and excess[count] > 0.1 * expected[count] and often[count] >= 0.8:
        count += 1
    won = float(excess[:count].sum()) / depth
    if not count or won < 0.005 * float(middle.mean()):
        return
    yield Finding(
        cause="warm-up",
        engine=subject.label,
        says=f"the first {count} step{'s' * (count > 1)} of a round take{'s' * (count == 1)}"
        f" {middle[:count].max():.2f} ms, later ones {middle[FIRST:].mean():.2f} ms",
        ms_per_token=won,
        share=subject.share(won),
        how=f"their time beyond that of later steps, over {depth} steps of a round",
        evidence=(f"so in {often[:count].min():.0%} of {rounds} rounds",),
        confidence="high" if often[:count].min() == 1 else "medium",
        why=f"{rounds} rounds of the timing pass",
        next=f"llmprof open {subject.name}",
        step=1,
    )


def outliers(subject: Subject, table: np.ndarray, rounds: list[RoundSteps]) -> Iterator[Finding]:
    """Single steps that took much longer than others at their position."""
    if table.size < LEAST_STEPS or len(table) < LEAST_ROUNDS:
        return
    middle = np.median(table, axis=0)
    slow = table > SLOW * middle
    won = float(np.where(slow, table - middle, 0.0).sum()) / table.size
    if not slow.any() or not subject.worth(won):
        return
    at, step = (int(n) for n in np.unravel_index(np.argmax(table - middle), table.shape))
    cause, confidence = _disturbed(subject)
    count = int(slow.sum())
    yield Finding(
        cause="outliers",
        engine=subject.label,
        says=f"{count} of {table.size} timed steps took over {SLOW}× the median of their position,"
        f" {table[at, step]:.2f} ms at the longest{cause}",
        ms_per_token=won,
        share=subject.share(won),
        how="their time beyond that median, over all steps",
        evidence=(
            f"longest: round {rounds[at].index + 1}, step {step + 1}:"
            f" {table[at, step]:.2f} ms, median there {middle[step]:.2f} ms",
        ),
        confidence=confidence,
        why="CPU time by others was counted" if cause else "what delayed them was not seen",
        next="llmprof doctor",
    )


def _disturbed(subject: Subject) -> tuple[str, Confidence]:
    cpu = subject.cpu
    if isinstance(cpu, Unavailable):
        return "", "medium"
    if cpu.throttled_periods:
        return (
            f": the CPU quota stopped the host in {cpu.throttled_periods} of"
            f" {cpu.quota_periods} periods"
        ), "high"
    if cpu.steal_share > 0.01:
        return f": the hypervisor took {cpu.steal_share:.0%} of the CPUs' time", "high"
    if cpu.other_cpus > 0.9 * max(0, cpu.cpus - cpu.wanted_cpus):
        return f": other processes took {cpu.other_cpus:.1f} of {cpu.cpus} CPUs", "high"
    return "", "medium"


def context(subject: Subject, table: np.ndarray) -> Iterator[Finding]:
    """Steps get longer as the context grows: attention and the KV cache."""
    rounds, depth = table.shape
    if depth < LEAST_STEPS or rounds < LEAST_ROUNDS:
        return
    x = np.arange(FIRST, depth) - FIRST
    slopes = np.array([_slope(x, row[FIRST:]) for row in table])
    slope = float(np.median(slopes))
    grown = slope * (depth - FIRST)
    # Every round has its own slope: the sign test of 4 to 16 rounds asks for nearly all of them.
    rising = float((slopes > 0).mean())
    won = grown / 2
    if rising < 0.9 or not subject.worth(won):
        return
    first, last = (
        float(np.median(table[:, part])) for part in (slice(FIRST, FIRST + 8), slice(-8, None))
    )
    yield Finding(
        cause="context",
        engine=subject.label,
        says=f"steps grow with the context: {slope * 1000:.2f} ms for 1000 tokens,"
        f" {first:.2f} to {last:.2f} ms within a round",
        ms_per_token=won,
        share=subject.share(won),
        how="at most: if a step took what it takes at the start of the round",
        evidence=(
            f"rising in {rising:.0%} of {rounds} rounds of {depth} steps",
            *_attention(subject),
        ),
        confidence="high" if rising == 1 and rounds >= 8 else "medium",
        why=f"slope of {rounds} rounds, median",
        next=f"llmprof open {subject.name}",
        kernel=_attention_kernel(subject),
    )


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Theil–Sen over halves: the median slope between step i and the one half a round later."""
    half = len(y) // 2
    return float(np.median((y[half : 2 * half] - y[:half]) / half))


def _attention(subject: Subject) -> tuple[str, ...]:
    if isinstance(subject.roles, Unavailable):
        return ()
    row = next((r for r in subject.roles if r.role == "attention"), None)
    return () if row is None else (f"attention {row.ms_per_step:.3f} ms of a traced step",)


def _attention_kernel(subject: Subject) -> str | None:
    if isinstance(subject.roles, Unavailable):
        return None
    return next((r.names[0] for r in subject.roles if r.role == "attention"), None)
