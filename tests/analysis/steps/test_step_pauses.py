"""Where a step ends before something that is no step, and what is a pause."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from capture_factory import MS, Capture
from opened import Opened
from vllm_twin import read_step, write_requests

from llmprof.exports.text.table import render
from llmprof.records.steps import WINDOW_CLOSED

REQUESTS, DECODES = 5, 24


def counted_ms(opened: Opened) -> np.ndarray:
    steps = opened.kernels.steps
    assert isinstance(steps, tuple)
    return np.array([s.wall_ns / 1e6 for s in steps if s.counted])


def number_of(opened: Opened, kind: str) -> int:
    return sum(g.steps for g in opened.kernels.groups if g.kind == kind)


@pytest.mark.parametrize("kind", ["eager", "graphs"])
@pytest.mark.parametrize(("pause_ms", "prompt"), [(0, 4), (12, 4), (50, 4), (50, 1)])
def test_waiting_for_the_next_request_is_no_step(
    tmp_path: Path, kind: str, pause_ms: int, prompt: int
) -> None:
    """12 ms are some steps, 50 ms more than ten of those with graphs. A prefill may be as short as
    a decode step; where the first one begins is not to be seen, so that counts as one."""
    path = tmp_path / "x.sqlite"
    lengths = write_requests(path, kind, REQUESTS, DECODES, pause_ms * MS, prompt)
    opened = Opened(path)
    wall = counted_ms(opened)
    assert len(wall) == REQUESTS * DECODES + (prompt == 1)  # the very last one too
    assert wall.mean() == pytest.approx(np.mean(lengths) / 1e6, rel=0.01)
    assert wall.max() <= max(lengths) / 1e6 * 1.03
    assert all(slow.kind == "prefill" for slow in opened.kernels.outliers)
    pauses = (REQUESTS - 1) * (pause_ms > 0)
    assert number_of(opened, "pause") == pauses
    assert len(opened.data.rounds) == 1 and not opened.data.warnings
    told = f"{pauses} pauses between steps"
    assert any(told in text for text in opened.first.steps_found.left_out) == (pauses > 0)
    steps = opened.document()["engines"][0]["tracing"]["gpu"]["steps"]
    assert {s["kind"] for s in steps if not s["counted"]} <= {"other", "prefill", "pause"}
    if pauses:
        text = render(opened.report, 100, opened.trace)
        assert "pause *" in text and "groups" not in text


@pytest.mark.parametrize("kind", ["eager", "graphs"])
def test_a_stall_within_a_request_stays_in_its_step(tmp_path: Path, kind: str) -> None:
    stall = 5 * read_step(kind)["step_ns"]
    path = tmp_path / "x.sqlite"
    lengths = write_requests(path, kind, REQUESTS, DECODES, 50 * MS, stalls={(2, 7): stall})
    opened = Opened(path)
    wall = counted_ms(opened)
    assert wall.max() == pytest.approx(max(lengths) / 1e6, rel=0.01)
    (slow,) = [o for o in opened.kernels.outliers if o.kind != "prefill"]
    assert slow.ratio > 5 and "idle" in slow.reason


def test_a_step_in_which_the_window_was_closed_is_none(tmp_path: Path) -> None:
    """What was recorded before and behind looks like one step that stalls."""
    step_ns = read_step("graphs")["step_ns"]
    path = tmp_path / "x.sqlite"
    lengths = write_requests(
        path, "graphs", REQUESTS, DECODES, 50 * MS, stalls={(2, 7): 5 * step_ns}
    )
    opened = Opened(path)
    (slow,) = [o for o in opened.kernels.outliers if o.kind != "prefill"]
    record = opened.first.record
    assert record is not None
    begin, end = record.stamps_ns[slow.step - 1 : slow.step + 1]
    told = json.dumps({WINDOW_CLOSED: [[begin + step_ns, end - 100_000], "nonsense", [1]]})
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.execute("UPDATE LLMPROF_RUN SET environment = ?", [told])
    opened = Opened(path)
    wall = counted_ms(opened)
    assert len(wall) == REQUESTS * DECODES - 1
    assert wall.max() < max(lengths[:30]) / 1e6 * 1.05
    assert "1 step while the window was closed" in opened.first.steps_found.left_out


def ranges(path: Path, late: int = 0, calls: bool = True) -> Opened:
    """Three requests of a prefill and eight decode steps of 10 ms, 60 ms apart. The host marks what
    it launches and waits; the last kernel of the first two ends ``late`` ns later than usual."""
    with Capture(path) as made:
        made.process()
        made.gpu()
        now = 100 * MS
        for request in range(3):
            made.range(now, now + 15 * MS, "prefill")
            one = made.call(now + 10_000, now + 20_000) if calls else 0
            made.kernel(now + 30_000, now + 14 * MS, "void big()", correlation=one)
            now += 15 * MS + 10_000
            for n in range(8):
                made.range(now, now + 9 * MS, f"decode {n}")
                for k in range(10):
                    at = now + 50_000 + k * 900_000
                    one = made.call(at - 20_000, at - 10_000) if calls else 0
                    longer = late + 500_000 if late and (n, k) == (7, 9) and request < 2 else 0
                    made.kernel(at, at + 800_000 + longer, correlation=one)
                now += 10 * MS
            now += 50 * MS
    return Opened(path)


def test_a_range_before_a_pause_ends_as_others_do(tmp_path: Path) -> None:
    opened = ranges(tmp_path / "x.sqlite")
    assert opened.kernels.method == "time"
    wall = counted_ms(opened)
    assert len(wall) == 24 and wall == pytest.approx(10, abs=0.02)
    assert (
        number_of(opened, "pause") == 2 and number_of(opened, "prefill") == 2
    )  # the first one lies before the steps
    assert opened.kernels.kernels_per_step == 10
    text = json.dumps(opened.document()["engines"][0]["tracing"]["steps_found"])
    assert "2 pauses between steps, 100.000 ms in all" in text


@pytest.mark.parametrize("calls", [True, False])
def test_work_that_ends_late_is_of_the_step_before_the_pause(tmp_path: Path, calls: bool) -> None:
    """1.3 ms behind the end of its range, where 1 ms is usual: no kernel runs into the pause."""
    opened = ranges(tmp_path / "x.sqlite", late=1_000_000, calls=calls)
    assert opened.kernels.method == "time"
    wall = counted_ms(opened)
    assert len(wall) == 24 and np.median(wall) == pytest.approx(10, abs=0.02)
    assert np.sort(wall)[-2:] == pytest.approx(10.45, abs=0.02)
    assert number_of(opened, "pause") == 2


def test_launched_work_ends_a_step_where_the_host_runs_ahead(tmp_path: Path) -> None:
    """The device is 6 ms behind the host. A pause between two decode steps, without a prefill, is
    in none of them."""
    path = tmp_path / "x.sqlite"
    with Capture(path) as made:
        made.process()
        made.gpu()
        now = 100 * MS
        for n in range(24):
            made.range(now, now + 2 * MS, f"decode {n}")
            for k in range(8):
                one = made.call(now + 100_000 + k * 200_000, now + 150_000 + k * 200_000)
                at = now + 6 * MS + k * MS
                made.kernel(at, at + 950_000, correlation=one)
            now += 8 * MS + (150 * MS if n % 8 == 7 else 0)
    opened = Opened(path)
    assert opened.kernels.method == "correlation"
    wall = counted_ms(opened)
    assert len(wall) == 24
    # The first of a group waits for its own work to begin.
    assert np.median(wall) == pytest.approx(8, abs=0.05) and wall.max() < 15
    assert number_of(opened, "pause") == 2
