"""Steps from the device work alone: right borders, or none with a reason."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import decode_worlds
import numpy as np
import pytest
import step_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from step_factory import Model, Program, requests, step

from llmprof.analysis.steps.detect import Detection, detect, step_of_rows
from llmprof.analysis.steps.events import Events, events_of
from llmprof.analysis.steps.found import described, stretches
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.records.steps import (
    StepChoice,
    counted,
)
from llmprof.runfile.reader import RunFileReader

FIXTURES = Path(__file__).parents[2] / "fixtures"


def borders(found: Detection) -> np.ndarray:
    return np.unique(np.concatenate([found.begin, found.end]))


@pytest.mark.parametrize("hidden", [False, True], ids=["names", "hidden"])
def test_borders_of_many_programs(hidden: bool) -> None:
    """Precision and recall over all of them, and of each alone."""
    right = seen = true = 0
    for name in step_factory.SCENARIOS:
        events, truth = step_factory.make(name, 3, hidden)
        found = detect(events)
        one = step_factory.quality(borders(found), truth)
        assert one[0] >= 0.95 * one[2], (name, one, found.reason)
        assert one[0] >= 0.95 * one[1], (name, one)
        right, seen, true = right + one[0], seen + one[1], true + one[2]
    assert len(step_factory.SCENARIOS) * 2 >= 30
    assert right >= 0.99 * true and right >= 0.99 * seen


def test_borders_of_programs_drawn_at_random() -> None:
    """Other models, hosts and seeds than the rules were made on (``docs/steps.md``)."""
    sums = np.zeros(3, int)
    for name in (*decode_worlds.WORLDS, *decode_worlds.LATER):
        events, truth = decode_worlds.make(name, 11)
        found = detect(events)
        one = truth.judge(events, found)
        assert one[0] >= 0.95 * one[1] and (one[0] >= 0.95 * one[2]), (name, one, found.reason)
        sums += one
    assert sums[0] >= 0.99 * sums[1] and sums[0] >= 0.99 * sums[2]


@pytest.mark.parametrize("fixture", ["h100_graph", "h100_host"])
def test_recordings_of_an_h100_with_their_stamps_hidden(fixture: Path) -> None:
    path = FIXTURES / f"{fixture}.sqlite"
    with RunFileReader(path) as reader:
        traced = [r for r in reader.run_data().rounds if r.pass_name == "traced"]
        assert traced
        for record in traced:
            events = events_of(reader.trace_rows(record))
            found = detect(events)
            assert found.evidence is not None, found.reason
            stamps = np.searchsorted(events.start_ns, record.stamps_ns)
            assert borders(found).tolist() == stamps.tolist()
            assert found.decode.all() and found.evidence.repeats == record.steps


def test_evidence_says_on_what_it_rests() -> None:
    events, _ = step_factory.make("eager")
    evidence = detect(events).evidence
    assert evidence is not None
    per_step = 1 + 1 + 24 * 12 + 2 + 2
    assert abs(evidence.period - per_step) <= 24  # split attention has a kernel more a layer
    assert evidence.repeats >= 115
    assert 0.4 < evidence.coverage <= 1
    assert "a copy to the host each" in evidence.signs and "layers inside" in evidence.signs


def refusal(p: Program) -> str:
    found = detect(p.events())
    assert found.evidence is None and not len(found)
    assert found.reason
    return found.reason


def test_refused_below_three_repeats() -> None:
    program = Program(0)
    step(program, Model(), 100, 100, prefill=True)
    for n in range(2):
        step(program, Model(), 100 + n)
    assert "needed" in refusal(program) or "layer" in refusal(program)


def test_one_step_is_not_its_layers() -> None:
    program = Program(0)
    step(program, Model(layers=40), 100)
    assert "it may be a layer" in refusal(program)


def test_experts_are_no_sampling() -> None:
    """A mixture of experts chooses by a top-k in every layer."""
    program = Program(0)
    step(program, Model(layers=40, experts=True), 100)
    refusal(program)


def test_training_is_no_decoding() -> None:
    program = Program(0)
    for _ in range(20):
        for _ in range(12):
            program.run("gemm_forward", 9000)
            program.run("relu", 2000)
        for _ in range(12):
            program.run("relu_backward", 3000)
            program.run("gemm_wgrad", 9000)
        program.run("multi_tensor_apply_adam", 9000)
        program.run("[loss to host]", 1500, 500, 4, step_factory.TO_HOST)
        program.wait(20_000)
    assert "training" in refusal(program)


def test_nothing_repeats() -> None:
    program = Program(0)
    for n in range(500):
        program.run(f"only_once_{n}", 1000)
    assert "repeats" in refusal(program)
    assert detect(Events(*np.empty((8, 0), np.int64), names=())).reason == "there is no device work"


def test_a_second_stream_that_decodes_is_told() -> None:
    events, _ = decode_worlds.make("two threads", 101)
    left_out = described(events, detect(events)).left_out
    assert "stream 31 decodes on its own, 70 steps of 364 kernels and copies in" in left_out[-1]


def test_a_prefill_is_no_decode_step() -> None:
    program = Program(5)
    requests(program, Model(), 3, 30)
    events = program.events()
    found = detect(events)
    rounds = stretches(events, found)
    assert len(rounds) == 3  # pauses of 40 ms
    phases = [[s.label.phase for s in part] for part in rounds]
    assert [part.count("decode") for part in phases] == [30, 30, 30]
    # Where the very first prefill began is not to be seen.
    assert sum(part.count("prefill") for part in phases) >= 2
    for part in rounds:
        for one, other in pairwise(part):
            assert one.start_ns < one.end_ns == other.start_ns


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_work_is_cut_into_disjoint_steps_or_refused(data: st.DataObject) -> None:
    """No input fails; borders are sorted; every row is in at most one step."""
    draw = data.draw
    size = draw(st.integers(0, 400))
    source = np.random.default_rng(draw(st.integers(0, 2**32)))
    period = draw(st.integers(1, 60))
    names = draw(st.integers(1, 12))
    pattern = source.integers(0, names, period)
    name = pattern[np.arange(size) % period].astype(np.int64)
    strays = source.random(size) < draw(st.sampled_from([0.0, 0.02, 0.5]))
    name[strays] = source.integers(0, names, int(strays.sum()))
    what = source.integers(0, 5, names)[name]
    start = np.cumsum(source.integers(0, draw(st.sampled_from([1, 10, 10**9])), size))
    events = Events(
        start_ns=start,
        end_ns=start + source.integers(0, 5000, size),
        name=name,
        what=what,
        size=source.integers(0, draw(st.sampled_from([2, 2**40])), size),
        stream=source.integers(0, draw(st.integers(1, 3)), size),
        node=source.integers(0, 3, size) * draw(st.integers(0, 1)),
        launch=source.integers(0, 50, size),
        names=[draw(st.text(max_size=20)) for _ in range(names)],
    )
    found = detect(events)
    assert (found.evidence is None) == (len(found) == 0) == bool(found.reason)
    for stream in np.unique(found.stream):
        mine = found.stream == stream
        begin, end = found.begin[mine], found.end[mine]
        assert (begin < end).all() and (end[:-1] <= begin[1:]).all()
        assert len(begin) == 0 or (begin[0] >= 0 and end[-1] <= size)
    inside = step_of_rows(found, size)
    assert len(inside) == size and (inside >= -1).all()
    if len(found):
        for part in stretches(events, found):
            assert all(s.start_ns <= s.end_ns for s in part)


def test_a_file_without_ranges_gets_its_steps(tmp_path: Path) -> None:
    """From the command line's entry on: read, detected, attributed, grouped."""
    from detected_file import write

    path = tmp_path / "x.sqlite"
    truth = write(path, steps=12)
    data = open_run(path)
    (engine,) = data.engines
    found = data.steps_found[engine.engine_id]
    assert found.source == "detected" and "no NVTX ranges" in found.words
    (record,) = data.rounds
    assert record.steps_from == "detected"
    decode = [
        s
        for s, counts in zip(record.stamps_ns, counted(record.labels, record.steps), strict=False)
        if counts
    ]
    assert decode == truth[: len(decode)] and len(decode) >= 11
    report = RunTrace(path, data).engines[0].kernels
    assert report.method == "time"
    assert {g.kind for g in report.groups if g.counted} == {"eager"}
    assert all(s.kernels + s.copies == report.steps[3].kernels + 1 for s in report.steps[3:6])
    none = open_run(path, StepChoice("none"))
    assert none.rounds[0].steps == 0 and "--steps none" in none.warnings[0].text
    assert open_run(path, StepChoice("ranges")).rounds[0].steps == 0
