"""Numbers about ranks that are easily wrong: bases, overlap, recordings that differ, unknowns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from findings_factory import HEALTHY, STEP_US, causes, subject
from ranks_factory import REDUCE, TRANSFER_NS, group
from ranks_run import run_of
from trace_factory import GEMV

from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram
from llmprof.analysis.device.naming.categories import categorise
from llmprof.analysis.device.sweep import WHOLE_GRAPH_NAME
from llmprof.analysis.findings.idle_rules import host_work
from llmprof.analysis.findings.kernel_rules import below_ceiling
from llmprof.analysis.findings.rank_rules import (
    rank_findings,
    told_as_lateness,
    without_lateness,
)
from llmprof.analysis.findings.ranked import find, step_words
from llmprof.analysis.findings.subject import GroupSubject
from llmprof.analysis.ranks.lines import collective_line
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.operations import Sort
from llmprof.analysis.ranks.report import report
from llmprof.analysis.ranks.results import RanksReport
from llmprof.analysis.view.frames.several import SeveralRuns
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json.report import to_document
from llmprof.records import Unavailable

STEPS = 20
BROADCAST = "ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def reported(members: list[Member], world: int = 0) -> RanksReport:
    sizes = {"AllReduce": 10_240, "AllGather": 64}
    found = report(members, "torch", sizes, world or len(members), same_host=True)
    assert isinstance(found, RanksReport), found
    return found


def of(found: RanksReport, primary: Mapping[str, tuple[int, int]] | None = None) -> GroupSubject:
    return GroupSubject(found, "r", found.step_ms, timed=False, primary=primary or {})


def made_of(member: Member, rows: list[tuple[int, int, int]], names: tuple[str, ...]) -> Member:
    """(start, end, label) of all its work."""
    table = np.array(sorted(rows), np.int64)
    return replace(
        member,
        start_ns=table[:, 0],
        end_ns=table[:, 1],
        label=table[:, 2],
        launch_ns=np.full(len(table), -1),
        names=names,
        categories=categorise(dict(enumerate(names)), "torch"),
        drawn=None,
    )


# --- steps that count, and recordings that differ


def test_means_are_over_the_steps_that_every_rank_has() -> None:
    """Rank 1 was recorded from step 5 to 16 of 20; rank 2 is 0.3 ms late in each."""
    members = group(3, STEPS, host_ns={2: 300_000}, only_steps={1: (5, 16)})
    found = reported(members)
    assert found.steps == 12
    assert found.ranks[2].late_ms == pytest.approx(0.3, rel=0.02)
    assert found.ranks[0].wait_ms == pytest.approx(0.3, rel=0.02)
    whole = reported(group(3, STEPS, host_ns={2: 300_000}))
    for one, other in zip(found.ranks, whole.ranks, strict=True):
        # Nothing of rank 1 is idle time because its recording was not there.
        assert one.compute_ms == pytest.approx(other.compute_ms, rel=0.01)
        assert one.idle_ms == pytest.approx(other.idle_ms, rel=0.02)
    (reduce, gather) = found.collectives
    assert (reduce.per_step, gather.per_step) == (6.0, 1.0)
    assert found.late_ns.shape == (3, STEPS)
    assert found.critical[:4] == (-1,) * 4
    assert found.critical[4:16] == (2,) * 12
    assert "means are over the 12 of 20 steps that every rank's trace has" in found.notes


def test_steps_that_do_not_count_are_in_no_mean() -> None:
    """Every fourth step is prefill, with rank 1 late by 5 ms in it and in no other."""
    parts, start = [], 1_000_000_000
    for n in range(STEPS):
        late = {1: 5_000_000} if n % 4 == 0 else None
        parts.append(group(2, 1, host_ns=late, start_ns=start))
        start = int(parts[-1][0].bounds_ns[-1])
    counted = np.arange(STEPS) % 4 != 0
    columns = ("start_ns", "end_ns", "label", "launch_ns")
    members = [
        replace(
            parts[0][rank],
            **{name: np.concatenate([getattr(p[rank], name) for p in parts]) for name in columns},
            bounds_ns=np.array([*(int(p[0].bounds_ns[0]) for p in parts), start])
            if rank == 0
            else parts[0][1].bounds_ns,
            counted=counted if rank == 0 else None,
        )
        for rank in (0, 1)
    ]
    found = reported(members)
    assert found.steps == 15
    assert found.step_ms == pytest.approx(0.351, rel=0.02)
    assert found.ranks[0].wait_ms < 0.01
    assert found.verdict == "balanced"
    assert set(np.array(found.critical)[~counted].tolist()) == {-1}
    for line in found.ranks:
        whole = line.exposed_ms + line.compute_ms + line.idle_ms
        assert whole == pytest.approx(found.step_ms, abs=1e-9)
    alone = reported([members[0]], world=2)
    assert (alone.steps, alone.late_ns.shape) == (15, (1, STEPS))
    assert alone.step_ms == pytest.approx(found.step_ms)


def test_no_step_that_every_rank_has() -> None:
    """The recordings share half a step."""
    one, two = group(2, 2, reduces=12)
    at = int(one.bounds_ns[1])
    rows = [r for r in zip(one.start_ns, one.end_ns, one.label, strict=True) if r[0] > at - 250_000]
    rows2 = [r for r in zip(two.start_ns, two.end_ns, two.label, strict=True) if r[0] < at + 10]
    found = report(
        [made_of(one, rows, one.names), made_of(two, rows2, two.names)], "torch", {}, 2, True
    )
    assert isinstance(found, Unavailable)


def test_the_bus_bandwidth_is_of_all_ranks_that_there_are() -> None:
    """Two of four ranks were recorded: nccl-tests' factor is that of four."""
    members = group(4, STEPS)
    (half, _), (all_of_them, _) = (
        reported(members[:2], world=4).collectives,
        reported(members).collectives,
    )
    assert half.bus_gb_s == pytest.approx(all_of_them.bus_gb_s, rel=0.02)


