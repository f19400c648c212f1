"""The Textual app of the live view."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import Footer, Static

from llmprof.tui.drawing import palette
from llmprof.tui.drawing.glyphs import choose
from llmprof.tui.recording.lines import LiveLines, Status

REFRESH_S = 0.25


class RecordApp(App[None]):
    """Shows until ``done``.

    Args:
        status: the newest one, ``None`` before the program runs.
        output: the program's last N lines.
        toggle: the window's key was pressed.
        stop: the user wants the program to end; a second time, for sure.
        resize: rows and columns of the program's terminal.
    """

    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    CSS = "#above { height: auto; } #output { height: 1fr; border-top: solid $primary; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("w", "window", "window open/closed"),
        Binding("ctrl+c,q", "stop_program", "end the program", priority=True),
    ]

    def __init__(
        self,
        *,
        command: str,
        file: str,
        status: Callable[[], Status | None],
        output: Callable[[int], list[str]],
        toggle: Callable[[], None],
        stop: Callable[[], None],
        resize: Callable[[int, int], None],
        done: Callable[[], bool],
    ) -> None:
        super().__init__(ansi_color=palette.choose(os.environ) != "full")
        self._lines = LiveLines(choose(os.environ), command, file)
        self._status = status
        self._output = output
        self._toggle = toggle
        self._stop = stop
        self._resize = resize
        self._done = done

    def compose(self) -> ComposeResult:
        yield Static(id="above", markup=False)
        yield Static(id="output", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self.poll)
        self.poll()

    def on_resize(self, event: Resize) -> None:
        self._resize(max(4, event.size.height - 8), max(20, event.size.width))

    def poll(self) -> None:
        width = max(20, self.size.width)
        above = "\n".join(self._lines.lines(self._status(), width))
        self.query_one("#above", Static).update(Text(above, no_wrap=True))
        pane = self.query_one("#output", Static)
        rows = max(1, pane.size.height - 1)
        lines = self._lines.output(self._output(rows), width)
        pane.update(Text("\n".join(lines), no_wrap=True))
        if self._done():
            self.exit()

    def action_window(self) -> None:
        self._toggle()

    def action_stop_program(self) -> None:
        self._stop()
