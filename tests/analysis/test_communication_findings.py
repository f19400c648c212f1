"""What collectives cost a step where nothing hides them: planted transfers, waits and overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_factory
import rundata_factory as make
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_factory import TRANSFER_NS, group
from ranks_run import run_of

from llmprof.analysis.device.naming.categories import categorise
from llmprof.analysis.findings.communication_rules import exposed_communication
from llmprof.analysis.findings.rank_rules import rank_findings
from llmprof.analysis.findings.ranked import find
from llmprof.analysis.findings.subject import Finding, GroupSubject
from llmprof.analysis.ranks.matched.algorithms import SHARED, SILENT, algorithm
from llmprof.analysis.ranks.matched.members import Member
from llmprof.analysis.ranks.report import report
from llmprof.analysis.ranks.results import RankGpu, RanksReport
from llmprof.analysis.view.frames.several import SeveralRuns
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json.findings import LIMIT, to_text
from llmprof.records import RoundRecord, Unavailable
from llmprof.runfile.writing.writer import RunFileWriter

STEPS = 20
COLLECTIVES = 7
"""Six all-reduces and an all-gather."""
PLANTED_MS = COLLECTIVES * TRANSFER_NS / 1e6
NO = Unavailable("not read")


def reported(members: Sequence[Member], world: int = 0) -> RanksReport:
    sizes = {"AllReduce": 10_240, "AllGather": 64}
    found = report(members, "torch", sizes, world or len(members), same_host=True)
    assert isinstance(found, RanksReport), found
    return found


def subject(found: RanksReport, **changes: Any) -> GroupSubject:
    return replace(GroupSubject(found, "run.sqlite", found.step_ms, timed=True), **changes)


def said(members: Sequence[Member], **changes: Any) -> list[Finding]:
    return list(exposed_communication(subject(reported(members), **changes)))


def with_work(member: Member, start: np.ndarray, end: np.ndarray) -> Member:
    """Further kernels on another stream."""
    starts = np.concatenate([member.start_ns, start])
    order = np.argsort(starts, kind="stable")

    def joined(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.concatenate([old, new])[order]

    return replace(
        member,
        start_ns=starts[order],
        end_ns=joined(member.end_ns, end),
        label=joined(member.label, np.zeros(len(start), np.int64)),
        launch_ns=joined(member.launch_ns, np.full(len(start), -1)),
    )


def beside(member: Member, share: float) -> Member:
    """Other work during that share of each of its collectives, from the end backwards."""
    own = member.collectives
    length = np.rint((own.end_ns - own.start_ns) * share).astype(np.int64)
    return with_work(member, own.end_ns - length, own.end_ns)


def test_transfers_that_nothing_hides() -> None:
    (found,) = said(group(4, STEPS))
    assert found.cause == "exposed communication"
    assert found.ms_per_token == pytest.approx(PLANTED_MS, rel=0.1)
    assert not isinstance(found.share, Unavailable)
    assert found.share == pytest.approx(PLANTED_MS / 0.351, rel=0.1)
    assert found.how.startswith("at most")
    assert "7 collectives a step" in found.says
    assert found.confidence == "high"
    assert found.kernel == "AllReduce_Sum_f16_RING_LL"
    text = " ".join(found.evidence)
    assert "6 a step of 10,240 B" in text
    assert "on 4 ranks" in text
    assert "algorithm n/a" in text


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_runs_beside_other_work_is_not_exposed(share: float) -> None:
    (found,) = said([beside(m, share) for m in group(4, STEPS)])
    assert found.ms_per_token == pytest.approx(PLANTED_MS * (1 - share), rel=0.1)


def test_hidden_transfers_give_none() -> None:
    assert said([beside(m, 1.0) for m in group(4, STEPS)]) == []


def test_the_rank_that_hides_most_bounds_what_can_be_won() -> None:
    members = group(4, STEPS)
    members[2] = beside(members[2], 0.5)
    (found,) = said(members)
    assert found.ms_per_token == pytest.approx(PLANTED_MS / 2, rel=0.1)
    assert "least transfer: rank 2" in " ".join(found.evidence)


@pytest.mark.parametrize("late", [0, 2])
def test_waiting_is_said_and_not_won(late: int) -> None:
    """1 ms a step of waiting belongs to lateness alone."""
    members = group(4, STEPS, host_ns={late: 1_000_000})
    found = {f.cause: f for f in rank_findings(subject(reported(members)))}
    assert set(found) == {"late rank", "exposed communication"}
    assert found["late rank"].ms_per_token == pytest.approx(1.0, rel=0.02)
    assert found["exposed communication"].ms_per_token == pytest.approx(PLANTED_MS, rel=0.1)


def test_two_collectives_at_once_are_counted_once() -> None:
    """A second communicator's all-gathers on another stream, at the same time as the reduces."""
    twice = []
    for one in group(2, STEPS):
        rows = np.flatnonzero(one.label == 2)
        made = with_work(one, one.start_ns[rows], one.end_ns[rows])
        added = np.ones(len(made.label), np.int64)
        label = made.label.copy()
        # What was added is of label 0 and begins with a reduce.
        for at in np.flatnonzero(label == 2):
            near = [n for n in (at - 1, at + 1) if made.start_ns[n] == made.start_ns[at]]
            label[near[0]] = 3
        assert int((label == 3).sum()) == int((one.label == 3).sum()) + len(rows), added
        twice.append(replace(made, label=label))
    found = reported(twice)
    for line in found.ranks:
        assert line.wait_ms + line.transfer_ms > 1.8 * PLANTED_MS  # of each kernel, added up
        assert line.exposed_ms == pytest.approx(PLANTED_MS, rel=0.15)
        whole = line.exposed_ms + line.compute_ms + line.idle_ms
        assert whole == pytest.approx(found.step_ms, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.integers(0, 2), st.integers(0, 800_000)),
    st.dictionaries(st.integers(0, 2), st.integers(0, 300_000)),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_parts_add_up_and_gains_stay_within_the_step(
    host: dict[int, int], kernel: dict[int, int], hidden: list[float]
) -> None:
    members = group(3, 12, host_ns=host, kernel_ns=kernel)
    found = reported([beside(m, share) for m, share in zip(members, hidden, strict=True)])
    for line in found.ranks:
        parts = line.exposed_transfer_ms + line.exposed_wait_ms + line.exposed_unsplit_ms
        assert parts == pytest.approx(line.exposed_ms, abs=1e-9)
        assert line.exposed_unsplit_ms == pytest.approx(0, abs=1e-9)
        assert line.exposed_transfer_ms <= line.transfer_ms + 1e-9
        assert line.exposed_wait_ms <= line.wait_ms + 1e-9
        whole = line.exposed_ms + line.compute_ms + line.idle_ms
        assert whole == pytest.approx(found.step_ms, abs=1e-9)
    gains = [f.ms_per_token for f in rank_findings(subject(found))]
    assert sum(g for g in gains if not isinstance(g, Unavailable)) <= found.step_ms