def test_without_the_number_of_ranks_there_is_no_bus_bandwidth() -> None:
    line = collective_line(
        Sort("AllReduce_Sum_f16_RING_LL", 0), 1, 1, 7000.0, 7000.0, 0.0, 0.0, 10_240, 0
    )
    assert isinstance(line.bus_gb_s, Unavailable)
    assert "how many ranks" in line.bus_gb_s.reason


@pytest.mark.parametrize("same_host", [True, False])
def test_recordings_a_step_apart_are_matched_by_the_step_that_they_share(same_host: bool) -> None:
    """160 all-reduces a step, as of 80 layers; the first rank stops a step earlier, the other one
    begins a step later. A step further on all looks alike but for the jitter."""
    offset = {} if same_host else {1: 7_000_000}
    only = {0: (1, 11), 1: (2, 12)}
    members = group(2, 12, 160, only_steps=only, host_ns={1: 100_000}, offset_ns=offset)
    found = report(members, "torch", {}, 2, same_host)
    assert isinstance(found, RanksReport), found
    assert found.steps == 10
    assert found.ranks[1].late_ms == pytest.approx(0.1, rel=0.2)
    assert found.verdict == "late"
    (clock,) = found.clocks
    assert clock.offset_ns == pytest.approx(offset.get(1, 0), abs=1_000)


# --- who waits for whom


