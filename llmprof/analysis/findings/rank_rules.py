"""Ranks that compute one step together: one that the others wait for, or all for one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from llmprof.analysis.findings.communication_rules import exposed_communication
from llmprof.analysis.findings.subject import Confidence, Finding, GroupSubject, Subject
from llmprof.analysis.ranks.results import RankLine, RanksReport
from llmprof.records import Unavailable

IDLE_CAUSES: Final = ("launch-bound", "late replay", "sync", "host work", "idle")
IDLE_REASONS: Final = ("host", "launches", "idle")
CERTAIN: Final = 0.001
"""Of the sign test: a confidence that is high."""


def rank_findings(subject: GroupSubject) -> Iterator[Finding]:
    """All that one group says."""
    if subject.report.verdict == "late":
        yield from _late(subject)
    elif subject.report.verdict == "uneven":
        yield from _uneven(subject)
    yield from exposed_communication(subject)


def told_as_lateness(subject: GroupSubject, of_group: Sequence[Finding]) -> dict[str, float]:
    """By label of an engine the ms a step of its own lateness, which may be its idle time.

    Args:
        of_group: what ``rank_findings`` said.
    """
    group, found = subject.report, {}
    for item in of_group:
        if isinstance(item.ms_per_token, Unavailable):
            continue
        if item.cause == "uneven ranks":
            late = {line.rank: line.late_ms for line in group.ranks}
        elif item.cause == "late rank" and group.reason is not None:
            why = group.reason
            late = {why.rank: item.ms_per_token} if why.why in IDLE_REASONS else {}
        else:
            continue
        for one in group.members:
            # Findings about idle time are of one device of one process.
            if one.rank in late and subject.primary.get(one.engine) == (one.pid, one.device):
                found[one.engine] = late[one.rank]
    return found


def without_lateness(found: Sequence[Finding], own: Subject, late_ms: float) -> list[Finding]:
    """Idle time that makes a rank late is told as its lateness, and not once more as idle time.

    Args:
        found: of all engines.
        own: the engine of that rank.
    """
    kept = []
    for item in found:
        ms = item.ms_per_token
        if item.engine != own.label or item.cause not in IDLE_CAUSES or not late_ms:
            kept.append(item)
            continue
        assert not isinstance(ms, Unavailable)
        taken = min(ms, late_ms)
        late_ms -= taken
        if own.worth(ms - taken):
            told = f"{taken:.3f} ms a step more of it make the rank late, and are told as that"
            kept.append(
                replace(
                    item,
                    ms_per_token=ms - taken,
                    share=own.share(ms - taken),
                    evidence=(*item.evidence, told),
                )
            )
    return kept


def _late(subject: GroupSubject) -> Iterator[Finding]:
    group = subject.report
    found, why = group.lateness, group.reason
    if found is None:
        return
    line = group.ranks[found.row]
    # Who waits beside other work gains nothing: no rank more than it waits with none.
    others = [
        one.exposed_wait_ms + one.exposed_unsplit_ms for one in group.ranks if one is not line
    ]
    won = min(found.excess_ns / 1e6, subject.step_ms, *others)
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
    # As above: a rank gains what it waits, and its own lateness.
    bound = min(one.exposed_wait_ms + one.exposed_unsplit_ms + one.late_ms for one in group.ranks)
    total = min(sum(line.late_ms for line in group.ranks), subject.step_ms, bound)
    if not subject.worth(total):
        return
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
