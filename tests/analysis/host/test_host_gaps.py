"""Gap causes on made-up GPU traces whose cause is known, and sums that are exact whatever comes."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_factory import PID, TID, K, Made, make_trace

from llmprof.analysis.device.attribution import attribute
from llmprof.analysis.device.gaps import between_pieces, idle_gaps
from llmprof.analysis.device.kernels import TracedRound, prepare
from llmprof.analysis.host.causes import (
    CauseTime,
    GapCauses,
    GapJudge,
    _verdict,
    gap_causes,
    judge,
)
from llmprof.analysis.host.frames import kind_of, origin
from llmprof.analysis.host.launches import call_cause, share_out
from llmprof.analysis.host.stacks import HostTrace, flame, frame_times, one_call, open_host
from llmprof.records import HostFrame, HostRound, Unavailable
from llmprof.runfile.trace.host_rows import HostRows, HostSample
from llmprof.runfile.trace.rows import ApiRows

STEP = 2_000_000
PACKAGES = "/opt/venv/lib/python3.12/site-packages"
FRAMES = {
    1: HostFrame(1, "Engine.decode_step", "/opt/plugin/engine.py", 40, "x = self.forward(x)"),
    2: HostFrame(2, "Linear.forward", f"{PACKAGES}/torch/nn/modules/linear.py", 125, ""),
    3: HostFrame(3, "Engine.pick", "/opt/plugin/engine.py", 50, "return logits.argmax().item()"),
    4: HostFrame(4, "Engine.detokenise", "/opt/plugin/engine.py", 60, "text += piece(token)"),
    5: HostFrame(5, "Engine.nap", "/opt/plugin/engine.py", 70, "time.sleep(0.001)"),
    6: HostFrame(6, "spin", "/opt/plugin/rival.py", 7, "n = n * 7"),
    7: HostFrame(7, "ranged_round", "/opt/x/llmprof/worker/rounds.py", 80, ""),
    8: HostFrame(8, "cudaMalloc", "/usr/lib/libcudart.so.13", 0, ""),
    9: HostFrame(9, "Thread.run", "/usr/lib/python3.12/threading.py", 9, ""),
}


def burst(at: int, count: int, gap: int) -> tuple[K, ...]:
    """Kernels of 10 us with ``gap`` between them."""
    return tuple(K(at + i * (10_000 + gap), 10_000) for i in range(count))


def host_of(
    made: Made, at: dict[int, tuple[int, ...]], rival: float = 0.0, every: int = 50_000
) -> HostTrace | Unavailable:
    """Samples each ``every`` ns; ``at`` maps ns after a step's begin → the stack from there on."""
    stamps = made.record.stamps_ns
    samples = []
    for begin in stamps[:-1]:
        for offset in range(7_000, STEP, every):
            key = max(k for k in at if k <= offset)
            samples.append(HostSample(begin + offset, TID, (*at[key], 1, 7)))
            if rival:
                samples.append(HostSample(begin + offset, TID + 1, (6, 9)))
    sampled = HostRound(
        1, 1000, False, False, len(samples), 0, 0, 200_000, 20_000, stamps[0], stamps[-1],
        10**9, {str(TID): int(1e8), str(TID + 1): int(rival * 1e9)},
        {str(TID): "MainThread"} | ({str(TID + 1): "rival"} if rival else {}),
    )  # fmt: skip
    return open_host(HostRows(sampled, FRAMES, tuple(samples)), made.record, "none")


def causes_of(made: Made, host: HostTrace | Unavailable) -> GapCauses:
    traced = prepare(made.rows, made.record, attribute(made.rows, made.record), "x")
    found = gap_causes(traced, made.rows, made.record, host)
    assert isinstance(found, GapCauses)
    gaps = idle_gaps(traced.timeline)
    assert not isinstance(gaps, Unavailable)
    assert sum(c.total_ns for c in found.causes) == found.total_ns == gaps.total_ns
    assert sum(c.share for c in found.causes) == pytest.approx(1)
    _each_gap_adds_up(made, traced, host, found)
    return found