def test_nobody_waits_for_a_rank_that_starts_a_broadcast_last() -> None:
    """Rank 0 sends and is gone, rank 1 receives; rank 2 comes 1 ms later and finds all there."""
    members = group(3, STEPS, reduces=1)
    names = ("gemv_kernel", "slow_kernel", REDUCE, BROADCAST)
    made = []
    for rank, one in enumerate(members):
        rows = []
        for n in range(STEPS):
            at = 1_000_000_000 + n * 2_000_000
            rows.append((at + 1_000, at + 8_000, 2))
            begin = at + 100_000 + (1_000_000 if rank == 2 else 0) + (5_000 if rank == 1 else 0)
            rows.append((begin, begin + 10_000, 3))
            rows.append((at + 1_900_000, at + 1_908_000, 2))
        bounds = 1_000_000_000 + np.arange(STEPS + 1) * 2_000_000
        made.append(
            replace(
                made_of(one, rows, names),
                bounds_ns=bounds if rank == 0 else np.empty(0, np.int64),
            )
        )
    found = reported(made)
    assert found.verdict == "balanced"
    assert found.ranks[2].late_ms < 0.001
    assert [line.wait_ms for line in found.ranks] == pytest.approx([0.005, 0.0, 0.0], abs=1e-4)


def test_a_step_in_which_nobody_waited_has_no_critical_rank() -> None:
    members = group(2, STEPS, jitter_ns=0)
    found = reported(members)
    assert found.critical == (-1,) * STEPS
    assert [line.late_steps for line in found.ranks] == [0, 0]


def test_lateness_at_two_collectives_at_once_counts_once() -> None:
    """A second communicator's all-gather begins with the first all-reduce of each step."""
    both = []
    for one in group(2, STEPS, reduces=1, host_ns={1: 500_000}):
        rows = list(zip(one.start_ns, one.end_ns, one.label, strict=True))
        rows += [(s + 10, e, 3) for s, e, label in rows if label == 2]
        both.append(made_of(one, rows, one.names))
    found = reported(both)
    assert found.ranks[1].late_ms == pytest.approx(0.5, rel=0.02)
    (late, *_) = rank_findings(of(found))
    assert late.ms_per_token == pytest.approx(0.5, rel=0.02)


def test_waiting_beside_other_work_is_not_to_be_won() -> None:
    """Rank 1 is 1 ms late, and the others work 0.7 ms of that on another stream."""
    waiting = []
    for one in group(3, STEPS, host_ns={1: 1_000_000}):
        rows = list(zip(one.start_ns, one.end_ns, one.label, strict=True))
        if one.rank != 1:
            rows += [(s, s + 700_000, 0) for s, e, label in rows if e - s > 900_000 and label == 2]
        waiting.append(made_of(one, rows, one.names))
    found = reported(waiting)
    assert found.ranks[1].late_ms == pytest.approx(1.0, rel=0.02)
    (late, *_) = rank_findings(of(found))
    assert late.ms_per_token == pytest.approx(0.3, rel=0.05)


def test_uneven_ranks_win_no_more_than_they_wait() -> None:
    found = replace(reported(group(3, STEPS, host_ns={1: 1_000_000})), verdict="uneven")
    (uneven, _) = rank_findings(of(found))
    assert uneven.ms_per_token == pytest.approx(1.0, rel=0.02)
    lines = tuple(replace(one, exposed_wait_ms=one.exposed_wait_ms / 2) for one in found.ranks)
    (uneven, _) = rank_findings(of(replace(found, ranks=lines)))
    assert uneven.ms_per_token == pytest.approx(0.5, rel=0.02)


def test_a_transfer_beside_a_wait_is_transfer_in_the_waterfall_too(tmp_path: Path) -> None:
    """Rank 0 waits 0.5 ms in each all-reduce; 0.2 ms of that a second communicator transfers."""
    members = group(2, STEPS, reduces=1, host_ns={1: 500_000})
    begin = members[0].start_ns[members[0].label == 2]
    both = []
    for one in members:
        rows = list(zip(one.start_ns, one.end_ns, one.label, strict=True))
        rows += [(s + 100_000, s + 300_000 + one.rank, 3) for s in begin]
        made = made_of(one, rows, one.names)
        both.append(replace(made, launch_ns=made.start_ns - 1_000))
    path = run_of(tmp_path / "run.sqlite", both)
    trace = RunTrace(path, open_run(path))
    line = trace.ranks[0].ranks[0]
    assert line.exposed_wait_ms == pytest.approx(0.3, rel=0.01)
    parts = trace.engines[0].parts
    assert not isinstance(parts, Unavailable)
    assert parts.parts_ns["communication: wait"] / 1e6 == pytest.approx(line.exposed_wait_ms)
    whole = parts.parts_ns["communication: transfer"] / 1e6
    assert whole == pytest.approx(line.exposed_transfer_ms, rel=1e-4)


