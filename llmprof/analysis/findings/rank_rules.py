"""Ranks that compute one step together: one that the others wait for, or all for one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmprof.analysis.findings.communication_rules import exposed_communication
from llmprof.analysis.findings.subject import Confidence, Finding, GroupSubject
from llmprof.analysis.ranks.results import RankLine, RanksReport

CERTAIN: Final = 0.001
"""Of the sign test: a confidence that is high."""


def rank_findings(subject: GroupSubject) -> Iterator[Finding]:
    """All that one group says."""
    if subject.report.verdict == "late":
        yield from _late(subject)
    elif subject.report.verdict == "uneven":
        yield from _uneven(subject)
    yield from exposed_communication(subject)


def _late(subject: GroupSubject) -> Iterator[Finding]:
    group = subject.report
    found, why = group.lateness, group.reason
    if found is None:
        return
    line = group.ranks[found.row]
    won = min(found.excess_ns / 1e6, subject.step_ms)
    if not subject.worth(won):
        return
    confidence: Confidence = "high" if found.p <= CERTAIN else "medium"
    if group.provenance != "measured":
        confidence = "low"
    evidence = [] if why is None else [why.words]
    evidence += [
        f"in {found.over} of {found.steps} steps it was last by more than"
        f" {found.margin_ns / 1e6:.3f} ms",
        f"others waited for it alone {line.late_ms:.3f} ms a step; {_waits(group, line)}",
    ]
    launches = why is not None and why.why == "idle"
    yield Finding(
        cause="late rank",
        engine=group.title,
        says=f"the other ranks wait for {line.name}, {won:.3f} ms in the median step",
        ms_per_token=won,
        share=won / subject.step_ms,
        how="if it were as late as the next one",
        evidence=tuple(evidence),
        confidence=confidence,
        why=f"sign test over {found.steps} steps: p = {found.p:.2g}",
        next=subject.look + (" (--trace full tells launches from host)" * launches),
        kernel=why.kernel if why is not None and why.kernel else None,
        lane=subject.lane(line.rank),
    )


def _uneven(subject: GroupSubject) -> Iterator[Finding]:
    group = subject.report
    total = min(sum(line.late_ms for line in group.ranks), subject.step_ms)
    slow = int(group.late_ns.sum(0).argmax())
    yield Finding(
        cause="uneven ranks",
        engine=group.title,
        says=f"ranks wait {total:.3f} ms a step for one another, for no one rank always",
        ms_per_token=total,
        share=total / subject.step_ms,
        how="at most: if no rank ever waited for a single other one",
        evidence=(
            f"most of it in step {slow + 1}: {group.late_ns[:, slow].sum() / 1e6:.3f} ms",
            ", ".join(f"{line.name} {line.late_ms:.3f} ms" for line in group.ranks[:4]),
        ),
        confidence="medium" if group.provenance == "measured" else "low",
        why="waits in collectives were measured; what delays a rank was not",
        next=subject.look,
        step=slow + 1,
        lane=subject.lane(group.ranks[0].rank),
    )


def _waits(group: RanksReport, late: RankLine) -> str:
    """Of the others, in collectives."""
    others = [line.wait_ms for line in group.ranks if line is not late]
    return f"they wait {min(others):.3f} to {max(others):.3f} ms in all, it {late.wait_ms:.3f} ms"
