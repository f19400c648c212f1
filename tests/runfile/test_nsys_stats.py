"""``nsys stats`` reads a run file as it is, and its numbers are the stamps' own.

The exit code says nothing: nsys ends with 0 after an internal error or a skipped report too.
"""

from __future__ import annotations

import csv
import io
import shutil
import sqlite3
import subprocess
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import nsys_readers
import pytest
from nsys_readers import REPORTS, RULES
from nsys_truth import Truth, make
from runfile_factory import sample_operators, sample_run, write_run

from llmprof.records import RunData

NSYS = shutil.which("nsys")
pytestmark = pytest.mark.skipif(NSYS is None, reason="nsys is not installed")

# Report names of nsys 2022.4 and of 2023.4 and later.
NAMES = {
    "nvtxsum": "nvtx_sum",
    "nvtxppsum": "nvtx_pushpop_sum",
    "nvtxpptrace": "nvtx_pushpop_trace",
}


def old_names() -> bool:
    done = subprocess.run([str(NSYS), "--version"], capture_output=True, text=True, timeout=60)
    return " 2022." in done.stdout


def stats(report: str, file: Path) -> list[dict[str, str]]:
    """Rows of one report; fails with nsys' own words if there are none."""
    name = report if old_names() else NAMES[report]
    command = f"timeout -s KILL 120 {NSYS} stats -q -r {name} -f csv -o -".split()
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    rows = list(csv.DictReader(io.StringIO(done.stdout.strip() + "\n")))
    assert rows, f"{name}: {done.stdout}{done.stderr}"
    return rows


def truth(data: RunData) -> dict[str, list[int]]:
    """Range name → durations, from the rounds' stamps and the operators alone."""
    found: dict[str, list[int]] = defaultdict(list)
    for r in data.rounds:
        suffix = " traced" if r.pass_name == "traced" else ""
        found[f"llmprof:round {r.index}{suffix}"].append(r.end_ns - r.start_ns)
        found["llmprof:prefill"].append(r.stamps_ns[0] - r.prefill_start_ns)
        for i in range(1, len(r.stamps_ns)):
            found[f"llmprof:decode {i}"].append(r.stamps_ns[i] - r.stamps_ns[i - 1])
        if r.pass_name == "traced":
            for op in sample_operators(r):
                found[f"torch:{op.text}"].append(op.end_ns - op.start_ns)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunData]:
    data = sample_run(["torch", "llamacpp", "torch#2"], rounds=4, steps=16)
    ops = [e for r in data.rounds if r.pass_name == "traced" for e in sample_operators(r)]
    return write_run(tmp_path_factory.mktemp("nsys") / "run.sqlite", data, ops), data


@pytest.mark.parametrize("report", ["nvtxsum", "nvtxppsum"])
def test_sums_of_ranges(run: tuple[Path, RunData], report: str) -> None:
    file, data = run
    got = {
        r["Range"].lstrip(":"): (int(r["Instances"]), int(r["Total Time (ns)"]))
        for r in stats(report, file)
    }
    assert got == {name: (len(ns), sum(ns)) for name, ns in truth(data).items()}


def test_nesting_of_ranges(run: tuple[Path, RunData]) -> None:
    """Every part lies in its round, and every operator in its decode step."""
    file, data = run
    levels = defaultdict(set)
    children: dict[str, int] = defaultdict(int)
    for row in stats("nvtxpptrace", file):
        name = row["Name"].lstrip(":")
        levels[name.split()[0]].add(int(row["Lvl"]))
        children[name.split()[0]] += int(row["NumChild"] or 0)
    assert levels == {
        "llmprof:round": {0},
        "llmprof:prefill": {1},
        "llmprof:decode": {1},
        "torch:aten::linear": {2},
        "torch:aten::addmm": {3},
    }
    assert children["llmprof:round"] == sum(1 + r.steps for r in data.rounds)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    file = tmp_path_factory.mktemp("nsys") / "traced.sqlite"
    return file, make(file)


@pytest.mark.parametrize("report", REPORTS)
def test_every_report_on_a_full_trace(traced: tuple[Path, Truth], report: str) -> None:
    """Kernels, copies, sets, calls, ranges and their projections: the numbers that were written."""
    file, truth = traced
    name, check = REPORTS[report]
    if old_names() and not name:
        pytest.skip(f"this nsys has no {report}")
    rows = nsys_readers.stats(str(NSYS), report, file)
    assert rows
    got, wanted = check(rows, truth)
    assert got == wanted


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_analyze(traced: tuple[Path, Truth], rule: str) -> None:
    file, truth = traced
    got, wanted = RULES[rule][1](nsys_readers.analyze(str(NSYS), rule, file), truth)
    assert wanted and got == wanted


def test_metrics_and_diagnostics_are_there(traced: tuple[Path, Truth]) -> None:
    """No report reads them: looked at with SQL."""
    file, truth = traced
    with closing(sqlite3.connect(file)) as db:
        (metrics,) = db.execute(
            "SELECT count(*) FROM GPU_METRICS JOIN TARGET_INFO_GPU_METRICS USING (typeId, metricId)"
            " JOIN GENERIC_EVENT_TYPES USING (typeId) JOIN GENERIC_EVENT_SOURCES"
            " ON GENERIC_EVENT_SOURCES.sourceId = GENERIC_EVENT_TYPES.sourceId"
        ).fetchone()
        assert metrics == truth.metrics
        told = db.execute('SELECT severity, "text" FROM DIAGNOSTIC_EVENT ORDER BY 1').fetchall()
    assert told == [
        (1, "run: gpm is not available: needs Hopper"),
        (2, "torch: clock drifted by 4 %"),
    ]
