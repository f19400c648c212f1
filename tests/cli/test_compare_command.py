"""``llmprof compare``: two engines of one run, two runs, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmprof.cli.compare_command import parse_gate
from llmprof.errors import UsageError

QUICK = ["--prompt-len", "8", "--decode-len", "16", "--rounds", "6", "--traced-steps", "0"]


def record(llmprof, name: str, *engines: str, more: tuple[str, ...] = ()) -> None:
    spec = [part for engine in engines for part in ("--engine", engine)]
    done = llmprof("--headless", *spec, *QUICK, *more, "-o", name)
    assert done.returncode == 0, done.stderr


def test_engines_of_one_run(llmprof) -> None:
    record(llmprof, "run.sqlite", "fake:step_us=500", "fake:step_us=1000")
    done = llmprof("compare", "run.sqlite")
    assert done.returncode == 0, done.stderr
    assert "fake:step_us=500 is" in done.stdout and "faster" in done.stdout
    assert "no waterfall: no traced pass" in done.stdout
    by_name = llmprof(
        "compare", "run.sqlite:fake:step_us=1000", "run.sqlite:fake:step_us=500", "--json"
    )
    pair = json.loads(by_name.stdout)["pairs"][0]
    assert pair["paired"] and pair["tok_s_ratio"]["low"] > 1


def test_two_runs_and_the_gate(llmprof) -> None:
    record(llmprof, "old.sqlite", "fake:label=it,step_us=500")
    record(llmprof, "new.sqlite", "fake:label=it,step_us=2500")
    done = llmprof("compare", "old.sqlite", "new.sqlite", "--fail-on", "tok_s<98%")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "gate failed: tok_s<98%" in done.stderr
    assert "the runs did not take turns" in done.stdout
    back = llmprof("compare", "new.sqlite", "old.sqlite", "--fail-on", "tok_s<98%")
    assert back.returncode == 0, back.stderr


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
