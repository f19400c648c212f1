"""Opening a foreign or a large file on the screen: steps first, a true bar, a choice of steps."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import foreign_factory
import pytest
from textual.widgets import Input
from tui_pilot import settled, shown

from llmprof.analysis.view import traced
from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.records.steps import (
    StepChoice,
)
from llmprof.runfile.trace import chunks
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.dialogs import Choose


def source_of(path: Path) -> RunDataSource:
    return RunDataSource(open_run(path))


def header(app: LlmprofApp) -> str:
    return "\n".join(text_of(r) for r in app.main.query_one("#header", Canvas).rows)


class Slow(RunDataSource):
    """Tells how far it is, and waits to be told to go on."""

    go = threading.Event()
    told = threading.Event()
    ended = threading.Event()

    def trace(self, tell=traced.quiet):  # type: ignore[no-untyped-def]
        try:
            tell("reading kernels", 0.434)
            self.told.set()
            while not self.go.wait(0.02):
                tell("reading kernels", 0.435)
            return super().trace(tell)
        finally:
            self.ended.set()


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    for event in (Slow.go, Slow.told, Slow.ended):
        event.clear()
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    return Slow(open_run(file))


async def test_steps_first_then_a_bar_then_the_kernels(slow: Slow) -> None:
    app = LlmprofApp(slow)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("3")
        while not slow.told.is_set():
            await pilot.pause(0.01)
        await pilot.pause()
        assert "1.20 ms" in shown(app.main) and "the kernels are being read" in shown(app.main)
        assert "reading kernels" in header(app) and "43 %" in header(app)
        # Keys work meanwhile.
        await pilot.press("n")
        assert "slowest of 10" in shown(app.main)
        slow.go.set()
        await settled(pilot)
        assert "GPU busy" in shown(app.main) and "reading" not in header(app)
        assert "slowest of 10" in shown(app.main), "the selection stays"


async def test_quitting_does_not_wait_for_the_file(slow: Slow) -> None:
    app = LlmprofApp(slow)
    async with app.run_test(size=(120, 40)) as pilot:
        while not slow.told.is_set():
            await pilot.pause(0.01)
        await pilot.press("q")
    assert slow.ended.wait(5), "the reading goes on though nobody waits for it"
    assert app.return_value == 0 and not slow.go.is_set()


async def test_a_file_beyond_the_bound_says_what_is_not_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "MAX_KERNELS", 70)
    monkeypatch.setattr(traced, "LEAST_KERNELS", 1)
    monkeypatch.setattr(chunks.stretches, "__defaults__", (16,))
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    app = LlmprofApp(source_of(file))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        assert "1 warning" in header(app)
        await pilot.press("6")
        text = "analysed for the first 3 of 10 steps: there are more than 70"
        assert text in " ".join(shown(app.main).split())
        await pilot.press("3")
        # Bars over all ten steps; kernels are counted where they were looked at.
        last = shown(app.main).splitlines()
        letters = next(line for line in last if line.lstrip().startswith("kernels"))
        assert set(letters.removeprefix("kernels").strip()[-20:]) & set("GA")
        assert "kernels    n/a" in shown(app.main)
        await pilot.press("g", "9", "enter")
        await pilot.pause()
        assert "kernels of the first 3 steps are analysed" in shown(app.main)
        assert "idle" not in shown(app.main).splitlines()[-3]
        await pilot.press("g", "2", "enter")
        await pilot.pause()
        assert "widest gaps" in shown(app.main)
        assert isinstance(app.main.view.trace, RunTrace)


async def test_steps_are_chosen_from_the_ranges(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file)
    app = LlmprofApp(source_of(file))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("3", "p")
        await settled(pilot)
        assert isinstance(app.screen, Choose)
        assert app.screen.query_one(Input).value == "decode *"
        await pilot.press("down")
        assert app.screen.query_one(Input).value == "aten::linear"
        await pilot.press("enter")
        await settled(pilot)
        assert app.main.view.trace is not None
        await pilot.press("n")
        assert "slowest of 200" in shown(app.main)
        # A pattern of one's own, and one that matches nothing: all stays as it was.
        await pilot.press("p")
        await settled(pilot)
        app.screen.query_one(Input).value = "decode [12]"
        await pilot.press("enter")
        await settled(pilot)
        await pilot.press("n")
        assert "slowest of 2" in shown(app.main)
        await pilot.press("p")
        await settled(pilot)
        app.screen.query_one(Input).value = "nothing*"
        await pilot.press("enter")
        await settled(pilot)
        assert "slowest of 2" in shown(app.main)
        assert any("no such range" in n.message for n in app._notifications)
        # What is exported has these steps.
        assert app._steps == StepChoice("ranges", "decode [12]")


async def test_with_operators_alone_it_asks_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "x.sqlite"
    foreign_factory.write(file, text="\x1b[31mzz{}")
    with closing(sqlite3.connect(file)) as db:  # a word for operators, none for a step
        db.execute('UPDATE NVTX_EVENTS SET "text" = \'cudaX\' || "text" WHERE "text" LIKE \'%zz%\'')
        db.commit()
    app = LlmprofApp(source_of(file))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await settled(pilot)
        assert not isinstance(app.screen, Choose)  # none of them can be a step
        await pilot.press("p")
        await settled(pilot)
        assert isinstance(app.screen, Choose)
        offered = [name for name, _ in app.screen._entries]
        assert any("zz" in name for name in offered)
        assert not any("\x1b" in name for name in offered)
        await pilot.press("escape")
        assert "no steps are known" in " ".join(app.main.snapshot.warnings)


async def test_a_run_of_llmprof_has_nothing_to_choose(tmp_path: Path) -> None:
    app = LlmprofApp(source_of(Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("p")
        await settled(pilot)
        assert not isinstance(app.screen, Choose)
        assert any("Nsight Systems" in n.message for n in app._notifications)
