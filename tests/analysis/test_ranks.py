"""Groups of ranks: matching, clocks, wait and transfer, who is late and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import ranks_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_factory import TRANSFER_NS, group

from llmprof.analysis.device.naming.categories import categorise
from llmprof.analysis.ranks.matched.matching import Matched, match
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.matched.operations import bus_factor, operation
from llmprof.analysis.ranks.matched.parts import split
from llmprof.analysis.ranks.report import report
from llmprof.analysis.ranks.results import RanksReport
from llmprof.records import Unavailable


def made(members: list[Member], same_host: bool = True, world: int = 0) -> RanksReport:
    sizes = {"AllReduce": 10_240, "AllGather": 64}
    found = report(members, "torch", sizes, world or len(members), same_host)
    assert isinstance(found, RanksReport), found
    return found


def matched(members: list[Member], same_host: bool = True) -> Matched:
    found = match(members, same_host)
    assert isinstance(found, Matched), found
    return found


def test_eight_balanced_ranks() -> None:
    found = made(group())
    assert found.verdict == "balanced"
    assert found.reason is None
    assert found.late_ns.shape == (8, 20)
    assert [line.unmatched for line in found.ranks] == [0] * 8
    assert not any(clock.moved for clock in found.clocks)
    reduce, gather = found.collectives
    assert (reduce.kind, reduce.per_step, gather.per_step) == ("AllReduce", 6.0, 1.0)
    assert reduce.transfer_us == pytest.approx(TRANSFER_NS / 1e3, rel=0.1)
    assert not isinstance(reduce.algorithm_gb_s, Unavailable)
    # nccl-tests: bytes / time, times 2 (n - 1) / n.
    assert reduce.algorithm_gb_s == pytest.approx(10_240 / (reduce.transfer_us * 1e3))
    assert reduce.bus_gb_s == pytest.approx(reduce.algorithm_gb_s * 2 * 7 / 8)


@pytest.mark.parametrize("late", [0, 3, 7])
def test_one_of_eight_is_late_by_its_host(late: int) -> None:
    found = made(group(host_ns={late: 1_000_000}))
    assert found.verdict == "late"
    assert found.reason is not None
    assert (found.reason.rank, found.reason.why) == (late, "host")
    assert found.critical == (late,) * 20
    line = found.ranks[late]
    assert line.late_ms == pytest.approx(1.0, rel=0.02)
    assert line.late_steps == 20
    for other in found.ranks:
        if other.rank != late:
            assert other.wait_ms == pytest.approx(1.0, rel=0.02)
    assert f"rank {late}" in found.words


def test_one_of_eight_is_late_by_a_kernel_which_is_named() -> None:
    found = made(group(kernel_ns={5: 400_000}))
    assert found.reason is not None
    assert (found.reason.rank, found.reason.why) == (5, "kernels")
    assert found.reason.kernel == "slow_kernel"
    assert found.reason.kernel_ns == pytest.approx(400_000, rel=0.02)


def test_without_calls_idle_time_is_not_put_on_the_host() -> None:
    found = made(group(4, host_ns={2: 500_000}, launches=False))
    assert found.reason is not None
    assert (found.reason.rank, found.reason.why, found.reason.host_ns) == (2, "idle", None)
    assert "--trace full" in found.words


def test_wait_and_transfer_add_up_to_every_kernel() -> None:
    members = group(3, host_ns={1: 200_000})
    both = matched(members)
    parts = split(both)
    for row, member in enumerate(members):
        own = member.collectives
        length = (own.end_ns - own.start_ns)[both.index[row]]
        assert np.array_equal(parts.wait_ns[row] + parts.transfer_ns[row], length)
    assert int(parts.late_ns.sum(0).min()) >= 0


def test_exposed_compute_and_idle_are_the_step() -> None:
    found = made(group(4, host_ns={1: 100_000}))
    for line in found.ranks:
        total = line.exposed_ms + line.compute_ms + line.idle_ms
        assert total == pytest.approx(found.step_ms, abs=1e-3)


def test_clocks_of_two_hosts_are_brought_together() -> None:
    members = group(3, 600, offset_ns={1: 7_000_000, 2: -3_000_000_000}, drift_ppb={2: 40_000.0})
    found = made(members, same_host=False)
    assert found.verdict == "balanced"
    second = next(c for c in found.clocks if c.rank == 1)
    assert second.moved
    assert second.offset_ns == pytest.approx(7_000_000, abs=600)
    assert second.low_ns <= 7_000_000 <= second.high_ns
    third = next(c for c in found.clocks if c.rank == 2)
    assert third.drift_ppb == pytest.approx(40_000.0, rel=0.1)
    late = made(group(4, 60, offset_ns={1: 7_000_000}, host_ns={1: 300_000}), same_host=False)
    assert late.reason is not None
    assert late.reason.rank == 1


@settings(max_examples=25, deadline=None)
@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 2),
    st.integers(20_000, 2_000_000),
)
def test_the_late_rank_is_found_whatever_the_clocks_say(offset: int, late: int, delay: int) -> None:
    members = group(3, 12, offset_ns={1: offset}, host_ns={late: delay})
    found = made(members, same_host=False)
    assert found.critical == (late,) * 12
    clock = next(c for c in found.clocks if c.rank == 1)
    # The proved bound holds the truth.
    assert clock.low_ns <= offset <= clock.high_ns
    assert abs(clock.offset_ns - offset) <= clock.error_ns


def test_ends_that_never_agree_are_refused() -> None:
    one, two = group(2)
    shaken = np.random.default_rng(2).integers(-500_000, 500_000, len(two.end_ns))
    late = np.sort(two.start_ns + shaken)
    broken = replace(two, start_ns=late, end_ns=late + (two.end_ns - two.start_ns))
    found = report([one, broken], "torch", {}, 2, True)
    assert isinstance(found, Unavailable)
    assert "rank 1" in found.reason


def test_recordings_of_different_lengths_are_matched_where_both_have_them() -> None:
    members = group(4, 20, only_steps={1: (4, 20), 2: (1, 15)}, host_ns={3: 300_000})
    found = made(members)
    assert found.reason is not None
    assert found.reason.rank == 3
    # Steps 4 to 15 are common: 12 of 20 steps of 7 collectives.
    assert found.matched is not None
    assert found.matched.count == 12 * 7
    assert found.critical[:3] == (-1,) * 3
    assert any("not on every rank" in note for note in found.notes)


def test_ranks_that_trace_different_numbers_of_steps_say_so() -> None:
    """Each process of a file has steps of its own; one of them ended sooner."""
    members = group(3, 20, only_steps={2: (1, 14)}, host_ns={1: 300_000})
    bounds = members[0].bounds_ns
    own = [replace(members[0]), replace(members[1], bounds_ns=bounds)]
    found = made([*own, replace(members[2], bounds_ns=bounds[:15])])
    assert "ranks trace different numbers of steps" in " ".join(found.notes)
    assert "rank 2 · GPU 2 14" in " ".join(found.notes)
    assert found.reason is not None
    assert found.reason.rank == 1


def test_ranks_of_unlike_programs_are_no_group() -> None:
    one, two = group(2)
    other = replace(two, names=("a", "b", "ncclDevKernel_Broadcast_RING_LL(x)", "c"))
    found = report([one, other], "torch", {}, 2, True)
    assert isinstance(found, Unavailable)
    assert "not of one group" in found.reason


def test_one_rank_alone_is_an_estimate_and_says_so() -> None:
    members = group(8, host_ns={5: 500_000})
    found = made([members[0]], world=8)
    assert found.provenance == "modelled"
    assert found.verdict == "unknown"
    (line,) = found.ranks
    assert line.wait_ms == pytest.approx(0.5, rel=0.05)
    assert "rank 0 of 8 was recorded" in found.notes
    assert found.collectives[0].transfer_us == pytest.approx(TRANSFER_NS / 1e3, rel=0.15)


def test_no_steps_no_report() -> None:
    members = [replace(m, bounds_ns=np.empty(0, np.int64)) for m in group(2)]
    found = report(members, "torch", {}, 2, True)
    assert isinstance(found, Unavailable)


@pytest.mark.parametrize(
    ("name", "kind", "fused"),
    [
        (ranks_factory.REDUCE, "AllReduce", False),
        (ranks_factory.GATHER, "AllGather", False),
        ("void vllm::cross_device_reduce_1stage<__half, 2>(vllm::RankData*)", "AllReduce", False),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)", "ReduceScatter", False),
        ("ncclDevKernel_SendRecv(x)", "SendRecv", False),
        ("ncclDevKernel_Reduce_Sum_f32_TREE_LL(x)", "Reduce", False),
        ("allreduce_fusion_kernel_oneshot_lamport_rms_norm<__half>(x)", "AllReduce", True),
        ("nvshmem_barrier", "other", False),
        ("void pg_all_reduce_cpu_send_kernel<(int)2>(PGContext*, int)", "Send", False),
        ("void pg_all_reduce_cpu_recv_kernel<(int)2>(PGContext*, int)", "Receive", False),
        ("void pg_all_reduce_cpu_kernel<(int)2>(PGContext*, int)", "AllReduce", False),
    ],
)
def test_kinds_of_collectives(name: str, kind: str, fused: bool) -> None:
    found = operation(name)
    assert (found.kind, found.fused) == (kind, fused)


SEND = "void pg_all_reduce_cpu_send_kernel<(int)2>(PGContext*, int)"
RECEIVE = "void pg_all_reduce_cpu_recv_kernel<(int)2>(PGContext*, int)"


def by_way_of_the_host(member: Member) -> Member:
    """All-reduces as exllamav3 makes them: a kernel that hands in, one that waits for the sum."""
    rows = []
    for start, end, label, launch in zip(
        member.start_ns, member.end_ns, member.label, member.launch_ns, strict=True
    ):
        if member.names[label] == ranks_factory.REDUCE:
            rows.append((start, start + 1_000, 4, launch))
            rows.append((start + 1_500, end, 5, launch))
        else:
            rows.append((start, end, label, launch))
    table = np.array(rows, np.int64)
    names = (*member.names, SEND, RECEIVE)
    return replace(
        member,
        start_ns=table[:, 0],
        end_ns=table[:, 1],
        label=table[:, 2],
        launch_ns=table[:, 3],
        names=names,
        categories=categorise(dict(enumerate(names)), "exllamav3"),
        payload=None,
        drawn=None,
    )


def test_a_sum_by_way_of_host_memory_waits_in_its_second_kernel() -> None:
    members = [by_way_of_the_host(m) for m in group(2, host_ns={1: 400_000})]
    found = made(members)
    assert found.reason is not None
    assert (found.reason.rank, found.reason.why) == (1, "host")
    lines = {one.kind: one for one in found.collectives}
    assert lines["Send"].wait_us == 0.0
    assert lines["Send"].transfer_us == pytest.approx(1.0, abs=0.5)
    assert lines["Receive"].wait_us > 20.0  # the first of six waits 400 µs on one of two ranks
    assert isinstance(lines["Receive"].bus_gb_s, Unavailable)


def test_one_step_that_takes_long_does_not_hide_a_late_rank() -> None:
    """The first step under a profiler took half a second, the others 2 ms."""
    members = group(4, 24, host_ns={1: 60_000})
    held = 500_000_000
    first = members[0].bounds_ns[1]
    moved = [
        replace(
            m,
            start_ns=np.where(m.start_ns > first, m.start_ns + held, m.start_ns),
            end_ns=np.where(m.end_ns > first, m.end_ns + held, m.end_ns),
            launch_ns=np.where(m.launch_ns > first, m.launch_ns + held, m.launch_ns),
            bounds_ns=np.where(m.bounds_ns > first, m.bounds_ns + held, m.bounds_ns),
        )
        for m in members
    ]
    found = made(moved)
    assert found.reason is not None
    assert found.reason.rank == 1


def test_what_is_over_the_margin_and_not_called_late_says_why() -> None:
    """In seven of twelve steps: the median step is late, and chance does that."""
    parts = (7, {1: 6_000}), (5, None)
    halves = [
        group(2, steps, host_ns=late, start_ns=1_000_000_000 * (n + 1))
        for n, (steps, late) in enumerate(parts)
    ]
    joined = [
        replace(
            a,
            start_ns=np.concatenate([a.start_ns, b.start_ns]),
            end_ns=np.concatenate([a.end_ns, b.end_ns]),
            label=np.concatenate([a.label, b.label]),
            launch_ns=np.concatenate([a.launch_ns, b.launch_ns]),
            bounds_ns=np.concatenate([a.bounds_ns, b.bounds_ns[1:]]),
        )
        for a, b in zip(*halves, strict=True)
    ]
    found = made(joined)
    assert found.lateness is not None
    assert found.lateness.excess_ns > found.lateness.margin_ns
    assert found.verdict == "balanced"
    assert "in 7 of 12, which are too few" in found.words


def test_bus_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("AllReduce", 2) == 1.0
    assert bus_factor("AllReduce", 4) == 1.5
    assert bus_factor("AllGather", 4) == 0.75
    assert bus_factor("Broadcast", 8) == 1.0
    assert bus_factor("other", 8) is None
    assert bus_factor("AllReduce", 1) is None
