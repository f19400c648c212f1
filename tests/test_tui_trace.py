"""The trace and kernels pages, on a run recorded on an H100 (eager against CUDA-graph torch)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Static
from textual.worker import WorkerFailed
from tui_snapshots_data import FixedSource

from llmprof.analysis.live import RunDataSource
from llmprof.analysis.traced import EngineTrace, RunTrace, StepView
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.app import LlmprofApp, MainScreen
from llmprof.tui.busy import section
from llmprof.tui.canvas import strip
from llmprof.tui.cells import text_of
from llmprof.tui.frame import body
from llmprof.tui.glyphs import ASCII, UNICODE
from llmprof.tui.trace_page import _cells
from llmprof.tui.view import View

FIXTURE = Path(__file__).parent / "fixtures" / "h100_graph.sqlite"


def source(path: Path = FIXTURE) -> RunDataSource:
    with RunFileReader(path) as reader:
        return RunDataSource(reader.run_data())


def app(path: Path = FIXTURE) -> LlmprofApp:
    return LlmprofApp(source(path))


async def settled(pilot) -> MainScreen:
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    return pilot.app.main


def shown(screen: MainScreen) -> str:
    return "\n".join(text_of(row) for row in screen.query_one("#body").rows)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("key", ["3", "4"])
def test_pages_look_as_they_should(snap_compare, key: str, size: tuple[int, int]) -> None:
    async def ready(pilot) -> None:
        await pilot.press(key)
        await settled(pilot)

    assert snap_compare(app(), terminal_size=size, run_before=ready)


async def test_steps_items_and_zoom_are_keys() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        await pilot.press("3")
        screen = await settled(pilot)
        assert "traced step 1 of 4" in shown(screen)
        assert "step start → elementwise index" in shown(screen)
        await pilot.press("right", "right")
        assert screen.view.step == 3
        await pilot.press("left", "right_square_bracket")
        assert (screen.view.step, screen.view.item) == (2, 1)
        assert "own launch" in shown(screen) and "registers" in shown(screen)
        await pilot.press("plus", "plus")
        assert screen.view.end - screen.view.start == pytest.approx(0.25)
        await pilot.press("tab")
        assert "graph node" in shown(screen)
        await pilot.press("n")
        slowest = screen.view.step
        trace = screen.view.trace
        assert isinstance(trace, RunTrace)
        record = trace.engines[1].record
        assert record is not None
        stamps = record.stamps_ns
        laps = [stamps[i] - stamps[i - 1] for i in range(1, len(stamps))]
        assert slowest == laps.index(max(laps)) + 1


async def test_kernels_can_be_ordered() -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        await pilot.press("4")
        screen = await settled(pilot)
        assert "−" in shown(screen) and "idle" in shown(screen)
        await pilot.press("o", "o")
        assert "by mean" in shown(screen)


def test_a_step_is_its_items_and_its_gaps() -> None:
    trace = source().trace()
    assert isinstance(trace, RunTrace)
    for engine in trace.engines:
        step = engine.step_view(2)
        assert isinstance(step, StepView)
        assert step.busy_ns + step.idle_ns == step.wall_ns
        gaps = [item for item in step.items if item.kind == "gap"]
        assert sum(item.end_ns - item.start_ns for item in gaps) == step.idle_ns


def test_cells_share_out_all_the_time() -> None:
    trace = source().trace()
    assert isinstance(trace, RunTrace)
    step = trace.engines[0].step_view(1)
    assert isinstance(step, StepView)
    for width in (1, 7, 80, 1000):
        cells = _cells(step.items, (0, step.wall_ns), width)
        busy = sum(share for _, share in cells) / width * step.wall_ns
        assert busy == pytest.approx(step.busy_ns, rel=0.005)  # some kernels overlap


async def test_hostile_kernel_names_are_shown_as_text(tmp_path: Path) -> None:
    import sqlite3

    hostile = tmp_path / "run.sqlite"
    shutil.copyfile(FIXTURE, hostile)
    sql = sqlite3.connect(hostile)
    evil = "[red]evil[/] \x1b[2J kernel"
    sql.execute("UPDATE StringIds SET value = ? WHERE value LIKE '%nvjet%'", (evil,))
    sql.commit()
    sql.close()
    async with app(hostile).run_test(size=(120, 40)) as pilot:
        await pilot.press("4")
        text = shown(await settled(pilot))
        assert "\x1b" not in text
        assert "[red]" in text


def test_a_run_without_a_trace_says_so(tmp_path: Path) -> None:
    import runfile_factory

    path = tmp_path / "run.sqlite"
    runfile_factory.write_run(path, runfile_factory.sample_run())
    trace = source(path).trace()
    assert isinstance(trace, RunTrace)
    assert all(isinstance(engine, EngineTrace) for engine in trace.engines)


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
    opened = source(path)
    trace = opened.trace()
    assert isinstance(trace, RunTrace)
    rows = [text_of(r) for r in section(opened.snapshot(), View(UNICODE, trace=trace), 118)]
    assert "aten::addmm" in rows[1] and "GPU n/a: the trace holds no kernel" in rows[2]


async def test_the_trace_is_read_once_when_a_live_run_ends() -> None:
    reads = []

    class Ending(FixedSource):
        def trace(self):
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
        assert "GPU busy" in shown(await settled(pilot))
        await pilot.press("3", "4", "3")
        assert "traced step 1 of 4" in shown(await settled(pilot))
    assert reads == ["finished"]


async def test_a_mistake_while_reading_does_not_look_like_reading() -> None:
    class Broken(FixedSource):
        def trace(self):
            raise ValueError("a mistake in the program")

    with pytest.raises(WorkerFailed, match="a mistake in the program"):
        async with LlmprofApp(Broken(source().snapshot(), live=False)).run_test() as pilot:
            await settled(pilot)


@pytest.mark.parametrize("page", ["steps", "summary", "trace", "kernels"])
def test_every_character_has_an_ascii_form(page) -> None:
    opened = source()
    rows = body(opened.snapshot(), View(ASCII, page=page, trace=opened.trace()), 118, 37)
    assert "?" not in "".join(strip(line, ASCII).text for line in rows)


def test_behind_the_end_of_a_step_nothing_waits() -> None:
    opened = source()
    rows = body(opened.snapshot(), View(UNICODE, page="trace", trace=opened.trace()), 118, 37)
    graph = next(text_of(r) for r in rows if "step over" in text_of(r))
    assert graph.rstrip().endswith("│ step over")


async def test_help_fits_a_small_screen() -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        await pilot.pause()
        dialog = pilot.app.screen.query_one(".dialog", Static)
        assert len(str(dialog.content).splitlines()) <= dialog.content_size.height
