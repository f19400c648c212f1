"""Each rule on a planted fault, and all of them silent on a healthy run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from findings_factory import (
    HEALTHY,
    NO,
    causes,
    eager,
    steps_ms,
    subject,
    with_small_kernels,
)
from vllm_twin import write_twin

from llmprof.analysis.findings.ranked import (
    MOST,
    Findings,
    find,
    ranked,
    rules,
    step_words,
    subject_of,
)
from llmprof.analysis.findings.subject import Finding, Subject
from llmprof.analysis.host.causes import GapCauses
from llmprof.analysis.timing.conditions import Conditions, Span
from llmprof.analysis.timing.cpu import CpuConditions
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.exports.json.findings import LIMIT, to_text
from llmprof.exports.text.findings_table import render
from llmprof.records import Unavailable

FIXTURES = Path(__file__).parents[1] / "fixtures"


def only(found: list[Finding], cause: str) -> Finding:
    assert [f.cause for f in found] == [cause]
    return found[0]


def test_a_healthy_run_has_no_finding() -> None:
    healthy = subject()
    assert rules(healthy) == []
    assert healthy.idle_ms == pytest.approx(0.2, abs=0.01)
    words = step_words(healthy)
    assert words.parts[0][0] == "quantised GEMV/GEMM"
    assert sum(ms for _, ms in words.parts) == pytest.approx(words.step_ms, rel=1e-3)


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_noise_alone_is_no_finding(rounds: int) -> None:
    assert rules(subject(table=steps_ms(rounds=rounds))) == []


def test_nothing_known_is_no_finding() -> None:
    bare = subject(round=NO, kernels=NO, gaps=NO, causes=NO, roles=NO)
    assert rules(bare) == []
    assert step_words(bare).parts == ()


# --- idle time --------------------------------------------------------------------------------

LATE_US = 3200 + 226 * 10


def late(**changes) -> Subject:
    """Every kernel 10 µs late: 2.3 ms a step."""
    return subject(eager(), step_us=LATE_US, **changes)


def test_launch_bound_by_idle_time_between_kernels() -> None:
    found = only(rules(late()), "launch-bound")
    assert found.ms_per_token == pytest.approx(226 * 0.010, rel=0.15)
    assert "226 launches a step" in found.says
    assert found.confidence == "medium"
    assert found.gap


def test_launch_bound_by_the_host_s_samples() -> None:
    idle = late().idle_ms
    found = only(rules(late(causes=causes(launch=idle))), "launch-bound")
    assert found.ms_per_token == pytest.approx(idle, rel=0.02)
    assert found.confidence == "high"
    assert only(rules(late(causes=causes(samples=9, launch=idle))), "launch-bound").confidence == (
        "low"
    )


def test_idle_time_that_only_tracing_adds_is_not_to_be_won() -> None:
    """Traced 5.5 ms a step, untraced 3.0: the GPU was never late without the tracer."""
    assert rules(late(table=steps_ms(step=3.0))) == []


def test_a_graph_is_not_launch_bound_however_idle() -> None:
    slow = subject(step_us=5000)
    found = only(rules(slow), "idle")
    assert "why was not recorded" in found.says
    assert found.confidence == "low"
    assert found.next == "llmprof --engine mine --trace full"


@pytest.mark.parametrize(("cause", "name"), [("sync", "sync"), ("host", "host work")])
def test_idle_time_by_its_cause(cause: str, name: str) -> None:
    slow = subject(step_us=5000)
    known = replace_causes(slow, **{cause: slow.idle_ms})
    found = only(rules(known), name)
    assert found.ms_per_token == pytest.approx(slow.idle_ms, rel=0.02)
    assert "between steps" in found.says


def test_the_command_for_host_work_is_one_that_can_work() -> None:
    """An export of stacks needs some; a recording without any is made again with them."""
    slow = subject(step_us=5000)
    sampled = replace_causes(slow, host=slow.idle_ms)
    assert only(rules(sampled), "host work").next.startswith("llmprof export run.sqlite --to speed")
    alone = replace(sampled, causes=replace(sampled.causes, samples=0, basis="API calls alone"))
    assert only(rules(alone), "host work").next == "llmprof open run.sqlite"
    recorded = replace(alone, command=(), program=("python", "my loop.py"))
    made = only(rules(recorded), "host work").next
    assert made == "llmprof record --host -- python 'my loop.py'"
    long = replace(recorded, program=("python", *["x" * 80] * 4))
    assert only(rules(long), "host work").next == "llmprof record --host -- …"


def replace_causes(planted: Subject, **ms: float) -> Subject:
    return replace(planted, causes=causes(**ms))


def test_steps_that_fell_off_the_graph() -> None:
    whole = subject(steps=8)
    report = whole.kernels
    steps = [
        replace(s, kind="eager", launches=226, wall_ns=9_200_000) if s.step in (3, 6) else s
        for s in report.steps
    ]
    found = only(rules(replace(whole, kernels=replace(report, steps=tuple(steps)))),
                 "fell off the graph")  # fmt: skip
    assert found.ms_per_token == pytest.approx(2 * (9.2 - 3.2) / 8)
    assert found.step == 3
    assert "2 of 8 steps" in found.says
    # An engine that is eager throughout has fallen off nothing.
    every = tuple(replace(s, kind="eager") for s in report.steps)
    assert rules(replace(whole, kernels=replace(report, steps=every))) == []


# --- a graph, and the host late with it ---------------------------------------------------------


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vllm")
    for kind in ("eager", "graphs"):
        write_twin(folder / f"{kind}.sqlite", kind)
    return {kind: folder / f"{kind}.sqlite" for kind in ("eager", "graphs")}


def test_a_graph_that_the_host_launches_late(vllm: dict[str, Path]) -> None:
    """One graph and 19 kernels a step, and the host late with most of them."""
    trace = RunTrace(vllm["graphs"], open_run(vllm["graphs"]))
    found = find(trace)
    first = found.found[0]
    gaps = trace.engines[0].causes
    assert isinstance(gaps, GapCauses) and gaps.replay is not None
    launch = next(c.ms_per_step for c in gaps.causes if c.cause == "launch")
    assert first.cause == "late replay" and first.ms_per_token == pytest.approx(launch)
    assert gaps.replay.launch_ms == pytest.approx(launch)
    # As measured: a call of 201 µs, 205 µs from its begin to the graph's first kernel.
    assert gaps.replay.call_us == pytest.approx(201.3, abs=0.1)
    assert gaps.replay.call_ms == pytest.approx(0.2046, abs=0.002)
    assert gaps.replay.before_ms > gaps.replay.call_ms > gaps.replay.behind_ms
    assert (gaps.replay.singles, gaps.replay.between_ms) == (19, 0)
    assert gaps.replay.sync_ms == pytest.approx(0.0059, abs=0.0002)
    assert "launch-bound" not in gaps.verdict and "late replay" in gaps.verdict
    assert "a CUDA graph would be one" not in first.says and "less host work" in first.says
    assert first.gap and first.next.startswith("llmprof record --host -- ")
    # No ns is told twice.
    idle = [f.ms_per_token for f in found.found if f.gap]
    assert sum(idle) <= gaps.ms_per_step
    told = json.loads(to_text("r", found))["findings"][0]
    assert told["cause"] == "late replay" and told["ms_per_token"] == pytest.approx(launch, 1e-3)


def test_a_host_that_waits_for_the_gpu_could_run_ahead(vllm: dict[str, Path]) -> None:
    trace = RunTrace(vllm["graphs"], open_run(vllm["graphs"]))
    data, engine = trace.runs[0][0], trace.runs[0][0].engines[0]
    one = subject_of(data, engine, trace.engines[0])
    assert isinstance(one.causes, GapCauses) and one.causes.replay is not None
    waiting = replace(one.causes, replay=replace(one.causes.replay, sync_ms=0.9))
    found = next(f for f in rules(replace(one, causes=waiting)) if f.cause == "late replay")
    assert "asynchronous scheduling" in found.says and "waits 0.90 ms" in found.evidence[1]
    # Samples tell that launches are late, not which.
    sampled = replace(one, causes=causes(launch=one.idle_ms))
    found = next(f for f in rules(sampled) if f.cause == "late replay")
    assert found.ms_per_token == pytest.approx(one.idle_ms)
    assert "while it launches the CUDA graph" not in found.says
    # Half of the idle time has no cause: nothing is said about launches.
    unsure = replace(one, causes=causes(launch=0.3, unknown=0.7))
    assert "late replay" not in [f.cause for f in rules(unsure)]


def test_few_launches_of_an_eager_step_can_be_too_late() -> None:
    """Below 50 launches a step only a recorded cause tells it."""
    few = subject(eager(HEALTHY[:20]), step_us=1000)
    few = replace(few, info=replace(few.info, cuda_graph=False))
    assert "launch-bound" not in [f.cause for f in rules(few)]
    found = only(
        [f for f in rules(replace_causes(few, launch=few.idle_ms)) if f.gap], "launch-bound"
    )
    assert "20 launches a step" in found.says and "a CUDA graph would be one" in found.says


def test_an_eager_step_is_launch_bound_still(vllm: dict[str, Path]) -> None:
    trace = RunTrace(vllm["eager"], open_run(vllm["eager"]))
    first = find(trace).found[0]
    assert first.cause == "launch-bound" and "a CUDA graph would be one" in first.says
    gaps = trace.engines[0].causes
    assert isinstance(gaps, GapCauses) and gaps.replay is None


# --- kernels ----------------------------------------------------------------------------------


def test_products_far_below_what_a_copy_reaches() -> None:
    found = only(rules(subject(gb_s=1500)), "below the ceiling")
    products = 32 * (20 + 10 + 30 + 21) + 20
    assert found.ms_per_token == pytest.approx(products / 1000 * (1 - 0.5 / 0.9), rel=1e-3)
    assert "1500 GB/s, 50% of what a copy reaches (3000)" in found.says
    assert found.next == "llmprof --engine mine --trace=kernels --bandwidth kernels"
    assert found.kernel == "gemm_half_q_half_gptq"


def test_no_ceiling_no_word_about_it() -> None:
    slow = subject(gb_s=1500)
    gone = replace(slow.bandwidth, copy_gb_s=NO, peak_gb_s=NO)
    assert rules(replace(slow, bandwidth=gone)) == []


def test_small_kernels_that_follow_one_another() -> None:
    planted = subject(with_small_kernels(3), step_us=3200 + 32 * 6)
    found = only(rules(planted), "small kernels")
    # Norm of the next layer and three sums are one run: all but the longest.
    assert found.ms_per_token == pytest.approx(32 * 3 * 2 / 1000, rel=0.05)
    assert rules(subject(with_small_kernels(0), step_us=3200)) == []


# --- the timing pass --------------------------------------------------------------------------


def test_first_steps_of_every_round() -> None:
    table = steps_ms()
    for row in table:
        row[0] *= 4
        row[1] *= 1.5
    found = only(rules(subject(table=table, timed_ns=3.2e6)), "warm-up")
    assert found.ms_per_token == pytest.approx((3 + 0.5) * 3.2 / 64, rel=0.05)
    assert "first 2 steps" in found.says
    once = steps_ms()
    once[0][0] *= 4
    assert not [f for f in rules(subject(table=once, timed_ns=3.2e6)) if f.cause == "warm-up"]


def cpu(**values: float) -> CpuConditions:
    base = {
        "cpus": 8, "own_cpus": 1.0, "other_cpus": 0.1, "steal_share": 0.0, "quota_periods": 0,
        "throttled_periods": 0, "throttled_s": 0.0, "wanted_cpus": 1,
    }  # fmt: skip
    return CpuConditions(**{**base, **values})


def slow_steps() -> list[list[float]]:
    table = steps_ms()
    for n in range(12):
        table[n % 8][7 + 4 * n] = 20.0
    table[3][40] = 46.0
    return table


def test_outliers_and_who_disturbed() -> None:
    found = only(rules(subject(table=slow_steps(), timed_ns=3.2e6)), "outliers")
    assert found.ms_per_token == pytest.approx((12 * 16.8 + 42.8) / 512, rel=0.02)
    assert "round 4, step 41: 46.00 ms" in found.evidence[0]
    assert found.confidence == "medium"
    stopped = cpu(quota_periods=100, throttled_periods=40)
    found = only(rules(subject(table=slow_steps(), timed_ns=3.2e6, cpu=stopped)), "outliers")
    assert found.confidence == "high"
    assert "quota stopped the host in 40 of 100" in found.says
    calm = only(rules(subject(table=slow_steps(), timed_ns=3.2e6, cpu=cpu())), "outliers")
    assert calm.confidence == "medium"


def test_steps_that_grow_with_the_context() -> None:
    table = [[ms + 0.01 * n for n, ms in enumerate(row)] for row in steps_ms(depth=128)]
    found = only(rules(subject(table=table, timed_ns=3.84e6)), "context")
    assert found.ms_per_token == pytest.approx(0.01 * 124 / 2, rel=0.1)
    assert "ms for 1000 tokens" in found.says
    assert found.kernel is not None
    falling = [list(reversed(row)) for row in table]
    assert not [f for f in rules(subject(table=falling)) if f.cause == "context"]


def clocks(median: float, throttle: tuple[tuple[str, float], ...]) -> Conditions:
    return Conditions(0, 50, Span(1200, median, 1980), None, None, None, throttle)


def test_throttling_has_no_number_and_comes_last() -> None:
    found = rules(subject(gb_s=1500, conditions=clocks(1400, (("power cap", 0.6),))))
    first, last = ranked(found)
    assert (first.cause, last.cause) == ("below the ceiling", "throttled")
    assert isinstance(last.ms_per_token, Unavailable)
    assert last.confidence == "high"
    assert "median 1400 of 1980" in last.evidence[1]
    assert rules(subject(conditions=clocks(1980, ()))) == []


# --- the whole --------------------------------------------------------------------------------


def test_commands_that_run_again_replace_their_option() -> None:
    healthy = subject()
    assert healthy.again("--trace", "full") == "llmprof --engine mine --trace full"
    assert replace(healthy, command=()).again("--trace", "full") == "llmprof open run.sqlite"
    odd = replace(healthy, file="a b;rm.sqlite", command=())
    assert odd.again("--trace", "full") == "llmprof open 'a b;rm.sqlite'"


@pytest.fixture(scope="module")
def h100() -> Findings:
    path = FIXTURES / "h100_graph.sqlite"
    return find(RunTrace(path, open_run(path)))


def test_eager_torch_against_its_graph_on_an_h100(h100: Findings) -> None:
    """The graph won 4.13 of these 4.11 ms: 10.47 to 6.34 ms a step."""
    first = h100.found[0]
    assert (first.engine, first.cause) == ("torch", "launch-bound")
    assert first.ms_per_token == pytest.approx(10.465 - 6.335, rel=0.02)
    graph = [f for f in h100.found if f.engine == "torch:cuda_graph=1"]
    assert [f.cause for f in graph] == ["small kernels"]
    assert h100.verdicts[0].startswith("torch:cuda_graph=1 is 1.68")
    assert len(h100.steps) == 2


def test_json_is_four_kilobytes_at_most(h100: Findings) -> None:
    one = replace(h100.found[0], says="x" * 300, evidence=("é" * 300,) * 3, next="y" * 500)
    for many in (h100, replace(h100, found=(one,) * MOST), replace(h100, found=())):
        text = to_text("r" * 3000, many)
        assert len(text.encode()) <= LIMIT
        document = json.loads(text)
        assert len(document["findings"]) + document["left_out"] == len(many.found) + many.dropped
    assert json.loads(to_text("r", h100))["findings"][0]["ms_per_token"] == pytest.approx(4.1087)


def test_text_of_others_reaches_no_terminal_as_it_is(h100: Findings) -> None:
    bad = "\x1b[2J\n\u202e"
    evil = replace(h100.found[0], engine=bad, says=bad, evidence=(bad,), next=bad, why=bad)
    text = "\n".join(render(replace(h100, found=(evil,), verdicts=(bad,)), 80))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x1b" not in to_text(bad, replace(h100, found=(evil,)))


def test_without_findings_it_says_so(h100: Findings) -> None:
    assert "nothing found" in "\n".join(render(replace(h100, found=()), 80))
