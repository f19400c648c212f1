"""The timeline and compare pages, on a run recorded on an H100 (eager against CUDA-graph torch)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.widgets import Input
from textual.worker import WorkerFailed
from tui_pilot import FIXTURE, SIZES, app, settled, shown, source, typed
from tui_snapshots_data import FixedSource

from llmprof.analysis.timeline.lod import LaneWork
from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.tui.drawing.canvas import strip
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.frame import body
from llmprof.tui.live.busy import section
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.dialogs import Ask
from llmprof.tui.timeline import nav
from llmprof.tui.timeline.page import layout
from llmprof.tui.view import TimelineView, View


@pytest.fixture(scope="module")
def opened() -> RunDataSource:
    return source()


@pytest.fixture(scope="module")
def trace(opened) -> RunTrace:
    found = opened.trace()
    assert isinstance(found, RunTrace)
    return found


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keys", ["3", "3,n", "3,n,w", "3,n,w,right_square_bracket,enter", "3,a",
                                  "3,r,n", "4", "4,b,b"])  # fmt: skip
def test_pages_look_as_they_should(snap_compare, keys: str, size: tuple[int, int]) -> None:
    async def ready(pilot) -> None:
        await settled(pilot)
        await pilot.press(*keys.split(","))
        await settled(pilot)

    assert snap_compare(app(), terminal_size=size, run_before=ready)


@pytest.mark.parametrize("key", ["question_mark", "e", "g"])
def test_dialogs_look_as_they_should(snap_compare, monkeypatch, key: str) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/home/user"))

    async def ready(pilot) -> None:
        await settled(pilot)
        await pilot.press("3", key)
        await pilot.pause()
        for entry in pilot.app.screen.query(Input):
            entry.cursor_blink = False

    assert snap_compare(app(), terminal_size=(80, 24), run_before=ready)


# --- the way of a stranger --------------------------------------------------------------------


async def test_a_strangers_task_by_keys_alone(trace) -> None:
    """The key sequence of docs/tui.md: slowest step, widest gap, kernel before it, shares."""
    engine, lane = trace.engines[0], trace.lanes.lanes[0]
    work, track = lane.work, lane.traced
    assert isinstance(work, LaneWork) and track is not None
    laps = np.diff(track.bounds_ns)[1:]
    slowest = int(np.argmax(laps)) + 1
    bounds = [int(t) for t in track.bounds_ns[slowest : slowest + 2]]
    gaps = sorted(work.gaps(slowest, *bounds), key=lambda g: g.start_ns - g.end_ns)
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "n")
        assert f"step {slowest} of {track.steps}" in shown(screen)
        assert f"slowest of {track.steps}" in shown(screen)
        await pilot.press("w")
        assert screen.view.timeline.selected.gap == gaps[0]
        assert "host had not launched it yet" in shown(screen)
        await pilot.press("w")
        assert screen.view.timeline.selected.gap == gaps[1]
        await pilot.press("left_square_bracket")
        before = screen.view.timeline.selected.item
        assert before == gaps[1].after
        assert work.short_name(before)[:30] in shown(screen) and "registers" in shown(screen)
        await pilot.press("4")
        text = shown(screen)
        said = " ".join(text.split())
        assert "as fast as torch" in said and ": 4.12 ms idle (modelled)" in said
        shares = [line.split() for line in text.splitlines() if line.startswith("G GEMM/GEMV")]
        assert shares[0][2:5:2] != shares[0][5:8:2]  # both engines' ms and shares stand there
        assert "48 %" in text and "80 %" in text
    assert engine.label == "torch"


# --- moving -----------------------------------------------------------------------------------


async def test_zoom_pan_and_whole_are_keys() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3")
        now = nav.scene(screen.view)
        assert now is not None and now.window == now.axis.home
        await pilot.press("plus", "plus", "l")
        window = screen.view.timeline.window
        assert window is not None and (window[1] - window[0]) * 4 == pytest.approx(
            now.axis.home[1] - now.axis.home[0], abs=4
        )
        for _ in range(60):
            await pilot.press("plus")
        assert screen.view.timeline.window[1] - screen.view.timeline.window[0] == nav.SHORTEST_NS
        assert "ns a cell" in shown(screen)
        for _ in range(60):
            await pilot.press("minus")
        assert screen.view.timeline.window == (0, now.axis.length_ns)
        await pilot.press("0")
        assert screen.view.timeline.window is None


async def test_steps_are_reached_by_number_rank_and_median(trace) -> None:
    track = trace.lanes.lanes[0].traced
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "g")
        assert isinstance(pilot.app.screen, Ask)
        await typed(pilot, "3")
        assert screen.view.timeline.selected.step == 3
        order = track.slowest_first()
        seen = []
        for _ in order:
            await pilot.press("n")
            seen.append(screen.view.timeline.selected.step)
        assert seen == order
        await pilot.press("N")
        assert screen.view.timeline.selected.step == order[-2]
        await pilot.press("m")
        assert screen.view.timeline.selected.step == track.median_step()
        await pilot.press("tab")
        assert screen.view.focus == 1 and screen.view.timeline.selected.step


def test_items_and_gaps_follow_each_other_through_the_round(opened, trace) -> None:
    view = View(UNICODE, page="timeline", trace=trace)
    now = nav.scene(view)
    assert now is not None
    work, track = now.lane.work, now.track
    assert isinstance(work, LaneWork) and track is not None
    timeline = nav.to_step(now, view.timeline, 1)
    forward = []
    for _ in range(1500):
        timeline = nav.neighbour(now, timeline, 1)
        forward.append((timeline.selected.step, timeline.selected.item, timeline.selected.gap))
    both = [x for step in (1, 2) for x in nav.sequence(work, track, step)]
    assert [(i, g) for _, i, g in forward] == both[: len(forward)]
    assert {step for step, _, _ in forward} == {1, 2}
    backward = []
    for _ in range(1499):
        timeline = nav.neighbour(now, timeline, -1)
        backward.append((timeline.selected.step, timeline.selected.item, timeline.selected.gap))
    assert backward == forward[-2::-1]


async def test_search_selects_kernels_and_says_when_there_is_none() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "slash")
        await typed(pilot, "SILU")
        first = screen.view.timeline.selected.item
        assert first is not None and "elementwise silu" in shown(screen)
        await pilot.press("full_stop")
        second = screen.view.timeline.selected.item
        assert second > first
        await pilot.press("comma")
        assert screen.view.timeline.selected.item == first
        await pilot.press("slash")
        await typed(pilot, "[no such] kernel")
        assert screen.view.timeline.selected.item == first
        assert any("no kernel of torch" in n.message for n in pilot.app._notifications)


async def test_by_time_and_other_rounds() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "a")
        assert "by time · whole run" in shown(screen) and "power W" in shown(screen)
        await pilot.press("a", "r")
        assert "sampled round" in shown(screen) and "SM busy %" in shown(screen)
        await pilot.press("r")
        assert "timing round 1" in shown(screen)
        await pilot.press("n")
        assert "slowest of 64" in shown(screen)
        await pilot.press("R", "R")
        assert "traced round" in shown(screen)


async def test_the_wheel_zooms_around_the_pointer_and_a_click_selects() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "n")
        canvas = screen.query_one("#body")
        place = layout(screen._shown, screen.view, *canvas.scrollable_content_region.size)
        assert place.edges is not None
        x, y = 60, place.lanes[0][0] + 3
        before = place.at(x, y)
        # The canvas has one cell of padding.
        await pilot._post_mouse_events([_scroll_up()], canvas, offset=(x + 1, y), button=0)
        await pilot.pause()
        now = layout(screen._shown, screen.view, *canvas.scrollable_content_region.size)
        window = screen.view.timeline.window
        assert window is not None and now.at(x, y)[1] == pytest.approx(before[1], abs=200_000)
        assert window[1] - window[0] < place.edges[-1] - place.edges[0]
        await pilot.click(canvas, offset=(x + 1, y))
        await pilot.pause()
        chosen = screen.view.timeline.selected
        assert chosen is not None and (chosen.item is not None or chosen.gap is not None)
        await pilot.click(canvas, offset=(x + 1, place.lanes[1][0] + 3))
        assert screen.view.focus == 1


def _scroll_up():
    from textual.events import MouseScrollUp

    return MouseScrollUp


# --- every size, hostile and missing input ----------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (60, 12), (20, 5)])
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_no_row_is_wider_than_the_screen(opened, trace, size, glyphs) -> None:
    view = View(glyphs, page="timeline", trace=trace)
    now = nav.scene(view)
    assert now is not None
    states = [TimelineView(), TimelineView(align="time", streams=True)]
    states.append(nav.outlier(now, TimelineView(), 1))
    states.append(nav.widest_gap(now, states[-1], 1))
    states.append(nav.fit(now, nav.neighbour(now, states[-1], 1)))
    for timeline in states:
        rows = body(opened.snapshot(), replace(view, timeline=timeline), size[0] - 2, size[1] - 3)
        if size[0] >= 60:
            assert max(width_of(line) for line in rows) <= size[0] - 2
        if glyphs.ascii:
            assert all(strip(line, glyphs).text.isascii() for line in rows)
    rows = body(opened.snapshot(), replace(view, page="compare"), size[0] - 2, size[1] - 3)
    if size[0] >= 60:
        assert max(width_of(line) for line in rows) <= size[0] - 2


@pytest.mark.parametrize("page", ["steps", "summary", "timeline", "compare"])
def test_every_character_has_an_ascii_form(opened, trace, page) -> None:
    rows = body(opened.snapshot(), View(ASCII, page=page, trace=trace), 118, 37)
    assert "?" not in "".join(strip(line, ASCII).text for line in rows)


async def test_hostile_kernel_names_are_shown_as_text(tmp_path: Path) -> None:
    import sqlite3

    hostile = tmp_path / "run.sqlite"
    shutil.copyfile(FIXTURE, hostile)
    sql = sqlite3.connect(hostile)
    evil = "[red]evil[/] \x1b[2J 漢字 kernel"
    sql.execute("UPDATE StringIds SET value = ? WHERE value LIKE '%nvjet%'", (evil,))
    sql.commit()
    sql.close()
    async with app(hostile).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        for keys in (["4"], ["3", "n", "right_square_bracket", "right_square_bracket", "enter"]):
            await pilot.press(*keys)
            assert "\x1b" not in shown(screen)
        await pilot.press("slash")
        await typed(pilot, "evil")
        await pilot.press("enter")
        assert "[red]evil[/]" in shown(screen) and "\x1b" not in shown(screen)


async def test_a_run_without_kernels_shows_its_steps(tmp_path: Path) -> None:
    import runfile_factory

    run = runfile_factory.sample_run(gpu=False)
    operators = runfile_factory.sample_operators(run.rounds_of(0, "traced")[0])
    path = runfile_factory.write_run(tmp_path / "run.sqlite", run, operators)
    async with app(path).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "n")
        assert "kernels n/a: the trace holds no kernel" in shown(screen)
        assert "slowest of 8" in shown(screen)
        await pilot.press("w", "right_square_bracket", "c")
        assert "slowest of 8" in pilot.app._clipboard
        await pilot.press("4")
        assert "2 operators" in shown(screen) and "aten::addmm" in shown(screen)


async def test_the_trace_is_read_once_when_a_live_run_ends() -> None:
    reads = []

    class Ending(FixedSource):
        def trace(self, tell):
            reads.append(self.now.state)
            return source().trace()

    over = source().snapshot()
    live = Ending(replace(over, state="running"))
    running = LlmprofApp(live)
    async with running.run_test(size=(80, 24)) as pilot:
        await pilot.press("3")
        assert "read when the run is over" in shown(await settled(pilot))
        live.now = over
        running.poll()
        assert "where a step goes" in shown(await settled(pilot))
        await pilot.press("3", "4", "3")
        assert "traced round" in shown(await settled(pilot))
    assert reads == ["finished"]


async def test_a_mistake_while_reading_does_not_look_like_reading() -> None:
    class Broken(FixedSource):
        def trace(self, tell):
            raise ValueError("a mistake in the program")

    with pytest.raises(WorkerFailed, match="a mistake in the program"):
        async with LlmprofApp(Broken(source().snapshot(), live=False)).run_test() as pilot:
            await settled(pilot)


@pytest.mark.parametrize("page", ["1", "2"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_steps_and_summary_show_how_busy_the_gpu_was(page: str, size) -> None:
    async with app().run_test(size=size) as pilot:
        await pilot.press(page)
        rows = shown(await settled(pilot)).splitlines()
        busy = [line for line in rows if "GPU busy" in line]
        assert len(busy) == 2
        idle = [float(line.split()[-2]) for line in busy]
        assert all(line.rstrip().endswith(" ms") for line in busy) and idle[0] > idle[1]


def test_an_engine_on_a_cpu_shows_its_operators_instead(tmp_path: Path) -> None:
    import runfile_factory

    run = runfile_factory.sample_run(gpu=False)
    operators = runfile_factory.sample_operators(run.rounds_of(0, "traced")[0])
    path = runfile_factory.write_run(tmp_path / "run.sqlite", run, operators)
    found = source(path)
    trace = found.trace()
    assert isinstance(trace, RunTrace)
    assert all(isinstance(engine, EngineTrace) for engine in trace.engines)
    rows = [text_of(r) for r in section(found.snapshot(), View(UNICODE, trace=trace), 118)]
    assert "aten::addmm" in rows[1] and "GPU n/a: the trace holds no kernel" in rows[2]
