"""The Textual app of the live view."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import Footer

from llmprof.tui.drawing import palette
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import Row, Span, row, rule
from llmprof.tui.drawing.compositor import CellApp
from llmprof.tui.drawing.glyphs import choose
from llmprof.tui.recording.lines import LiveLines, Status

REFRESH_S = 0.25


class RecordApp(CellApp[None]):
    """Shows until ``done``.

    Args:
        status: the newest one, ``None`` before the program runs.
        output: the program's last N lines.
        toggle: the window's key was pressed.
        stop: the user wants the program to end; a second time, for sure.
        resize: rows and columns of the program's terminal.
    """

    CSS_PATH = "../llmprof.tcss"
    TITLE = "llmprof"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "stop_program", "End the program", key_display="q", priority=True),
        Binding("w", "window", "Window open, closed"),
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
        depth = palette.choose(os.environ)
        palette.use(depth)
        super().__init__(ansi_color=depth != "full")
        self._glyphs = choose(os.environ)
        self._lines = LiveLines(self._glyphs, command, file)
        self._status = status
        self._output = output
        self._toggle = toggle
        self._stop = stop
        self._resize = resize
        self._done = done

    def compose(self) -> ComposeResult:
        yield Canvas(self._header, self._glyphs, id="header")
        yield Canvas(self._body, self._glyphs, id="body")
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.screen.set_class(self._glyphs.ascii, "-ascii")
        self.query_one("#header", Canvas).can_focus = False
        self.set_interval(REFRESH_S, self.poll)

    def on_resize(self, event: Resize) -> None:
        super().on_resize(event)
        self._resize(max(4, event.size.height - 8), max(20, event.size.width))

    def _header(self, width: int, _height: int) -> list[Row]:
        return [*self._lines.header(self._status(), width), ()][:2]

    def _body(self, width: int, height: int) -> list[Row]:
        """What was recorded, then as much of the program's output as there is room for."""
        rows = self._lines.body(self._status(), width, height=height)
        title = rule(row(Span("the program says", "strong")), (), width, self._glyphs.track)
        said = self._output(max(1, height - len(rows) - 1))
        return [*rows, title, *(row(Span(t)) for t in self._lines.output(said, width))]

    def poll(self) -> None:
        with self.batch_update():
            for canvas in self.query(Canvas):
                canvas.redraw()
        if self._done():
            self.exit()

    def action_window(self) -> None:
        self._toggle()

    def action_stop_program(self) -> None:
        self._stop()