def _each_gap_adds_up(
    made: Made, traced: TracedRound, host: HostTrace | Unavailable, found: GapCauses
) -> None:
    judged = judge(traced, made.rows, made.record, host)
    assert isinstance(judged, GapJudge) and not isinstance(traced.timeline, Unavailable)
    start, end, *_ = between_pieces(traced.timeline)
    totals: Counter[str] = Counter()
    for a, b in zip(start.tolist(), end.tolist(), strict=True):
        parts = judged.of(a, b)
        assert sum(parts.values()) == b - a and list(parts.values()) == sorted(parts.values())[::-1]
        totals.update(parts)
        assert judged.of(a, b + 1) == {} == judged.of(a + 1, b)
    for c in found.causes:  # a pool is shared out to whole ns, a single gap too
        assert totals[c.cause] == pytest.approx(c.total_ns, abs=len(start))


def test_launch_bound() -> None:
    made = make_trace(4, burst(0, 100, 10_000), STEP, prefill=(K(0, 700),))
    found = causes_of(made, host_of(made, {0: (2,)}))
    assert found.causes[0].cause == "launch" and found.causes[0].share > 0.95
    assert "launch-bound" in found.verdict
    # A frame of no framework counts as launching too, while work keeps beginning.
    lines = {i * 100_000: ((4,), (9,), (6,))[i % 3] for i in range(20)}
    plain = causes_of(made, host_of(made, lines))
    assert plain.causes[0].cause == "launch"


def test_one_native_call_is_not_resolved() -> None:
    """All samples in one line of which nothing is known: no cause, no "computing on the host"."""
    made = make_trace(4, burst(0, 100, 10_000), STEP, prefill=(K(0, 700),))
    host = host_of(made, {0: (4,)})
    assert isinstance(host, HostTrace) and host.one_call == FRAMES[4]
    assert host.report.kinds_ms_per_step == {"native": pytest.approx(2.0)}
    assert "not resolved" in host.report.verdict and "computing" not in host.report.verdict
    found = causes_of(made, host)
    assert found.causes[0].cause == "unknown" and found.causes[0].share > 0.95
    assert "Engine.detokenise (engine.py:60)" in found.verdict
    # Less than half of the samples in it: the rest tells what the engine does.
    mixed = host_of(made, {0: (4,), 900_000: (3,), 1_500_000: (6,)})
    assert isinstance(mixed, HostTrace) and mixed.one_call is None
    # Arithmetic is no call: "n = n * 7" is the body of a loop, computing on the host.
    loop = host_of(made, {0: (6,)})
    assert isinstance(loop, HostTrace) and loop.one_call is None
    assert loop.report.kinds_ms_per_step == {"host": pytest.approx(2.0)}
    # Native frames were sampled: they say what the call does.
    assert one_call(host.samples) is None  # by now of kind native
    few = host_of(make_trace(1, burst(0, 100, 10_000), STEP), {0: (4,)}, every=200_000)
    assert isinstance(few, HostTrace) and few.one_call is None


def test_few_samples_are_no_verdict() -> None:
    causes = [CauseTime("launch", 60, 0.6, 0.6), CauseTime("host", 40, 0.4, 0.4)]
    assert "the largest part (60% ± 24%) is launch-bound" in _verdict(causes, 1.0, 16)
    assert "too few samples to be sure" in _verdict(causes, 1.0, 5)
    assert "mostly launch-bound: the GPU waited" in _verdict(causes, 1.0, 1000)
    assert "mostly launch-bound: the GPU waited" in _verdict(causes, 1.0)


def test_each_long_gap_has_its_own_cause() -> None:
    kernels = (*burst(600_000, 5, 500), *burst(1_400_000, 5, 500))
    made = make_trace(4, kernels, STEP, prefill=(K(0, 700),))
    # Before the first kernel: detokenising. Between: asleep. At the end: reading the token back.
    host = host_of(made, {0: (4,), 652_500: (5,), 1_452_500: (3,)})
    found = {c.cause: c for c in causes_of(made, host).causes}
    assert found["host"].ms_per_step == pytest.approx(0.6, rel=0.05)
    assert found["wait"].ms_per_step == pytest.approx(0.75, rel=0.05)
    assert found["sync"].ms_per_step == pytest.approx(0.55, rel=0.05)


