"""The TUI in a test: a source over a recorded file, the app, waiting, reading the screen."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.main_screen import MainScreen

FIXTURE = Path(__file__).parents[1] / "fixtures" / "h100_graph.sqlite"
SIZES = [(80, 24), (120, 40), (200, 60)]


def source(path: Path = FIXTURE) -> RunDataSource:
    with RunFileReader(path) as reader:
        return RunDataSource(reader.run_data())


def app(path: Path = FIXTURE, **more) -> LlmprofApp:
    return LlmprofApp(source(path), **more)


async def settled(pilot) -> MainScreen:
    """Waits until a finished run's trace is shown: a thread's last message may come late."""
    main = pilot.app.main
    for _ in range(2000):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()
        if pilot.app.source.live or (main.view.trace is not None and main.view.reading is None):
            break
        await pilot.pause(0.01)
    return main


def shown(screen: MainScreen) -> str:
    return "\n".join(text_of(row) for row in screen.query_one("#body").rows)


async def typed(pilot, text: str) -> None:
    """Into the open dialog."""
    await pilot.pause()
    pilot.app.screen.query_one(Input).value = text
    await pilot.press("enter")
    await pilot.pause()
