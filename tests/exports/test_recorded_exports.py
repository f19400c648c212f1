"""Exports of a recorded program: all of its work, its steps as traced, what there is none of."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from vllm_twin import STEPS, write_twin

from llmprof.errors import UsageError
from llmprof.exports.formats import export_runs

PAUSE_NS = 400_000_000
WORK = ("KERNEL", "MEMCPY")


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decode steps in two groups, less than a second apart, and a kernel long before the first."""
    path = tmp_path_factory.mktemp("recorded") / "run.sqlite"
    write_twin(path, "eager")
    with closing(sqlite3.connect(path)) as db:
        for_step = "SELECT min(start) FROM CUPTI_ACTIVITY_KIND_RUNTIME WHERE correlationId >= ?"
        (middle,) = db.execute(for_step, (STEPS // 2 << 12,)).fetchone()
        for table in (*WORK, "RUNTIME"):
            db.execute(
                f'UPDATE CUPTI_ACTIVITY_KIND_{table} SET start = start + ?, "end" = "end" + ?'
                " WHERE start >= ?",
                (PAUSE_NS, PAUSE_NS, middle),
            )
        db.execute(
            'UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET start = ?, "end" = ? WHERE rowid = 1',
            (1_000, 2_000),
        )
        db.execute("UPDATE LLMPROF_PROCESS SET first_ns = 1000, last_ns = last_ns + ?", (PAUSE_NS,))
        db.commit()
    return path


def work_of(path: Path) -> Counter[tuple[int, int]]:
    """(start, length) of every kernel and copy."""
    with closing(sqlite3.connect(path)) as db:
        return Counter(
            (start, end - start)
            for table in WORK
            for start, end in db.execute(f'SELECT start, "end" FROM CUPTI_ACTIVITY_KIND_{table}')
        )


def outer_calls(path: Path) -> Counter[tuple[int, int]]:
    """Without those that begin within another one of their thread: the twin has a few."""
    with closing(sqlite3.connect(path)) as db:
        calls = 'SELECT globalTid, start, "end" FROM CUPTI_ACTIVITY_KIND_RUNTIME ORDER BY start'
        free: dict[int, int] = {}
        found: Counter[tuple[int, int]] = Counter()
        for tid, start, end in db.execute(calls):
            if start >= free.get(tid, 0):
                free[tid] = end
                found[start, end - start] += 1
    return found


def test_a_timeline_has_every_row_once(paused: Path, tmp_path: Path) -> None:
    document = json.loads(export_runs([paused], "chrome", tmp_path / "x").read_text())
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in document["traceEvents"]
        if e["name"] == "thread_name"
    }

    def found(begin: str) -> Counter[tuple[int, int]]:
        return Counter(
            (round(e["ts"] * 1e3), round(e["dur"] * 1e3))
            for e in document["traceEvents"]
            if e["ph"] == "X" and threads[e["pid"], e["tid"]].startswith(begin)
        )

    assert found("rounds")
    assert found("CUDA API") == outer_calls(paused)
    assert found("stream") == work_of(paused)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as text:
        return list(csv.DictReader(text))


def test_tables_have_the_steps_as_traced(paused: Path, tmp_path: Path) -> None:
    folder = export_runs([paused], "csv", tmp_path / "x")
    (engine,) = rows(folder / "engines.csv")
    kinds = rows(folder / "step_kinds.csv")
    (counted,) = [kind for kind in kinds if kind["counted"] == "True"]
    assert counted["kind"] == "eager"
    parts = float(engine["traced_busy_ms"]) + float(engine["traced_idle_ms"])
    assert parts == pytest.approx(float(engine["traced_step_ms"]))
    steps = rows(folder / "steps.csv")
    assert sum(step["phase"] == "decode" for step in steps) >= int(counted["steps"])
    text = export_runs([paused], "markdown", tmp_path / "y").read_text()
    assert f"| eager | {counted['steps']} | {float(counted['wall_ms']):.3f} |" in text


@pytest.mark.parametrize("to", ["llama-bench", "benchmark-report"])
def test_a_benchmark_of_a_recording_is_refused(paused: Path, tmp_path: Path, to: str) -> None:
    with pytest.raises(UsageError, match="--twice"):
        export_runs([paused], to, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_reasons_are_those_of_a_recording(paused: Path, tmp_path: Path) -> None:
    document = json.loads(export_runs([paused], "json", tmp_path / "x").read_text())
    (engine,) = document["engines"]
    assert "--twice" in engine["tracing"]["slowdown_reason"]
    assert "record --bandwidth" in engine["tracing"]["dram_per_kernel_reason"]
    assert "did not drive" in engine["load_s_reason"] + engine["warmup"]["steps_reason"]
    assert "did not drive" in engine["text_reason"]
    assert "did not" not in engine["conditions_reason"]  # no sample of NVML while it decoded


def test_conditions_are_those_of_the_steps(paused: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.sqlite"
    file.write_bytes(paused.read_bytes())
    with closing(sqlite3.connect(file)) as db:
        for time_ms, clock, mask in ((1, 345, 1), (60, 1200, 4), (70, 1200, 4), (100, 1980, 0)):
            db.execute(
                "INSERT INTO LLMPROF_GPU_SAMPLE (timestamp_ns, device, sm_clock_mhz, throttle_mask)"
                " VALUES (?, 0, ?, ?)",
                (time_ms * 1_000_000, clock, mask),
            )
        db.commit()
    document = json.loads(export_runs([file], "json", tmp_path / "x").read_text())
    seen = document["engines"][0]["conditions"]
    assert seen["samples"] == 3 and seen["sm_clock_mhz"]["median"] == 1200
    assert any("throttled" in warning["text"] for warning in document["warnings"])