def test_collectives_that_another_rank_lacks_are_neither_waited_nor_won() -> None:
    one, two = group(2, STEPS)
    kept = two.label != 3
    columns = ("start_ns", "end_ns", "label", "launch_ns")
    without = replace(two, **{name: getattr(two, name)[kept] for name in columns})
    found = reported([one, without])
    assert found.steps == STEPS
    first = found.ranks[0]
    assert first.exposed_unsplit_ms == pytest.approx(TRANSFER_NS / 1e6, rel=0.15)
    (all_of_them,) = exposed_communication(subject(found))
    assert all_of_them.ms_per_token == pytest.approx(6 * TRANSFER_NS / 1e6, rel=0.1)
    assert all_of_them.confidence == "medium"
    (half,) = said([beside(one, 0.5), without])
    assert "0.003 ms not told apart" in half.says or "0.004 ms not told apart" in half.says


@pytest.mark.parametrize("world", [1, 4])
def test_one_rank_alone_is_an_estimate(world: int) -> None:
    """1: how many ranks there are is not known."""
    found = reported([group(4, STEPS, host_ns={1: 300_000})[0]], world=world)
    (only,) = rank_findings(subject(found))
    assert only.cause == "exposed communication"
    assert only.confidence == "low"
    assert "~" in only.says
    # The wait for rank 1 is estimated, and no part of it.
    assert only.ms_per_token == pytest.approx(PLANTED_MS, rel=0.2)
    assert "files of all ranks" in only.next