def test_gil_rival() -> None:
    made = make_trace(4, burst(1_500_000, 5, 500), STEP, prefill=(K(0, 700),))
    lines = {i * 100_000: ((4,), (9,), (6,))[i % 3] for i in range(20)}
    found = {c.cause: c for c in causes_of(made, host_of(made, lines, rival=0.9)).causes}
    assert found["gil"].share == pytest.approx(0.9, abs=0.05)
    assert found["host"].share == pytest.approx(0.1, abs=0.05)


def test_without_samples_and_calls_the_cause_is_unknown() -> None:
    made = make_trace(4, burst(0, 10, 10_000), STEP, prefill=(K(0, 700),))
    found = causes_of(made, Unavailable("py-spy is not installed"))
    assert [c.cause for c in found.causes] == ["unknown"]
    assert "py-spy is not installed" in found.basis


def test_inside_one_graph_launch_it_is_the_device() -> None:
    kernels = tuple(K(100_000 + i * 12_000, 10_000, graph=True) for i in range(20))
    made = make_trace(4, kernels, STEP, prefill=(K(0, 700),))
    found = {c.cause: c for c in causes_of(made, host_of(made, {0: (3,)})).causes}
    assert found["device"].total_ns == 4 * 19 * 2_000
    assert found["sync"].total_ns > 0


def api(made: Made, calls: list[tuple[str, int, int]]) -> ApiRows:
    """The trace's launches (from the factory) and more calls, ns after each decode step's begin."""
    old = made.rows.api
    rows = [
        (begin + start, begin + end, name)
        for begin in made.record.stamps_ns[:-1]
        for name, start, end in calls
    ]
    names = {name: i for i, (name, _, _) in enumerate(calls, 2)}
    start = np.concatenate([old.start_ns, [r[0] for r in rows]]).astype(np.int64)
    order = np.argsort(start, kind="stable")

    def column(first, more) -> np.ndarray:
        return np.concatenate([first, np.array(more, np.int64)])[order]

    count = len(rows)
    return ApiRows(
        start_ns=start[order],
        end_ns=column(old.end_ns, [r[1] for r in rows]),
        pid=column(old.pid, [PID] * count),
        tid=column(old.tid, [TID] * count),
        correlation=column(old.correlation, range(10**6, 10**6 + count)),
        event_class=column(old.event_class, [0] * count),
        name_id=column(old.name_id, [names[r[2]] for r in rows]),
        names={**old.names, **{i: n for n, i in names.items()}},
    )


def test_api_calls_are_exact() -> None:
    """One kernel a step, launched at once; then calls of known length and one long pause."""
    made = make_trace(3, (K(10, 1_000),), STEP, prefill=(K(0, 700),), api=True)
    calls = [
        ("cudaStreamSynchronize_v3020", 2_000, 502_000),
        ("cudaMalloc_v3020", 502_100, 702_100),
        ("cudaGraphExecKernelNodeSetParams_v10010", 702_200, 902_200),
    ]
    made.rows.api = api(made, calls)
    found = {c.cause: c.total_ns for c in causes_of(made, Unavailable("none")).causes}
    assert found["sync"] == 3 * 500_000
    assert found["allocator"] == 3 * 200_000
    assert found["graph update"] == 3 * 200_000
    # From the last call to the next step's launch nothing was called for over 1 ms.
    assert found["host"] == pytest.approx(3 * (STEP - 902_200), rel=0.01)
    # Samples say what that pause was.
    asleep = {c.cause: c.total_ns for c in causes_of(made, host_of(made, {0: (5,)})).causes}
    assert asleep["wait"] == found["host"] and "host" not in asleep


def test_work_launched_before_the_gap_is_the_devices() -> None:
    kernels = (K(1_000, 10_000), K(20_000, 10_000))
    made = make_trace(3, kernels, STEP, prefill=(K(0, 700),), api=True)
    found = {c.cause: c.total_ns for c in causes_of(made, Unavailable("none")).causes}
    assert found["device"] == 3 * 9_000


