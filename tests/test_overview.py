"""Cells of a large file: the same sums as the rows, before, while and after the walk over them."""

from __future__ import annotations

from pathlib import Path

import foreign_factory
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.runfile import overview
from llmprof.runfile.overview import KernelOverview, _cut


def test_sums_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "BLOCK", 64)
    file = tmp_path / "x.sqlite"
    made = foreign_factory.write(file)
    before = file.read_bytes()
    with KernelOverview(file) as seen:
        assert seen.rows == made.kernels and seen.done_rows == 0
        empty = seen.window(seen.start_ns, seen.end_ns, 50)
        assert not empty.busy.any() and set(empty.name_id.tolist()) == {-1}
        shares: list[float] = []
        seen.refine(shares.append)
        assert shares == sorted(shares) and shares[-1] == 1
        assert sum(n for n, _ in seen.totals.values()) == made.kernels
        assert sum(ns for _, ns in seen.totals.values()) == made.kernel_ns
        exact = seen.window(seen.start_ns, seen.end_ns, 50)
        assert exact.exact
        monkeypatch.setattr(overview, "EXACT", 0)
        cells = seen.window(seen.start_ns, seen.end_ns, 50)
        assert not cells.exact
        width = np.diff(exact.edges_ns)
        assert float((exact.busy * width).sum()) == pytest.approx(made.kernel_ns, rel=1e-3)
        assert cells.busy == pytest.approx(exact.busy, abs=0.02)
    assert file.read_bytes() == before


def test_a_walk_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "BLOCK", 64)
    file = tmp_path / "x.sqlite"
    made = foreign_factory.write(file)
    with KernelOverview(file) as seen:
        seen.refine(cancelled=lambda: seen.done_rows >= 64)
        assert seen.done_rows == 64
        seen.refine()
        assert sum(n for n, _ in seen.totals.values()) == made.kernels


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 150), st.integers(0, 80)), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_cutting_loses_nothing_inside(pieces: list[tuple[int, int]], width: int) -> None:
    cells = -(-100 // width)
    start = np.array([s for s, _ in pieces], np.int64)
    end = start + np.array([n for _, n in pieces], np.int64)
    _, part, owner = _cut(start, end, 0, width, cells)
    inside = np.maximum(np.minimum(end, cells * width) - np.maximum(start, 0), 0)
    assert np.bincount(owner, weights=part, minlength=len(start)) == pytest.approx(inside)
