"""Which ranges are the steps, where one ends, and of what kind each is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from capture_factory import MS, Capture
from hypothesis import given, settings
from hypothesis import strategies as st
from opened import Opened

from llmprof.analysis.steps.candidates import best, judged
from llmprof.analysis.steps.marked import mark
from llmprof.analysis.view.opening import open_run, step_candidates
from llmprof.exports.json import schema
from llmprof.exports.text.table import render
from llmprof.runfile.trace.ranges import LaunchRows, range_rows


def work(made: Capture, start: int, wall: int, each: int = 10, graph: int = 0) -> None:
    """Kernels that begin 5 µs after their launches, or one graph of them."""
    slot = (wall - 200_000) // each
    launch = made.call(start + 5_000, start + 9_000, "cudaGraphLaunch_v10000") if graph else 0
    for k in range(each):
        at = start + k * slot + 20_000
        one = launch or made.call(at - 15_000, at - 10_000)
        more = {"graphNodeId": (graph << 32) + k} if graph else {"graphNodeId": None}
        made.kernel(at, at + slot - 20_000, correlation=one, **more)


def capture(path: Path, plan: list[tuple[str, int, int]]) -> Path:
    """Ranges (text, ns, kernels) one behind the other, each with its work."""
    with Capture(path) as made:
        made.process()
        made.gpu()
        now = 100 * MS
        for text, wall, kernels in plan:
            if text:
                made.range(now, now + wall - 100_000, text)
            work(made, now, wall, kernels)
            now += wall
    return path


def mean_ms(opened: Opened) -> float:
    parts = opened.first.parts
    assert not isinstance(parts, type(None)) and hasattr(parts, "step_ns")
    return parts.step_ns / 1e6


@pytest.mark.parametrize(
    "other",
    ["prefill {}", "prefill", "encode image", "execute_context_1(512)_generation_0(0)"],
)
def test_a_step_ends_at_the_next_range_of_its_level(tmp_path: Path, other: str) -> None:
    plan = []
    for n in range(24):
        if n % 6 == 3:
            plan.append((other.format(n), 60 * MS, 20))
        plan.append((f"decode {n}", 10 * MS, 10))
    opened = Opened(capture(tmp_path / "x.sqlite", plan))
    assert mean_ms(opened) == pytest.approx(10, abs=0.02)
    assert opened.kernels.kernels_per_step == 10
    assert sum(g.steps for g in opened.kernels.groups if not g.counted) == 4
    assert sum(g.steps for g in opened.kernels.groups if g.counted) == 24


def test_a_range_that_follows_every_step_is_a_part_of_it(tmp_path: Path) -> None:
    plan = []
    for _ in range(20):
        plan += [("decode", 8 * MS, 10), ("sample", 2 * MS, 2)]
    opened = Opened(capture(tmp_path / "x.sqlite", plan))
    assert mean_ms(opened) == pytest.approx(10, abs=0.1)
    assert opened.kernels.kernels_per_step == 12
    assert "sample between two is counted in" in opened.first.steps_found.words


@pytest.mark.parametrize(
    "texts",
    [
        ("execute_context_1(512)_generation_3(3)", "execute_context_0(0)_generation_4(4)"),
        ("step[EXTEND bs=1 toks=512]", "step[DECODE bs=4]"),
        ("[Executor] _forward_step 1: 1 ctx reqs, 512 ctx tokens, 3 gen reqs",
         "[Executor] _forward_step 1: 0 ctx reqs, 0 ctx tokens, 4 gen reqs"),
        ("prefill[bs=1 tok=512]", "decode[bs=4 tok=4 d=4]"),
    ],
)  # fmt: skip
def test_mixed_patterns_are_split(tmp_path: Path, texts: tuple[str, str]) -> None:
    first, other = texts
    plan = [(first, 60 * MS, 20) if n % 5 == 2 else (other, 10 * MS, 10) for n in range(30)]
    opened = Opened(capture(tmp_path / "x.sqlite", plan))
    assert mean_ms(opened) == pytest.approx(10, abs=0.02)
    decode, *_ = opened.kernels.groups
    assert decode.counted and decode.steps == 24 and decode.tokens == 96
    assert decode.tok_s == pytest.approx(400, rel=0.01)
    slow = [o for o in opened.kernels.outliers if "prefill" in o.reason]
    assert len(slow) == 6 and "512 tokens" in slow[0].reason
    document = opened.document()
    jsonschema.validate(document, json.loads(schema.text()))
    step = document["engines"][0]["tracing"]["gpu"]["steps"][2]
    assert step["kind"] in ("prefill", "mixed") and step["composition"]["context_tokens"] == 512
    assert not step["counted"]
    assert document["engines"][0]["tracing"]["steps_from"] == "marked"
    text = render(opened.report, 100, opened.trace)
    assert "not in the means and medians" in text and "NVTX ranges" in text


def test_the_outer_step_not_the_word_inside(tmp_path: Path) -> None:
    """``sample`` has a word for a step and launches one kernel of 21."""
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        for n in range(20):
            now = 100 * MS + n * 10 * MS
            made.range(now, now + 9_900_000, "gen_step")
            made.range(now + 50_000, now + 8_900_000, "forward")
            for layer in range(4):
                begin = now + 100_000 + layer * 2 * MS
                made.range(begin, begin + 2 * MS - 1000, f"layer {layer}")
            made.range(now + 9_000_000, now + 9_800_000, "sample")
            early = made.call(now - 60_000, now - 50_000)  # launched before its range
            made.kernel(now + 10_000, now + 40_000, "void copy_ids(int*)", correlation=early)
            work(made, now + 50_000, 8 * MS, 20)
            last = made.call(now + 9_200_000, now + 9_210_000)
            made.kernel(now + 9_300_000, now + 9_400_000, "void argmax()", correlation=last)
    opened = Opened(path)
    (record,) = opened.data.rounds
    assert record.steps == 20 and opened.data.info.environment["step_range"] == "gen_step"
    assert opened.kernels.kernels_per_step == 22
    assert opened.kernels.unattributed_kernels == 0
    assert opened.first.totals is not None and opened.first.totals.kernels == 20 * 22


def test_one_range_in_an_engines_format_is_a_step(tmp_path: Path) -> None:
    opened = Opened(capture(tmp_path / "x.sqlite", [("step[DECODE bs=32]", 10 * MS, 10)]))
    (group,) = opened.kernels.groups
    assert (group.steps, group.tokens, group.kernels) == (1, 32, 10)
    alone = capture(tmp_path / "y.sqlite", [("decode", 10 * MS, 10)])
    assert open_run(alone).rounds[0].steps == 0


def test_layers_alone_are_a_step_a_turn(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        for n in range(24):
            now = 100 * MS + n * 8 * MS
            for layer in range(4):
                begin = now + layer * 1_900_000
                made.range(begin, begin + 1_800_000, f"model.layers.{layer}.forward")
            work(made, now, 7_600_000)
    opened = Opened(path)
    assert opened.data.rounds[0].steps == 24 and mean_ms(opened) == pytest.approx(8, abs=0.05)
    found = opened.first.steps_found
    assert "4 texts repeat in a cycle, which is one step" in found.words
    assert any("72 ranges" in text for text in found.left_out)


@pytest.mark.parametrize("text", ["decode {}", "step {}", "token {}"])
def test_steps_that_count_anew_for_each_request_are_steps(tmp_path: Path, text: str) -> None:
    plan = [(text.format(n % 6), 10 * MS, 10) for n in range(30)]
    opened = Opened(capture(tmp_path / "x.sqlite", plan))
    assert opened.data.rounds[0].steps == 30 and mean_ms(opened) == pytest.approx(10, abs=0.05)
    assert opened.kernels.kernels_per_step == 10


def test_ranges_that_overlap_are_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        for n in range(24):
            now = 100 * MS + n * 8 * MS
            made.range(now, now + 10 * MS, f"decode {n}", kind=60)
            work(made, now, 7_800_000)
    opened = Opened(path)
    assert opened.data.rounds[0].steps == 24 and mean_ms(opened) == pytest.approx(8)
    assert "23 overlap the one before" in opened.first.steps_found.words


def test_requests_are_not_their_steps(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        now = 100 * MS
        for request in range(4):
            begin = now
            for _ in range(12):
                made.range(now, now + 9_900_000, "decode token")
                work(made, now, 9_800_000)
                now += 10 * MS
            made.range(begin - 50_000, now, f"generate request {request}")
            now += 5 * MS
    found = step_candidates(path)
    assert found[0].pattern == "decode token"
    assert sum(r.steps for r in open_run(path).rounds) == 48


def test_a_step_that_fell_off_the_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        for n in range(20):
            now = 100 * MS + n * 10 * MS
            made.range(now, now + 9_900_000, f"decode {n}")
            if n == 7:  # eager: as many kernels, twice the time
                work(made, now, 9_800_000, 40)
            else:
                work(made, now, 4_900_000, 40, graph=7)
    opened = Opened(path)
    kernels = opened.kernels
    (lane,) = opened.trace.lanes.lanes
    assert lane.tracks[0].kinds == ("graph",) * 7 + ("eager",) + ("graph",) * 12
    assert {g.kind: g.steps for g in kernels.groups} == {"graph": 19, "eager": 1}
    steps = kernels.steps
    assert isinstance(steps, tuple)
    assert steps[6].kind == "graph" and steps[6].launches == 1 and steps[6].graphs == 1
    assert steps[7].kind == "eager" and steps[7].launches == 40 and steps[7].graphs == 0


def test_a_slow_eager_step_among_graphs() -> None:
    from llmprof.analysis.device.step_kinds import Launched, outliers

    ones = np.ones(6, np.int64)
    calls = Launched(ones * 1, ones, ones * 40, ones * 40, ones * 0)
    calls.launches[4] = 40
    wall = np.array([10, 10, 10, 10, 25, 10], np.int64) * MS
    found = outliers(
        ("graph",) * 4 + ("eager", "graph"), np.ones(6, bool), wall, wall // 2, calls, (),
        [False] * 6,
    )  # fmt: skip
    (slow,) = found
    assert slow.step == 5 and slow.ratio == 2.5
    assert slow.reason == "fell off the graph: eager where most are graph: 40 launches instead of 1"


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2000),
            st.integers(0, 300),
            st.integers(1, 2),
            st.integers(1, 2),
            st.sampled_from(
                ["decode 1", "decode 2", "prefill", "aten::add", "a 0", "a 1", "step[DECODE bs=2]"]
            ),
        ),
        max_size=60,
    ),
    launches=st.lists(st.tuples(st.integers(0, 2300), st.integers(1, 2)), max_size=60),
    pattern=st.sampled_from(["decode *", "*", "a *", "prefill"]),
)
def test_stretches_follow_one_another(
    rows: list[tuple[int, int, int, int, str]], launches: list[tuple[int, int]], pattern: str
) -> None:
    """Whatever the ranges: no failure, borders in order, no stretch in another."""
    ranges = range_rows(
        [(a, a + ns, process, tid) for a, ns, process, tid, _ in rows], [("", r[4]) for r in rows]
    )
    at = np.array(sorted(launches), np.int64).reshape(-1, 2)
    found = judged(ranges, LaunchRows(at[:, 0], at[:, 1]))
    chosen = best(found)
    for candidate in (None, chosen):
        for one in mark(ranges, pattern if candidate is None else candidate.pattern, candidate):
            stretches = [s for part in one.rounds for s in part]
            assert all(s.start_ns <= s.end_ns for s in stretches)
            for part in one.rounds:
                assert all(a.end_ns == b.start_ns for a, b in pairwise(part))
            assert one.taken >= len(stretches) - len(rows)
