"""Large traces: read within a bound, the rest added up in cells, never in the way of the keys."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import foreign_factory
import numpy as np
import pytest
from foreign_factory import GLOBAL, PAUSE, STEP
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.analysis.view import traced
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace, all_warnings
from llmprof.exports.json.report import to_document
from llmprof.records import (
    RunData,
    Unavailable,
)
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.trace import chunks, overview
from llmprof.runfile.trace import reader as trace_reader
from llmprof.runfile.trace.overview import Cells, walk

PID = GLOBAL >> 24
H100 = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"


def read(path: Path, step_range: str | None = None) -> RunData:
    return open_run(path, StepChoice("ranges" if step_range else "auto", step_range))


def bounded(monkeypatch: pytest.MonkeyPatch, kernels: int) -> None:
    monkeypatch.setattr(traced, "MAX_KERNELS", kernels)
    monkeypatch.setattr(traced, "LEAST_KERNELS", 1)


def small_stretches(monkeypatch: pytest.MonkeyPatch, rows: int = 16) -> None:
    monkeypatch.setattr(chunks.stretches, "__defaults__", (rows,))


def kernels_of(path: Path) -> list[tuple[int, int]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(
            'SELECT start, "end" FROM CUPTI_ACTIVITY_KIND_KERNEL ORDER BY start'
        ).fetchall()


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_first_steps_are_read_and_nothing_of_them_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    """Also where rows are in any order: then what was kept is thrown out again."""
    bounded(monkeypatch, 70)  # of 200 in 10 steps
    small_stretches(monkeypatch)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    if shuffled:
        with closing(sqlite3.connect(file)) as db:
            db.executescript(
                "CREATE TABLE t AS SELECT * FROM CUPTI_ACTIVITY_KIND_KERNEL ORDER BY random();"
                "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL;"
                "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL SELECT * FROM t; DROP TABLE t;"
            )
    before = file.read_bytes()
    data = read(file)
    assert data.rounds[0].steps == 10
    trace = RunTrace(file, data)
    (engine,) = trace.engines
    assert engine.record is not None and engine.record.steps == 3
    assert not isinstance(engine.kernels, Unavailable)
    assert engine.kernels.scope == "3 decode steps"
    truth = kernels_of(file)
    kept = [k for k in truth if k[0] <= engine.record.stamps_ns[-1]]
    assert len(kept) == 60
    assert list(zip(engine.kernel_rows.start_ns, engine.kernel_rows.end_ns, strict=True)) == kept
    text = "kernels are analysed for the first 3 of 10 steps: there are more than 70"
    assert [w.text for w in trace.cuts] == [text]
    built = build(data)
    assert text in [w["text"] for w in to_document(built, data, trace)["warnings"]]
    assert all_warnings(built, trace)[-1].text == text

    lane = trace.lanes.lanes[0]
    track = lane.traced
    assert track is not None and track.steps == 10 and lane.analysed_steps(track) == 3
    edges = np.array(track.bounds_ns[1:], np.int64)
    exact = lane.spent(edges)
    assert sum(ns.sum() for ns in exact.values()) == sum(b - a for a, b in kept)
    assert lane.inside(edges).tolist() == [STEP + PAUSE] * 3 + [0] * 7
    shares: list[float] = []
    for _ in trace.refine(lambda what, share: shares.append(share or 0.0)):
        pass
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 3
    assert lane.inside(edges).tolist() == [STEP + PAUSE] * 10
    by_step = sum(lane.spent(edges).values())
    wanted = [
        sum(min(b, y) - max(a, x) for a, b in truth if a < y and b > x)
        for x, y in itertools.pairwise(edges)
    ]
    width = lane.cells.width_ns if lane.cells else 0
    assert by_step == pytest.approx(wanted, abs=2 * width + 20)
    assert file.read_bytes() == before


def test_two_engines_share_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 3000)
    file = tmp_path / "x.sqlite"
    shutil.copyfile(H100, file)
    data = read(file)
    trace = RunTrace(file, data)
    for _ in trace.refine():
        pass
    whole = {e.label: e for e in data.engines}
    assert len(trace.cuts) == len(data.engines) == 2
    for engine, lane in zip(trace.engines, trace.lanes.lanes, strict=True):
        full = data.rounds_of(whole[engine.label].engine_id, "traced")[0]
        assert 0 < len(engine.kernel_rows) <= 1500 and engine.record is not None
        assert 1 <= engine.record.steps < full.steps
        assert lane.traced is not None and lane.traced.steps == full.steps
        with RunFileReader(file) as reader:
            rows = reader.trace_rows(full)
        # Cells hold what the bound left out, by kind.
        late = rows.kernels.start_ns > engine.record.end_ns
        ns = int((rows.kernels.end_ns - rows.kernels.start_ns)[late].sum())
        assert engine.cells is not None
        ends = np.array([engine.cells.start_ns, engine.cells.end_ns], np.int64)
        assert sum(int(v[0]) for v in engine.cells.between(ends).values()) == pytest.approx(
            ns, rel=0.02
        )


def test_a_step_too_large_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 5)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    trace = RunTrace(file, read(file))
    found = trace.engines[0].kernels
    assert isinstance(found, Unavailable) and "first step has more than 5 kernels" in found.reason
    assert trace.lanes.axis("step") is not None


def test_api_calls_and_copies_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty calls a kernel: the calls decide where the reading ends."""
    monkeypatch.setattr(trace_reader, "_CALLS_A_KERNEL", 1)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    with closing(sqlite3.connect(file)) as db:
        row = "SELECT * FROM CUPTI_ACTIVITY_KIND_RUNTIME"
        for _ in range(3):
            db.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME {row}")
        db.commit()
    (record,) = read(file).rounds
    with RunFileReader(file) as reader:
        all_rows = reader.trace_rows(record)
        rows = reader.trace_rows(record, 150)
    assert rows.complete_ns is not None and len(rows.api) <= 150
    assert len(rows.kernels) < 150
    for some, every in ((rows.kernels, all_rows.kernels), (rows.api, all_rows.api)):
        assert some.start_ns.tolist() == [t for t in every.start_ns if t <= rows.complete_ns]


