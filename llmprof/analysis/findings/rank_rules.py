"""Ranks that compute one step together: one that the others wait for, or all for one another."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from llmprof.analysis.findings.subject import LEAST_SHARE, Confidence, Finding
from llmprof.analysis.ranks.results import RankLine, RanksReport

CERTAIN: Final = 0.001
"""Of the sign test: a confidence that is high."""


def rank_findings(group: RanksReport, file: str) -> Iterator[Finding]:
    """All that one group says.

    Args:
        file: as the user named it.
    """
    if group.verdict == "late":
        yield from _late(group, f"llmprof open {shlex.quote(file)}")
    elif group.verdict == "uneven":
        yield from _uneven(group, f"llmprof open {shlex.quote(file)}")


def _late(group: RanksReport, look: str) -> Iterator[Finding]:
    found, why = group.lateness, group.reason
    if found is None:
        return
    line = group.ranks[found.row]
    won = found.excess_ns / 1e6
    if won < LEAST_SHARE * group.step_ms:
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
        share=won / group.step_ms,
        how="if it were as late as the next one",
        evidence=tuple(evidence),
        confidence=confidence,
        why=f"sign test over {found.steps} steps: p = {found.p:.2g}",
        next=f"{look}   # page ranks" + (" (--trace full tells launches from host)" * launches),
        kernel=why.kernel if why is not None and why.kernel else None,
    )


def _uneven(group: RanksReport, look: str) -> Iterator[Finding]:
    total = sum(line.late_ms for line in group.ranks)
    slow = int(group.late_ns.sum(0).argmax())
    yield Finding(
        cause="uneven ranks",
        engine=group.title,
        says=f"ranks wait {total:.3f} ms a step for one another, for no one rank always",
        ms_per_token=total,
        share=total / group.step_ms,
        how="at most: if no rank ever waited for a single other one",
        evidence=(
            f"most of it in step {slow + 1}: {group.late_ns[:, slow].sum() / 1e6:.3f} ms",
            ", ".join(f"{line.name} {line.late_ms:.3f} ms" for line in group.ranks[:4]),
        ),
        confidence="medium" if group.provenance == "measured" else "low",
        why="waits in collectives were measured; what delays a rank was not",
        next=f"{look}   # page ranks",
        step=slow + 1,
    )


def _waits(group: RanksReport, late: RankLine) -> str:
    """Of the others, in collectives."""
    others = [line.wait_ms for line in group.ranks if line is not late]
    return f"they wait {min(others):.3f} to {max(others):.3f} ms in all, it {late.wait_ms:.3f} ms"
