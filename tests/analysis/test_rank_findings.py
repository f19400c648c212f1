"""Findings about ranks: planted lateness is said with its size, balanced ranks give none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks_factory import group

from llmprof.analysis.findings.rank_rules import rank_findings
from llmprof.analysis.findings.ranked import find
from llmprof.analysis.findings.subject import Finding, GroupSubject
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.report import report
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable

COMMUNICATION = "exposed communication"
GRAPH = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"


def reported(members: list[Member]) -> RanksReport:
    found = report(members, "torch", {}, len(members), same_host=True)
    assert isinstance(found, RanksReport), found
    return found


def said(members: list[Member]) -> list[Finding]:
    """About lateness; communication alone is looked at below."""
    return [f for f in rank_findings(subject(reported(members))) if f.cause != COMMUNICATION]


def subject(found: RanksReport, **changes: Any) -> GroupSubject:
    return replace(GroupSubject(found, "my run.sqlite", found.step_ms, timed=False), **changes)


@pytest.mark.parametrize("late", [0, 3])
def test_a_late_host(late: int) -> None:
    (found,) = said(group(4, steps=40, host_ns={late: 1_000_000}))
    assert found.cause == "late rank"
    assert f"rank {late}" in found.says
    assert found.ms_per_token == pytest.approx(1.0, rel=0.02)
    assert found.confidence == "high"
    assert "40 of 40 steps" in " ".join(found.evidence)
    assert not isinstance(found.share, Unavailable)
    assert 0 < found.share < 1
    assert found.next.startswith("llmprof open 'my run.sqlite'")


def test_a_slow_kernel_is_named() -> None:
    (found,) = said(group(4, steps=40, kernel_ns={2: 400_000}))
    assert found.ms_per_token == pytest.approx(0.4, rel=0.02)
    assert found.kernel == "slow_kernel"
    assert any("slow_kernel" in text for text in found.evidence)


def test_of_two_late_ranks_only_the_difference_can_be_won() -> None:
    (found,) = said(group(4, steps=40, host_ns={1: 700_000, 2: 1_000_000}))
    assert "rank 2" in found.says
    assert found.ms_per_token == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("world", [2, 8])
def test_balanced_ranks_give_none(world: int) -> None:
    assert said(group(world, steps=40)) == []


def test_lateness_below_two_percent_of_a_step_is_none() -> None:
    small = reported(group(4, steps=40, host_ns={1: 1_000_000}))
    assert list(rank_findings(subject(small, step_ms=60.0))) == []


def test_too_few_steps_give_none() -> None:
    assert said(group(4, steps=2, host_ns={1: 1_000_000})) == []


def test_uneven_ranks() -> None:
    whole = reported(group(4, steps=40, host_ns={1: 1_000_000}))
    uneven = replace(whole, verdict="uneven")
    found, _ = rank_findings(subject(uneven))
    assert found.cause == "uneven ranks"
    assert found.how.startswith("at most")
    assert found.ms_per_token == pytest.approx(sum(line.late_ms for line in whole.ranks))


def test_they_stand_among_the_findings_of_a_run() -> None:
    trace = RunTrace(GRAPH, open_run(GRAPH))
    trace.groups = ((reported(group(4, steps=40, host_ns={1: 1_000_000})),),)
    found = [f for f in find(trace).found if f.cause == "late rank"]
    assert [f.engine for f in found] == ["torch"]
    assert str(GRAPH) in found[0].next
