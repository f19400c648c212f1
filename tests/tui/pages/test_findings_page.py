"""The page that a finished run lands on, and the way from each line to its evidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks_factory
from ranks_run import run_of
from tui_pilot import app, settled, shown, source
from tui_snapshots_data import FixedSource

from llmprof.analysis.findings.ranked import Findings, StepWords, find
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.compare import roles
from llmprof.tui.drawing.canvas import strip
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.findings import evidence
from llmprof.tui.findings.page import page, stacked
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.dialogs import HelpScreen
from llmprof.tui.timeline.rows import mixed
from llmprof.tui.timeline.rows import stacked as stacked_cells
from llmprof.tui.view import PAGES, View


@pytest.fixture(scope="module")
def trace() -> RunTrace:
    found = source().trace()
    assert isinstance(found, RunTrace)
    return found


@pytest.fixture(scope="module")
def found(trace: RunTrace) -> Findings:
    return find(trace)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("keys", ["f", "f,enter"])
def test_findings_look_as_they_should(snap_compare, keys: str, size: tuple[int, int]) -> None:
    async def run(pilot) -> None:
        await settled(pilot)
        await pilot.press(*keys.split(","))
        await pilot.pause()

    assert snap_compare(app(), terminal_size=size, run_before=run)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_communication_looks_as_it_should(
    snap_compare, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_of(Path("tp4.sqlite"), ranks_factory.group(4, 12, host_ns={1: 100_000}))

    async def run(pilot) -> None:
        await settled(pilot)
        # The late rank and its host come first.
        await pilot.press("f", "j", "j")
        await pilot.pause()

    assert snap_compare(app(path), terminal_size=size, run_before=run)


async def test_communication_leads_to_the_collective(tmp_path: Path) -> None:
    path = run_of(tmp_path / "tp2.sqlite", ranks_factory.group(2, 12))
    async with app(path).run_test(size=(80, 24)) as pilot:
        main = await settled(pilot)
        await pilot.press("f", "j")
        assert "with no other work beside it" in shown(main)
        await pilot.press("enter")
        assert main.view.page == "timeline"
        assert main.view.timeline.search == "AllReduce_Sum_f16_RING_LL"
        assert main.view.timeline.selected.item is not None


@pytest.mark.parametrize("width", [20, 78, 118, 198])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_rows_stay_inside_their_width(trace, found, width: int, glyphs) -> None:
    for index in range(len(found.found)):
        view = View(glyphs, page="findings", trace=trace, findings=found, finding=index)
        rows = page(source().snapshot(), view, width)
        if width > 20:
            assert max(width_of(line) for line in rows) <= width
        if glyphs.ascii:
            assert all(strip(line, glyphs).text.isascii() for line in rows)


async def test_an_opened_run_lands_on_what_matters_and_enter_leads_to_it() -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        main = await settled(pilot)
        text = shown(main)
        assert main.view.page == "findings"
        for line in ("1.68× as fast", "where a step goes", "launch-bound", "4.11 ms/token"):
            assert line in text
        await pilot.press("enter")
        assert main.view.page == "timeline"
        chosen = main.view.timeline.selected
        assert chosen is not None
        assert chosen.gap is not None
        # Not the borders of the step: launches that came late lie inside.
        track = main.view.trace.lanes.lanes[0].traced
        begin, end = track.bounds_ns[chosen.step : chosen.step + 2]
        assert begin < chosen.gap.start_ns
        assert chosen.gap.end_ns < end
        await pilot.press("f", "j", "enter")
        assert main.view.timeline.search == "vectorized_layer_norm"
        assert main.view.timeline.selected.item is not None
        await pilot.press("f", "k", "k", "k")
        assert main.view.finding == 0


async def test_the_selection_stays_among_the_findings(found) -> None:
    view = View(UNICODE, findings=found)
    last = len(found.found) - 1
    for _ in range(20):
        view = evidence.moved(view, 1)
    assert view.finding == last
    assert evidence.moved(View(UNICODE), 1).finding == 0
    assert evidence.chosen(View(UNICODE)) is None


async def test_without_a_trace_there_is_the_verdict_and_why() -> None:
    over = replace(source().snapshot(), state="finished")
    async with LlmprofApp(FixedSource(over, live=False)).run_test(size=(80, 24)) as pilot:
        main = await settled(pilot)
        assert "1.68× as fast" in shown(main)
        await pilot.press("enter")
        assert main.view.page == "findings"


def test_evidence_of_an_engine_that_is_gone_is_nowhere(trace, found) -> None:
    view = View(UNICODE, page="findings", trace=trace, findings=found)
    assert evidence.shown(view, ["another"]) is None
    assert evidence.shown(replace(view, trace=Unavailable("no")), ["torch"]) is None
    gone = replace(found.found[0], gap=False, kernel="no such kernel", step=3)
    there = evidence.shown(replace(view, findings=replace(found, found=(gone,))), ["torch"])
    assert there is not None
    assert there.timeline.selected.step == 3


def test_the_bar_of_a_step_has_every_part_in_its_share() -> None:
    words = StepWords("a", 10.0, "untraced", (("GEMM/GEMV", 6.0), ("norm", 3.0), ("idle", 1.0)), "")
    text = "".join(span.text for span in stacked(words, 20, "-"))
    assert text == "G" * 12 + "N" * 6 + "--"
    assert len("".join(s.text for s in stacked(words, 7, "-"))) == 7


def test_a_row_shows_the_mix_and_not_only_the_winner() -> None:
    """Four fifths products and one fifth of something else in every cell."""
    spent = np.array([[80] * 100, [15] * 100, [5] * 100, [0] * 100])
    chosen = mixed(spent)
    assert [chosen.count(i) for i in range(4)] == [80, 15, 5, 0]
    # A cell shows nothing that is not in it.
    apart = np.array([[100] * 50 + [0] * 50, [0] * 50 + [100] * 50])
    assert mixed(apart) == [0] * 50 + [1] * 50
    assert mixed(np.zeros((2, 3), np.int64)) == [0, 0, 0]


def test_tall_bars_are_stacked_by_share() -> None:
    spent = np.array([[20, 0], [70, 0], [10, 100]])
    assert stacked_cells(spent, 5) == [[1, 1, 1, 1, 0], [2, 2, 2, 2, 2]] or stacked_cells(
        spent, 5
    ) == [[1, 1, 1, 0, 2], [2] * 5]


async def test_compare_by_purpose(trace) -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        main = await settled(pilot)
        await pilot.press("4", "u")
        text = shown(main)
        assert "by purpose" in text
        for role in ("qkv", "gate/up", "down", "lm_head", "attention", "KV write"):
            assert role in text
        await pilot.press("u")
        assert "by purpose (u)" in shown(main)
    view = View(UNICODE, page="compare", trace=trace)
    one = View(UNICODE).lanes(source().snapshot())[1]
    rows = [text_of(line) for line in roles.table(trace, None, one, view, 100)]
    assert any(line.startswith("qkv") and "nvjet" in line for line in rows)


@pytest.mark.parametrize("name", PAGES)
async def test_the_help_of_every_page_fits_a_small_terminal(name: str) -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        main = await settled(pilot)
        main.action_page(name)
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(pilot.app.screen, HelpScreen)
        assert "where are these" in str(pilot.app.screen.query_one(".dialog").render())
        # Border and padding included: what is higher is cut off.
        assert pilot.app.screen.query_one(".dialog").virtual_size.height <= 24


@pytest.mark.parametrize("name", PAGES)
async def test_every_page_says_where_its_numbers_are_from(name: str) -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        main = await settled(pilot)
        main.action_page(name)
        await pilot.press("i")
        await pilot.pause()
        box = pilot.app.screen.query_one(".dialog")
        assert box.virtual_size.height <= 24
        assert max(map(len, str(box.render()).splitlines())) <= 80 - 6
        await pilot.press("i")
        await pilot.pause()
        assert pilot.app.screen is main