def test_waiting_for_a_rank_that_was_not_recorded_makes_it_unsure() -> None:
    """Rank 3 is 1 ms late, and not in the trace: to the others it looks like transfer."""
    found = reported(group(4, STEPS, host_ns={3: 1_000_000})[:3], world=4)
    assert found.ranks[0].transfer_ms > 1.0
    (only,) = rank_findings(subject(found))
    assert only.cause == "exposed communication"
    assert only.confidence == "low"
    assert "3 of 4 ranks" in only.why
    assert any("counts as transfer" in note for note in found.notes)


def test_bounds_few_steps_and_clocks_make_it_less_sure() -> None:
    few = said(group(2, 4))
    assert few[0].confidence == "medium"
    assert "4 steps only" in few[0].why
    whole = reported(group(2, STEPS))
    fused = replace(whole, collectives=tuple(replace(c, fused=True) for c in whole.collectives))
    (found,) = exposed_communication(subject(fused))
    assert (found.confidence, "bound" in found.why) == ("medium", True)
    apart = replace(whole, clocks=tuple(replace(c, residual_ns=4_000) for c in whole.clocks))
    (found,) = exposed_communication(subject(apart))
    assert (found.confidence, "4.0 µs" in found.why) == ("medium", True)
    (found,) = exposed_communication(subject(whole, timed=False))
    assert (found.confidence, "as traced" in found.why) == ("high", True)


def linked(found: RanksReport, nvlink: float | Unavailable) -> RanksReport:
    gpus = tuple(RankGpu(m.device, NO, NO, NO, (), NO, NO, nvlink) for m in found.members)
    return replace(found, gpus=gpus)


def test_bandwidth_stands_beside_what_the_links_carry() -> None:
    whole = reported(group(4, STEPS))

    def text(found: RanksReport) -> str:
        return " ".join(next(exposed_communication(subject(found))).evidence)

    assert "latency, not bandwidth" in text(linked(whole, 478.0))
    assert "of the 478 that NVLink carries" in text(linked(whole, 478.0))
    assert "the links are full" in text(linked(whole, 3.0))
    middle = next(exposed_communication(subject(linked(whole, 10.0)))).evidence[0]
    assert "latency" not in middle
    assert "full" not in middle
    none = Unavailable("NVML reports no active NVLink")
    assert "n/a: NVML reports no active NVLink" in text(linked(whole, none))
    assert "n/a: the run has no samples of its GPUs" in text(whole)
    sizes = Unavailable("the trace does not say how many bytes its collectives move")
    unknown = tuple(
        replace(c, bytes=sizes, bus_gb_s=sizes, algorithm_gb_s=sizes) for c in whole.collectives
    )
    assert "bytes n/a: the trace does not say" in text(replace(whole, collectives=unknown))


def test_the_next_command() -> None:
    whole = subject(reported(group(2, STEPS)))
    tuning = "NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=TUNING "

    def of(**changes: Any) -> str:
        return next(exposed_communication(replace(whole, **changes))).next

    assert of() == "llmprof open run.sqlite   # page ranks"
    command = ("/usr/bin/llmprof", "--engine", "torch:tp=2", "-o", "run.sqlite")
    assert of(command=command) == f"{tuning}llmprof --engine torch:tp=2"
    assert of(program=("torchrun", "serve me.py")) == f"{tuning}torchrun 'serve me.py'"
    long = of(program=("torchrun", "x" * 300))
    assert len(long) <= 160
    assert long.startswith("llmprof open run.sqlite")


