"""The trace and kernels pages, on a run recorded on an H100 (eager against CUDA-graph torch)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmprof.analysis.live import RunDataSource
from llmprof.analysis.traced import EngineTrace, RunTrace, StepView
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.app import LlmprofApp, MainScreen
from llmprof.tui.cells import text_of
from llmprof.tui.trace_page import _cells

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
