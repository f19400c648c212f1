"""Collectives with no other work beside them: what their transfers cost, and what they move."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from llmprof.analysis.findings.subject import (
    LONGEST_COMMAND,
    Confidence,
    Finding,
    GroupSubject,
    same_run,
)
from llmprof.analysis.ranks.matched.operations import WAITS_FOR_NONE
from llmprof.analysis.ranks.results import CollectiveLine, RankLine, RanksReport
from llmprof.records import Unavailable

LEAST_STEPS: Final = 8
"""For a confidence that is high."""
LATENCY: Final = 0.1
"""Of what the links carry: far below it a collective costs its latency, whatever it moves."""
FULL: Final = 0.5
"""From here on the links themselves are what it waits for: 64 MiB reached 57 and 66 % of NVLink on
two H100s and four H200s."""
DOUBT: Final = 0.1
"""So much of the time in collectives that is a bound or not known makes a number doubtful."""
TUNING: Final = "NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=TUNING"
"""NCCL says which algorithm and protocol it takes for how many bytes (2.19 and later)."""


def exposed_communication(subject: GroupSubject) -> Iterator[Finding]:
    """Transfers that nothing hides. Waiting for the last rank is told apart: it is what lateness
    and imbalance are about, and no part of the number."""
    group = subject.report
    line = bounding(group)
    won = line.exposed_transfer_ms
    if not subject.worth(won) or not group.collectives:
        return
    won = min(won, subject.step_ms)
    about = "" if group.complete else "~"
    count = sum(c.per_step for c in group.collectives if c.kind not in WAITS_FOR_NONE)
    unsplit = line.exposed_unsplit_ms
    rest = f", {unsplit:.3f} ms not told apart" if unsplit >= 0.001 else ""
    confidence, why = _confidence(subject)
    most = group.collectives[0]
    yield Finding(
        cause="exposed communication",
        engine=group.title,
        says=f"{line.exposed_ms:.2f} ms a step ({line.exposed_ms / subject.step_ms:.0%}) of"
        f" communication with no other work beside it: {about}{line.exposed_transfer_ms:.3f} ms"
        f" transfer, {about}{line.exposed_wait_ms:.3f} ms waiting for the last rank{rest};"
        f" {count:.0f} collectives a step",
        ms_per_token=won,
        share=won / subject.step_ms,
        how="at most: if every transfer took no time, or ran beside other work; the waiting is not"
        " in it",
        evidence=(
            *_sorts(subject),
            *_ranks(group.ranks, line),
            _algorithm(most),
            *subject.beside,
        ),
        confidence=confidence,
        why=why,
        next=_next(subject),
        kernel=most.name,
        lane=subject.lane(line.rank),
    )


def bounding(group: RanksReport) -> RankLine:
    """The rank that bounds what can be won: all ranks take the same step, and none gains more than
    its own exposed transfer."""
    return min(group.ranks, key=lambda one: one.exposed_transfer_ms)


def _sorts(subject: GroupSubject) -> Iterator[str]:
    """What the collectives are that take most of it: how many, how large, how fast."""
    group = subject.report
    link = group.nvlink_gb_s
    spent = [c.per_step * c.transfer_us for c in group.collectives]
    for one, us in zip(group.collectives, spent, strict=True):
        if us < DOUBT * sum(spent):
            continue
        text = f"{one.name}: {one.per_step:.0f} a step"
        if isinstance(one.bytes, Unavailable):
            yield f"{text}, {one.transfer_us:.1f} µs each; bytes n/a: {one.bytes.reason}"
            continue
        text += f" of {one.bytes:,} B, {one.transfer_us:.1f} µs each"
        if isinstance(one.bus_gb_s, Unavailable):
            yield f"{text}; bus bandwidth n/a: {one.bus_gb_s.reason}"
            continue
        text += f"; bus {one.bus_text} GB/s"
        if isinstance(link, Unavailable):
            yield f"{text}; what the links carry: n/a: {link.reason}"
            continue
        share = one.bus_gb_s / link
        yield f"{text}, {share:.1%} of the {link:.0f} that NVLink carries{_bound(one, share)}"
    if group.complete:
        quick = sum(c.per_step * c.quickest_us for c in group.collectives) / 1e3
        yield f"all as quick as the quickest 5 % of their sort: {quick:.3f} ms a step"


def _bound(one: CollectiveLine, share: float) -> str:
    if share < LATENCY:
        least = one.transfer_us * share
        return f": latency, not bandwidth (at that rate {least:.2g} µs)"
    return ": the links are full" if share >= FULL else ""


def _ranks(ranks: tuple[RankLine, ...], least: RankLine) -> Iterator[str]:
    if len(ranks) < 2:
        return
    moved = [one.exposed_transfer_ms for one in ranks]
    waited = [one.exposed_wait_ms for one in ranks]
    yield (
        f"on {len(ranks)} ranks {min(moved):.3f} to {max(moved):.3f} ms transfer and"
        f" {min(waited):.3f} to {max(waited):.3f} ms waiting; least transfer: {least.name}"
    )


def _algorithm(one: CollectiveLine) -> str:
    found = one.algorithm
    return (
        f"algorithm n/a: {found.reason}"
        if isinstance(found, Unavailable)
        else (f"algorithm: {found}")
    )


def _confidence(subject: GroupSubject) -> tuple[Confidence, str]:
    group = subject.report
    traced = "" if subject.timed else "; as traced: there is no untraced step"
    if group.provenance != "measured":
        return "low", "one rank alone was recorded: how much of it is waiting is estimated"
    if len(group.ranks) < group.world:
        return "low", (
            f"{len(group.ranks)} of {group.world} ranks were recorded: waiting for the others is in"
            " the transfer"
        )
    spent = sum(c.per_step * c.transfer_us for c in group.collectives)
    fused = sum(c.per_step * c.transfer_us for c in group.collectives if c.fused)
    apart = max((clock.residual_ns for clock in group.clocks), default=0) / 1e3
    quickest = min(c.transfer_us for c in group.collectives)
    doubts = []
    if fused > DOUBT * spent:
        doubts.append("other arithmetic is in the kernels: transfer is a bound")
    if any(one.exposed_unsplit_ms > DOUBT * one.exposed_ms for one in group.ranks):
        doubts.append("some collectives are not on every rank")
    if apart > quickest / 4:
        doubts.append(f"the ranks' clocks agree within {apart:.1f} µs only")
    if any(member.whole_graphs for member in group.members):
        doubts.append("what CUDA graphs communicate is not known: they were traced as a whole")
    if group.steps < LEAST_STEPS:
        doubts.append(f"{group.steps} step{'s' * (group.steps != 1)} only")
    if doubts:
        return "medium", "; ".join(doubts) + traced
    return "high", (
        f"both ends of every collective are known on {len(group.ranks)} ranks over {group.steps}"
        f" steps{traced}"
    )


def _next(subject: GroupSubject) -> str:
    group = subject.report
    if not group.complete:
        return f"{subject.look}; the files of all ranks together tell waiting from transfer"
    nccl = any("nccl" in name.casefold() for m in group.members for name in m.names)
    if not nccl or not (subject.command or subject.program):
        return subject.look
    own = same_run(subject.command) if subject.command else shlex.join(subject.program)
    text = f"{TUNING} {own}"
    if len(text) <= LONGEST_COMMAND:
        return text
    return f"{subject.look}; {TUNING} before the run's command: its log names the algorithm"
