"""``llmprof compare``: two engines of one run, two runs, and the gate."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmprof.analysis.timing.compare import Comparison
from llmprof.analysis.timing.stats import Estimate
from llmprof.analysis.view.metrics import MetricRatio
from llmprof.cli.files.gate import parse_gates
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
    assert "fake:sleep_us=1000 is" in done.stdout and "× as fast as" in done.stdout
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
    assert "the runs were not interleaved" in done.stdout
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
    [(0.9, 0.8, 0.95, "failed"), (0.97, 0.93, 1.02, "inconclusive"),
     (0.99, 0.97, 1.02, "inconclusive"), (0.99, 0.98, 0.995, "passed"),
     (1.2, 1.1, 1.3, "passed"), (0.9, None, None, "inconclusive")],
)  # fmt: skip
def test_three_outcomes(value: float, low: float | None, high: float | None, outcome: str) -> None:
    none = Unavailable("two rounds")
    ratio = Estimate(value, none if low is None else low, none if high is None else high)
    pair = Comparison("old", "new", True, 9, ratio, ratio, True, "")
    (gate,) = parse_gates(["tok_s<98%"])
    judged = gate.judge(pair, MetricRatio(ratio, 0.0))
    assert judged.outcome == outcome
    assert judged.line.startswith(f"new / old tok_s {value:.3f}")
    assert "limit < 0.980" in judged.line


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


def test_the_allowance_for_processes_is_part_of_the_interval() -> None:
    ratio = Estimate(0.985, 0.981, 0.99)
    pair = Comparison("old", "new", True, 9, ratio, ratio, True, "")
    (gate,) = parse_gates(["tok_s<98%"])
    assert gate.judge(pair, MetricRatio(ratio, 0.0)).outcome == "passed"
    judged = gate.judge(pair, MetricRatio(ratio, 0.01))
    assert judged.outcome == "inconclusive" and judged.low == pytest.approx(0.9712, abs=1e-4)


def test_a_value_without_an_interval_tells_where_it_is_far_from_the_limit() -> None:
    none = Unavailable("of a category only the mean step is known")
    pair = Comparison("old", "new", True, 9, Estimate(1, 1, 1), Estimate(1, 1, 1), False, "")
    (gate,) = parse_gates(["category:attention>1.05x"])
    found = [gate.judge(pair, MetricRatio(Estimate(v, none, none), 0)) for v in (1.2, 1.055, 1.0)]
    assert [item.outcome for item in found] == ["failed", "inconclusive", "passed"]


def test_gate_expressions() -> None:
    several = parse_gates(["tok_s<98%, tok_s < 0.98x", "ttft>105%,category:quantised GEMV/GEMM>2x"])
    assert [g.limit for g in several] == [0.98, 0.98, 1.05, 2.0]
    assert [g.metric for g in several][2:] == ["ttft_ms", "category:quantised GEMV/GEMM"]
    assert not several[2].below
    for text in (
        "",
        "tok_s",
        "tok_s<",
        "tok_s<x",
        "p99>1",
        "tok_s<98%; rm",
        "tok_s<98%,",
        "tok_s<0",
    ):
        with pytest.raises(UsageError):
            parse_gates([text])


def test_every_metric_of_a_traced_run_can_be_gated(llmprof, tmp_path: Path) -> None:
    """Eager against CUDA-graph torch on an H100."""
    fixture = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
    gates = "idle_ms>50%,busy_ms>200%,launches>10%,kernels<50%,category:attention>300%"
    done = llmprof("compare", str(fixture), "--json", "--fail-on", gates, "--junit", "gates.xml",
                   "--summary-md", "summary.md")  # fmt: skip
    found = {g["gate"]: g for g in json.loads(done.stdout)["gates"]}
    assert len(found) == 5 and done.returncode == 0, done.stderr
    assert {g["outcome"] for g in found.values()} == {"passed"}
    assert found["launches>10%"]["value"] < 0.1
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "0", "0")
    assert "passed" in (tmp_path / "summary.md").read_text()
    failed = llmprof("compare", str(fixture), "--fail-on", "idle_ms<50%,j_per_token>1.1x",
                     "--junit", "worse.xml")  # fmt: skip
    assert failed.returncode == 4 and "gate failed: idle_ms<50%" in failed.stderr
    suite = ElementTree.parse(tmp_path / "worse.xml").getroot()[0]
    assert suite.get("failures") == "1"
    none = llmprof("compare", str(fixture), "--fail-on", "category:nonsense>1x")
    assert none.returncode == 2 and "no such category; here: " in none.stderr


def test_a_baseline_is_of_its_conditions(llmprof) -> None:
    record(llmprof, "old.sqlite", "fake:label=it,sleep_us=1000")
    record(llmprof, "new.sqlite", "fake:label=it,sleep_us=1000")
    record(llmprof, "slow.sqlite", "fake:label=it,sleep_us=30000")
    record(llmprof, "other.sqlite", "fake:label=it,sleep_us=1000", more=("--decode-len", "9"))
    assert llmprof("compare", "--baseline", "main", "new.sqlite").returncode == 2
    assert llmprof("baseline", "save", "main", "old.sqlite").returncode == 0
    assert llmprof("baseline", "save", "../x", "old.sqlite").returncode == 2
    listed = llmprof("baseline", "list").stdout + llmprof("baseline", "show", "main").stdout
    assert listed.startswith("main ") and "workload: " in listed
    done = llmprof("compare", "--baseline", "main", "new.sqlite", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"][0]["a"] == "it (A)"
    # Another option of the engine is another condition.
    refused = llmprof("compare", "--baseline", "main", "slow.sqlite")
    assert refused.returncode == 2 and "sleep_us=1000 against" in refused.stderr
    across = llmprof(
        "compare", "--baseline", "main", "slow.sqlite", "--across", "--fail-on", "tok_s<98%"
    )
    assert across.returncode == 4 and "other conditions: " in across.stdout
    length = llmprof("compare", "--baseline", "main", "other.sqlite")
    assert length.returncode == 2 and "decode steps a round: 8 against 9" in length.stderr


def test_kernels_of_a_recorded_run(llmprof) -> None:
    """Eager against CUDA-graph torch on an H100: the difference is idle time."""
    fixture = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
    if not fixture.exists():
        pytest.skip("tests/fixtures/h100_graph.sqlite is absent")
    found = json.loads(llmprof("compare", str(fixture), "--json").stdout)
    fall = found["waterfalls"][0]["timing"]
    assert fall["parts"][0]["category"] == "idle"
    assert sum(part["delta_ns"] for part in fall["parts"]) == fall["delta_ns"] < 0
