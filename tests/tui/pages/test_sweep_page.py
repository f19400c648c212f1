"""The page of a sweep: what it shows as text, and what its keys do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_factory import grid, made_store, row

from llmprof.sweep.grid import make
from llmprof.sweep.store import Ended, Store
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.sweep.app import SweepApp, known_of
from llmprof.tui.sweep.page import TABS, SweepView, body, header
from llmprof.tui.sweep.plot import Dot, Series, columns_of, plot


def text(store: Store, view: SweepView, width: int = 120, height: int = 38) -> str:
    known = known_of(store)
    lines = [*header(known, view, width), *body(known, view, UNICODE, width, height)]
    assert all(width_of(line) <= width for line in lines)
    return "\n".join(text_of(line) for line in lines)


def test_curves_have_their_values_and_what_is_under_the_cursor(tmp_path: Path) -> None:
    shown = text(made_store(tmp_path / "s"), SweepView())
    assert "12 of 12 points" in shown and "step, ms" in shown and "over context" in shown
    assert "e0 · batch 1" in shown and "e1 · batch 4" in shown
    assert "H100" in shown and "driver 580.1" in shown
    assert "│" in shown and "128" in shown and "8k" in shown


def test_categories_are_stacked_in_one_scale(tmp_path: Path) -> None:
    shown = text(made_store(tmp_path / "s"), SweepView(tab="categories"))
    bars = [line for line in shown.splitlines() if "GG" in line]
    assert len(bars) == 4
    assert bars[-1].count("A") > bars[0].count("A")
    assert bars[0].count("G") == bars[-1].count("G")
    assert "attention" in shown and "idle" in shown


def test_the_map_has_both_axes_and_the_fits_their_words(tmp_path: Path) -> None:
    store = made_store(tmp_path / "s")
    shown = text(store, SweepView(tab="map"))
    assert "context across, batch down" in shown and "5.04" in shown
    words = " ".join(text(store, SweepView(tab="fits")).split())
    assert "KV bytes a token: model 524,288" in words
    # Bytes of K and V come slower than those of weights, so the line begins below zero.
    assert "e0, bytes: step = -1.2 ms + bytes / 2,097 GB/s" in words


def test_hardware_that_differs_is_told_first(tmp_path: Path) -> None:
    store = made_store(
        tmp_path / "s", gpu_of=lambda p: "H200" if p.fields["batch"] == "4" else "H100"
    )
    for tab in TABS:
        assert "2 kinds of hardware" in text(store, SweepView(tab=tab))


def test_failed_points_are_named_and_their_text_moves_no_terminal(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", grid())
    with store.writing():
        first, second = store.points[:2]
        store.put(Ended(first.point_id, "failed", "\x1b[2J crash"))
        assert "crash" in text(store, SweepView())
        store.put(Ended(second.point_id, "done", "", [row(second, "\x1b]0;x")]))
    for tab in TABS:
        shown = text(store, SweepView(tab=tab))
        assert "\x1b" not in shown
    assert "1 did not run" in shown


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (200, 60)])
def test_every_page_fits_every_terminal(tmp_path: Path, width: int, height: int) -> None:
    store = made_store(tmp_path / "s")
    known = known_of(store)
    for tab in TABS:
        for metric in range(4):
            view = SweepView(tab=tab, metric=metric, axis=metric)
            lines = body(known, view, ASCII, width, height)
            assert all(width_of(line) <= width for line in lines)
            if tab == "curves" and height >= 24:
                assert len(lines) <= height


def test_places_lie_where_their_values_are() -> None:
    dots = (Dot(1, 0.0), Dot(2, 5.0), Dot(4, 10.0, 9.0, 10.0))
    lines = [text_of(line) for line in plot([Series("o", "", dots)],
             [(1, "1"), (2, "2"), (4, "4")], 60, 12)]  # fmt: skip
    at = {y: line.index("o") for y, line in enumerate(lines) if "o" in line}
    assert list(at) == [0, 5, 10]
    assert at[0] > at[5] > at[10]
    # 1, 2, 4 span less than a factor of 8: a linear axis.
    assert columns_of([1, 2, 4], 31) == {1: 0, 2: 10, 4: 30}
    assert columns_of([1, 8, 64], 31) == {1: 0, 8: 15, 64: 30}


async def test_keys_choose_and_enter_opens_the_run(tmp_path: Path) -> None:
    store = made_store(tmp_path / "s")
    run = tmp_path / "s" / store.ended[store.points[3].point_id].run_file
    run.touch()
    app = SweepApp(Store.open(tmp_path / "s", read=False), SweepView())
    async with app.run_test(size=(100, 30)) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert app.page.known is not None
        await pilot.press("tab")
        assert app.page.view.tab == "categories"
        await pilot.press("1", "a", "m", "a", "down", "right", "enter")
        # Batch 2 at context 1k has no file here: it stays, and says so.
        assert app.page.view == replace(SweepView(), metric=1, axis=2, curve=1, place=1)
        await pilot.press("up", "enter")
    assert app.return_value == (run, replace(SweepView(), metric=1, axis=2, place=1))


def test_it_opens_with_the_axis_that_the_report_takes(tmp_path: Path) -> None:
    """Whatever the order of the grid's fields."""
    store = made_store(tmp_path / "s", make(["fake"], {"batch": "1,2", "context": "128,1k,4k"}))
    assert store.grid.axes[0] == "batch"
    assert "over context" in text(store, SweepView())