def test_the_share_is_of_the_untraced_step() -> None:
    whole = reported(group(2, STEPS))
    (found,) = exposed_communication(subject(whole, step_ms=whole.step_ms / 2))
    assert found.share == pytest.approx(2 * PLANTED_MS / whole.step_ms, rel=0.1)
    # Nothing can win more than the step.
    (found,) = exposed_communication(subject(whole, step_ms=0.01))
    assert (found.ms_per_token, found.share) == (0.01, 1.0)


def test_what_is_small_is_not_said() -> None:
    assert said(group(2, STEPS), step_ms=60.0) == []


def test_it_is_a_finding_of_a_run_and_fits_its_document(tmp_path: Path) -> None:
    def timed(writer: RunFileWriter, _: RoundRecord) -> None:
        """A timing pass of 1 ms a step."""
        writer.put_round(make.decode_round(0, 1, [1.0] * STEPS))

    path = run_of(tmp_path / "tp2.sqlite", group(2, STEPS), timed)
    found = find(RunTrace(path, open_run(path)))
    (one,) = [f for f in found.found if f.cause == "exposed communication"]
    assert one.engine == "torch"
    assert one.share == pytest.approx(PLANTED_MS, rel=0.1)
    text = to_text("tp2.sqlite", found)
    assert len(text.encode()) <= LIMIT
    assert '"cause":"exposed communication"' in text


def test_groups_of_several_runs_keep_their_own_names_and_files(tmp_path: Path) -> None:
    """Both engines are `torch`; the second run has four ranks."""
    paths = [run_of(tmp_path / f"tp{world}.sqlite", group(world, STEPS)) for world in (2, 4)]
    trace = SeveralRuns([open_run(path) for path in paths]).trace()
    assert isinstance(trace, RunTrace)
    found = [f for f in find(trace).found if f.cause == "exposed communication"]
    by_name = {f.engine: f for f in found}
    assert set(by_name) == {"torch (tp2)", "torch (tp4)"}
    for name, one in by_name.items():
        assert one.lane == name
    two, four = by_name["torch (tp2)"], by_name["torch (tp4)"]
    assert any(text.startswith("torch (tp4), 4 GPUs:") for text in two.evidence)
    assert any(text.startswith("torch (tp2), 2 GPUs:") for text in four.evidence)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ncclDevKernel_AllReduce_Sum_f16_TREE_LL", "tree; NCCL's name does not say"),
        ("ncclDevKernel_AllReduce_Sum_bf16_NVLS_SIMPLE", "NVLS, SIMPLE"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL128", "RING, LL128"),
        ("ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16", "RSxLDMC_AGxSTMC, multicast"),
        ("ncclSymDevKernel_AllReduce_AGxLL_R_sum_f16", "symmetric memory, AGxLL"),
        ("ncclSymkDevKernel_AllGather_STMC", "symmetric memory, STMC, multicast"),
        ("void vllm::cross_device_reduce_1stage<__half, 2>", "one shot"),
        ("void vllm::cross_device_reduce_2stage<__half, 4>", "two shots"),
        ("multimem_all_reduce_kernel<float>", "multicast"),
        ("void pg_all_reduce_cpu_recv_kernel<(int)2>", "host memory"),
    ],
)
def test_algorithms_that_a_name_says(name: str, words: str) -> None:
    found = algorithm(name)
    assert isinstance(found, str)
    assert words in found


def test_algorithms_that_a_name_does_not_say() -> None:
    assert algorithm(ranks_factory.REDUCE.partition("(")[0]) is SHARED
    assert algorithm("ncclKernel_AllReduce_RING_LL_Sum_half") is SHARED
    assert algorithm("ncclDevKernel_Generic") is SILENT


def test_kernels_of_symmetric_memory_are_collectives() -> None:
    name = "ncclSymkDevKernel_AllReduce_RSxLD_AGxST_sum_bf16(ncclSymkDevWorkArgs4K)"
    assert categorise({0: name}, "vllm")[0] == "communication"
    members = [
        replace(m, names=(*m.names[:2], name, m.names[3]), drawn=None) for m in group(2, STEPS)
    ]
    (found,) = said(members)
    assert "algorithm: symmetric memory, RSxLD_AGxST" in found.evidence
    assert found.kernel == "AllReduce_RSxLD_AGxST_sum_bf16"