# --- one ms is told once


def test_idle_time_that_makes_a_rank_late_is_told_once() -> None:
    planted = subject(
        step_us=STEP_US + 1000, causes=causes(host=0.9, sync=0.1), label="torch",
    )  # fmt: skip
    (host,) = host_work(planted)
    assert not isinstance(host.ms_per_token, Unavailable)
    whole = reported(group(2, STEPS, host_ns={1: 400_000}))
    members = whole.members
    one = of(whole, {"torch": (members[1].pid, members[1].device)})
    late = list(rank_findings(one))
    told = told_as_lateness(one, late)
    assert told == {"torch": late[0].ms_per_token}
    (left,) = without_lateness([host], planted, told["torch"])
    assert left.ms_per_token == pytest.approx(host.ms_per_token - 0.4, abs=0.01)
    assert left.share == pytest.approx(left.ms_per_token / (planted.step_ms or 0))
    assert any("make the rank late" in text for text in left.evidence)
    # All of it: there is nothing left to be said.
    assert without_lateness([host], planted, 5.0) == []
    # Findings about idle time are of rank 0's process: that of rank 1 is in none of them.
    assert told_as_lateness(of(whole, {"torch": (members[0].pid, 0)}), late) == {}
    # A late rank whose kernels are slow has no idle time more.
    slow = reported(group(2, STEPS, kernel_ns={1: 400_000}))
    one = of(slow, {"torch": (members[1].pid, members[1].device)})
    assert told_as_lateness(one, list(rank_findings(one))) == {}


@pytest.mark.parametrize("late", [0, 1])
def test_what_a_run_can_win_is_no_more_than_its_step(tmp_path: Path, late: int) -> None:
    path = run_of(tmp_path / "run.sqlite", group(2, STEPS, host_ns={late: 1_000_000}))
    trace = RunTrace(path, open_run(path))
    found = find(trace).found
    assert {"late rank", "exposed communication"} <= {f.cause for f in found}
    total = sum(f.ms_per_token for f in found if not isinstance(f.ms_per_token, Unavailable))
    assert total <= trace.ranks[0].step_ms


def test_parts_of_a_step_are_never_more_than_the_step() -> None:
    """The traced pass ran at lower clocks: its kernels take longer than the untraced step."""
    planted = subject(timed_ns=2.0e6)
    assert planted.busy_ms is not None
    assert planted.busy_ms > 2.9
    words = step_words(planted)
    assert sum(ms for _, ms in words.parts) == pytest.approx(2.0)
    assert dict(words.parts)["idle"] == 0.0


# --- names and files


def test_a_label_that_is_part_of_another_takes_no_other_run_s_file(tmp_path: Path) -> None:
    """`torch` and `torch (b)` in two files, and a late rank in the second."""
    paths = [
        run_of(tmp_path / name, group(2, STEPS, host_ns=late))
        for name, late in (("a.sqlite", None), ("b.sqlite", {1: 1_000_000}))
    ]
    trace = SeveralRuns([open_run(path) for path in paths]).trace()
    assert isinstance(trace, RunTrace)
    (late,) = [f for f in find(trace).found if f.cause == "late rank"]
    assert late.engine == "torch (b)"
    assert str(paths[1]) in late.next


# --- unknown is not 0


