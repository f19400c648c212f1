"""The script behind the table in ``docs/traces.md``, over a folder of made-up traces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kineto_factory as kineto
import rocprof_factory as rocprof

ROOT = Path(__file__).parents[2]


def table(folder: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "benchmarks/public_traces.py", str(folder), "--markdown"]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_totals_are_those_of_a_plain_sum_and_the_table_says_so(tmp_path: Path) -> None:
    events = [e for e in kineto.steps(6) if e.get("name") != "my_own_thing"]
    kineto.write(tmp_path / "good.json.gz", kineto.document(events))
    fixture = ROOT / "tests" / "fixtures" / "h100_graph.sqlite"
    (tmp_path / "run.sqlite").write_bytes(fixture.read_bytes())
    done = table(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line.split(" | ")[0].strip("| "): line for line in done.stdout.splitlines()}
    assert "| 12 | 126.000 | equal | 0.0% | marked 6 |" in lines["good.json.gz"]
    assert "equal" in lines["run.sqlite"] and "5 / 5 / 5" in lines["run.sqlite"]


def test_kernels_of_no_category_and_files_that_do_not_open_fail(tmp_path: Path) -> None:
    kineto.write(tmp_path / "unknown.json.gz", kineto.document(kineto.steps(6)))
    kineto.write(tmp_path / "none.json", {"a": 1})
    done = table(tmp_path)
    assert done.returncode == 1
    assert "not as claimed: none.json, unknown.json.gz" in done.stdout
    assert "33.3%" in done.stdout


def test_rocprof(tmp_path: Path) -> None:
    kineto.write(tmp_path / "r.json", rocprof.document())
    done = table(tmp_path)
    assert "equal" in done.stdout, done.stdout + done.stderr
