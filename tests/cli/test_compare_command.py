"""``llmprof compare``: two engines of one run, two runs, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmprof.analysis.timing.compare import Comparison
from llmprof.analysis.timing.stats import Estimate
from llmprof.cli.files.gate import parse_gate
from llmprof.errors import UsageError
from llmprof.records import Unavailable

QUICK = ["--prompt-len", "8", "--decode-len", "8", "--rounds", "6", "--traced-steps", "0"]


def record(llmprof, name: str, *engines: str, more: tuple[str, ...] = ()) -> None:
    spec = [part for engine in engines for part in ("--engine", engine)]
    done = llmprof("--headless", *spec, *QUICK, *more, "-o", name)
    assert done.returncode == 0, done.stderr


def test_engines_of_one_run(llmprof) -> None:
    record(llmprof, "run.sqlite", "fake:sleep_us=1000", "fake:sleep_us=30000")
    done = llmprof("compare", "run.sqlite")
    assert done.returncode == 0, done.stderr
    assert "fake:sleep_us=1000 is" in done.stdout and "faster" in done.stdout
    assert "no waterfall: no traced pass" in done.stdout
    by_name = llmprof(
        "compare", "run.sqlite:fake:sleep_us=30000", "run.sqlite:fake:sleep_us=1000", "--json"
    )
    pair = json.loads(by_name.stdout)["pairs"][0]
    assert pair["paired"] and pair["tok_s_ratio"]["low"] > 1


def test_two_runs_and_the_gate(llmprof) -> None:
    record(llmprof, "old.sqlite", "fake:label=it,sleep_us=1000")
    record(llmprof, "new.sqlite", "fake:label=it,sleep_us=30000")
    done = llmprof("compare", "old.sqlite", "new.sqlite", "--fail-on", "tok_s<98%")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "gate failed: tok_s<98%: it (B) / it (A) tok_s 0." in done.stderr
    assert "limit < 0.980" in done.stderr
    assert "the runs did not take turns" in done.stdout
    back = llmprof("compare", "new.sqlite", "old.sqlite", "--fail-on", "tok_s<98%")
    assert back.returncode == 0, back.stderr
    assert "gate passed: tok_s<98%" in back.stderr
    gates = ("--fail-on", "tok_s<98%", "--fail-on", "ttft>100000%")
    both = llmprof("compare", "old.sqlite", "new.sqlite", *gates[:2], "--fail-on", "ttft>900%")
    assert both.returncode == 4 and len(both.stderr.splitlines()) == 2
    bad = llmprof("compare", "old.sqlite", "new.sqlite", "--fail-on", "speed<1", *gates[:2])
    assert bad.returncode == 2 and "speed<1" in bad.stderr
    huge = llmprof("compare", "old.sqlite", "new.sqlite", *gates)
    assert huge.returncode == 2 and "ratio of B to A" in huge.stderr


def test_a_gate_that_cannot_tell_is_no_pass(llmprof) -> None:
    """Three rounds have no interval."""
    for name, step in (("a", 1000), ("b", 30000)):
        record(llmprof, f"{name}.sqlite", f"fake:label=it,sleep_us={step}", more=("--rounds", "3"))
    done = llmprof("compare", "a.sqlite", "b.sqlite", "--fail-on", "tok_s<98%")
    assert done.returncode == 5
    assert "gate inconclusive: tok_s<98%: it (B) / it (A) tok_s 0." in done.stderr


@pytest.mark.parametrize(
    ("value", "low", "high", "outcome"),
    [(0.9, 0.8, 0.95, "failed"), (0.97, 0.93, 1.02, "inconclusive"), (0.99, 0.98, 0.995, "passed"),
     (1.2, 1.1, 1.3, "passed"), (0.9, None, None, "inconclusive")],
)  # fmt: skip
def test_three_outcomes(value: float, low: float | None, high: float | None, outcome: str) -> None:
    none = Unavailable("two rounds")
    ratio = Estimate(value, none if low is None else low, none if high is None else high)
    pair = Comparison("old", "new", True, 9, ratio, ratio, True, "")
    found, line = parse_gate("tok_s<98%").judge(pair)
    assert found == outcome
    assert line.startswith(f"new / old tok_s {value:.3f}") and "limit < 0.980" in line


def test_different_workloads_are_not_compared(llmprof) -> None:
    record(llmprof, "a.sqlite", "fake")
    record(llmprof, "b.sqlite", "fake", more=("--seed", "5"))
    done = llmprof("compare", "a.sqlite", "b.sqlite")
    assert "different prompt ids" in done.stdout
    gated = llmprof("compare", "a.sqlite", "b.sqlite", "--fail-on", "tok_s<98%")
    assert gated.returncode == 2
    assert "different prompt ids" in gated.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.sqlite"], "none.sqlite"),
        (["one.sqlite"], "one engine only"),
        (["one.sqlite:nobody", "one.sqlite:fake"], "nobody"),
        (["one.sqlite", "one.sqlite", "--fail-on", "speed<1"], "--fail-on speed<1"),
        (["one.sqlite", "one.sqlite", "--fail-on", "tok_s<200"], "ratio of B to A"),
        (["one.sqlite", "fake"], "one.sqlite:fake"),
    ],
)
def test_bad_input_is_one_line(llmprof, arguments: list[str], words: str) -> None:
    record(llmprof, "one.sqlite", "fake")
    done = llmprof("compare", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_gate_expressions() -> None:
    assert (parse_gate("tok_s<98%").limit, parse_gate("tok_s < 0.98").limit) == (0.98, 0.98)
    assert not parse_gate("ttft>105%").below
    for text in ("", "tok_s", "tok_s<", "tok_s<x", "p99>1", "tok_s<98%; rm"):
        with pytest.raises(UsageError):
            parse_gate(text)


def test_kernels_of_a_recorded_run(llmprof) -> None:
    """Eager against CUDA-graph torch on an H100: the difference is idle time."""
    fixture = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
    if not fixture.exists():
        pytest.skip("tests/fixtures/h100_graph.sqlite is absent")
    found = json.loads(llmprof("compare", str(fixture), "--json").stdout)
    fall = found["waterfalls"][0]["timing"]
    assert fall["parts"][0]["category"] == "idle"
    assert sum(part["delta_ns"] for part in fall["parts"]) == fall["delta_ns"] < 0