@given(
    st.lists(st.tuples(st.integers(0, 1_900_000), st.integers(1, 99_000)), min_size=1, max_size=30),
    st.integers(20_000, 700_000),
    st.sampled_from([(2,), (3,), (4,), (5,), (8,), ()]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_causes_always_add_up(
    kernels: list[tuple[int, int]], every: int, stack: tuple[int, ...], calls: bool
) -> None:
    made = make_trace(
        3, tuple(K(at, length) for at, length in kernels), STEP, prefill=(K(0, 700),), api=calls
    )
    causes_of(made, host_of(made, {0: stack}, every=every))


@given(
    st.integers(0, 10**15),
    st.dictionaries(st.sampled_from(["host", "sync", "wait"]), st.floats(1e-6, 1e6), min_size=1),
)
def test_share_out_adds_up(total: int, weights: dict) -> None:
    parts = share_out(total, weights)
    assert sum(parts.values()) == total
    assert all(value >= 0 for value in parts.values())


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("cudaLaunchKernel_v7000", "launch"),
        ("cudaMemcpyAsync_v3020", "launch"),
        ("cudaMemcpy_v3020", "sync"),
        ("cuMemcpyDtoH_v2", "sync"),
        ("cudaEventSynchronize_v3020", "sync"),
        ("cuGraphLaunch", "launch"),
        ("cuGraphExecUpdate_v2", "graph update"),
        ("cudaFree_v3020", "allocator"),
        ("cuMemAlloc_v2", "allocator"),
    ],
)
def test_call_names(name: str, cause: str) -> None:
    assert call_cause(name) == cause


def test_stacks_and_whose_frames_they_are() -> None:
    assert kind_of([FRAMES[8], FRAMES[2]]) == "allocator"
    assert kind_of([FRAMES[4]]) == "host"
    llama = HostFrame(92, "LlamaContext.decode", "/x/llama_cpp/_internals.py", 329, "")
    assert kind_of([llama]) == "host"
    assert kind_of([replace(llama, source="code = llama_cpp.llama_decode(")]) == "launch"
    # Native frames between a library and the Python line that called it are never in the way.
    deep = [HostFrame(n, f"at::native::part{n}", "libtorch_cpu.so", 0, "") for n in range(20)]
    line = HostFrame(90, "forward", "/site-packages/engine/model.py", 9, "y = F.linear(x, w)")
    assert kind_of([*deep, line]) == "launch"
    wait = HostFrame(91, "cudaStreamSynchronize", "libcudart.so.13", 0, "")
    assert kind_of([*deep, wait, line]) == "sync"
    assert [origin(FRAMES[n]) for n in (1, 2, 7, 8, 9)] == [
        "engine", "library", "llmprof", "native", "python",
    ]  # fmt: skip
    # Recursion counts once a stack; the engine's own frames come first.
    stacks = [((FRAMES[2], FRAMES[1], FRAMES[1]), 3.0), ((FRAMES[4], FRAMES[1]), 1.0)]
    times = {t.label: t for t in frame_times(stacks, 8.0)}
    assert times["Engine.decode_step (engine.py)"].inclusive_share == 1
    assert times["Linear.forward (linear.py)"].self_ms_per_step == 6
    assert [t.origin for t in frame_times(stacks, 8.0)] == ["engine", "engine", "library"]
    tree = flame(stacks)
    (outer,) = tree.children.values()
    assert outer.weight == 4 and sum(c.weight for c in outer.children.values()) == 4


def test_no_sample_in_a_step_is_a_reason() -> None:
    made = make_trace(2, burst(0, 3, 100), STEP, prefill=(K(0, 700),))
    empty = HostRows(HostRound(1, 1, False, False, 0, 0, 0, 1, 1, 0, 0), {}, ())
    assert isinstance(open_host(empty, made.record, "none"), Unavailable)
    late = array("q", made.record.stamps_ns)
    assert len(late) == 3


def test_a_plurality_is_not_called_most() -> None:
    causes = (CauseTime("launch", 38, 0.38, 0.38), CauseTime("device", 33, 0.33, 0.33))
    assert "the largest part (38%) is launch-bound" in _verdict(causes, 1.0)
    assert "mostly launch-bound: the GPU waited" in _verdict(
        (CauseTime("launch", 9, 0.9, 0.9),), 1.0
    )