def test_of_one_rank_alone_lateness_is_null(tmp_path: Path) -> None:
    members = group(2, STEPS)
    empty = replace(
        members[1],
        **{name: getattr(members[1], name)[:0] for name in ("start_ns", "end_ns", "label")},
        launch_ns=members[1].launch_ns[:0],
    )
    path = run_of(tmp_path / "half.sqlite", [members[0], empty])
    data = open_run(path)
    document = json.loads(json.dumps(to_document(build(data), data, RunTrace(path, data))))
    (line,) = document["ranks"][0]["ranks"]
    for name in ("late_ms", "late_steps", "unmatched"):
        assert line[name] is None
        assert "alone" in line[f"{name}_reason"]
    whole = run_of(tmp_path / "whole.sqlite", members)
    data = open_run(whole)
    document = to_document(build(data), data, RunTrace(whole, data))
    first, second = document["ranks"][0]["ranks"]
    assert first["steps"] == STEPS
    # Rank 1 has no stamps of its own: that is not 0 steps.
    assert second["steps"] is None
    assert "another rank's" in second["steps_reason"]


def test_collectives_inside_whole_graphs_are_not_known() -> None:
    members = [
        replace(m, names=("gemv_kernel", WHOLE_GRAPH_NAME, *m.names[2:])) for m in group(2, STEPS)
    ]
    some = [replace(m, label=np.where(m.label == 0, 1, m.label)) for m in members]
    found = reported(some)
    assert any("traced as a whole" in note for note in found.notes)
    (said,) = rank_findings(of(found))
    assert (said.confidence, "traced as a whole" in said.why) == ("medium", True)
    nothing = [made_of(m, [(1, 2, 1)], m.names) for m in members]
    nothing = [replace(m, bounds_ns=np.array([0, 10])) for m in nothing]
    why = report(nothing, "torch", {}, 2, True)
    assert isinstance(why, Unavailable)
    assert "whether collectives are in them is not known" in why.reason


# --- the step that a share is of


def test_kernels_that_were_sampled_keep_their_time() -> None:
    """Sampled steps are 1 ms longer than untraced ones, all of it idle."""
    no = Unavailable("not counted")
    sampled_ns = (STEP_US + 1000) * 1e3
    kernel = KernelDram(
        "gemv", "gemv", (), "", "GEMM/GEMV", None, None, 32.0, 50_000.0, 1.6e6 / sampled_ns,
        1000.0, 990.0, 1010.0, 1000 / 3000, no, no, no, (), {}, "",
    )  # fmt: skip
    dram = KernelBandwidth(
        1, 8, 1000, 100_000, sampled_ns, 3350.0, 3000.0, 1000.0, 1000.0, 0.0, 0, 0, None, 1.0, 1.0,
        {}, (kernel,), no,
    )  # fmt: skip
    (found,) = below_ceiling(subject(dram=dram))
    assert found.ms_per_token == pytest.approx(1.6 * (1 - (1000 / 3000) / 0.9))
    assert "takes 1.60 ms a step" in found.says


# --- overlapping streams


def test_products_beside_one_another_have_no_bandwidth_of_their_own() -> None:
    """Each layer's last product runs beside the one before it, on another stream."""
    apart = subject(gb_s=1400.0)
    assert list(below_ceiling(apart)) != []
    moved = tuple(
        replace(k, at=k.at - 29_000, stream=9) if k.name == GEMV and k.length == 21_000 else k
        for k in HEALTHY
    )
    beside = subject(moved, gb_s=1400.0)
    assert not isinstance(beside.roles, Unavailable)
    assert not isinstance(apart.roles, Unavailable)
    assert {r.role for r in beside.roles} == {r.role for r in apart.roles}
    assert list(below_ceiling(beside)) == []


def test_a_transfer_is_at_least_what_was_planted() -> None:
    found = reported(group(2, STEPS))
    for line in found.ranks:
        assert line.exposed_transfer_ms == pytest.approx(7 * TRANSFER_NS / 1e6, rel=0.1)