def test_a_hostile_rowid_is_no_long_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, 70)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    with closing(sqlite3.connect(file)) as db:
        last, first = (1 << 63) - 1, -(1 << 63)
        db.execute(f"UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET rowid = {last} WHERE rowid = 200")
        db.execute(f"UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET rowid = {first} WHERE rowid = 1")
        db.commit()
        spans = list(chunks.stretches(db, "CUPTI_ACTIVITY_KIND_KERNEL", 64))
    assert sum(count for _, _, count in spans) == 200 and len(spans) == 4
    trace = RunTrace(file, read(file))
    assert len(list(trace.refine())) >= 1
    assert len(trace.engines[0].kernel_rows) == 60


class Enough(Exception):
    pass


def test_reading_stops_when_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_stretches(monkeypatch)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    told: list[float | None] = []

    def tell(what: str, share: float | None) -> None:
        told.append(share)
        if len(told) == 3:
            raise Enough

    with pytest.raises(Enough):
        RunTrace(file, read(file), tell)
    assert len(told) == 3


def test_the_share_is_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_stretches(monkeypatch, 50)
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    told: list[float | None] = []
    RunTrace(file, read(file), lambda what, share: told.append(share))
    with RunFileReader(file) as reader:
        total = reader.trace_size()
    with closing(sqlite3.connect(file)) as db:
        tables = [n for (n,) in db.execute("SELECT name FROM sqlite_master") if "CUPTI" in n]
        rows = sum(db.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in tables)
    assert total == rows
    assert told[0] == 50 / total and told[-1] == 1 and told == sorted(told)  # type: ignore[type-var]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 150), st.integers(0, 200)), min_size=1, max_size=30),
    st.integers(1, 90),
)
def test_long_kernels_are_cut_at_cells(pieces: list[tuple[int, int]], width: int) -> None:
    cells = Cells(PID, 0, width * overview.CELLS, str)
    assert cells.width_ns == width
    spans = np.array([(start, start + length) for start, length in pieces], np.int64)
    cells.add_long("x", spans)
    edges = np.arange(6) * width
    wanted = np.zeros(5)
    for start, end in spans.tolist():
        wanted += np.diff(np.clip(edges, max(0, start), max(0, end)))
    assert cells._sums["x"][:5] == pytest.approx(wanted)


def test_cells_are_never_more_than_full(tmp_path: Path) -> None:
    """Two streams at once: the share is of time, not of kernels."""
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    with closing(sqlite3.connect(file)) as db:
        db.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL SELECT * FROM CUPTI_ACTIVITY_KIND_KERNEL"
        )
        db.commit()
    (record,) = read(file).rounds
    cells = Cells(record.pid, record.start_ns, record.end_ns, lambda name: name)
    list(walk(file, [cells]))
    edges = record.start_ns + np.arange(1000) * cells.width_ns
    spent = sum(cells.between(edges.astype(np.int64)).values())
    assert int(np.max(spent)) <= cells.width_ns


def test_an_outline_reads_nothing_and_knows_the_steps(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    data = read(file)
    outline = RunTrace.outline(file, data)
    assert outline.engines[0].round == traced.PENDING
    axis = outline.lanes.axis("step")
    assert axis is not None and axis.tracks(0)[0].steps == 10
