"""The Textual app of a sweep: reads its store on a thread, follows it while it grows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from llmprof.errors import LlmprofError
from llmprof.plaintext import one_line
from llmprof.sweep.fields import short
from llmprof.sweep.store import Store
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import Row, clean
from llmprof.tui.drawing.glyphs import choose
from llmprof.tui.drawing.one_screen import OneScreenApp
from llmprof.tui.sweep.page import TABS, Known, SweepView, body, header

POLL_S = 2.0


class Read(Message):
    """The store was read; ``known`` is ``None`` where it could not be."""

    def __init__(self, known: Known | None, error: str) -> None:
        super().__init__()
        self.known = known
        self.error = error


class SweepScreen(Screen[None], inherit_bindings=False):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,escape", "app.leave", "Quit", key_display="q", id="quit"),
        Binding("question_mark", "help", "Help", key_display="?", id="help"),
        Binding("i", "sources", show=False, id="sources"),
        Binding("enter", "open", "Run of the point", key_display="enter", id="point"),
        Binding("tab", "tab(1)", "Page", priority=True, id="tab"),
        *(Binding(str(n), f"page({n - 1})", show=False) for n in range(1, len(TABS) + 1)),
        Binding("a", "axis", "Axis", id="axis"),
        Binding("m", "metric", "Metric", id="metric"),
        Binding("up,k", "move(-1, 0)", "Curve", show=False, priority=True, id="curve-up"),
        Binding("down,j", "move(1, 0)", "Curve", show=False, priority=True, id="curve-down"),
        Binding("left,h", "move(0, -1)", "Place", show=False, priority=True, id="left"),
        Binding("right,l", "move(0, 1)", "Place", show=False, priority=True, id="right"),
    ]

    def __init__(self, app: SweepApp, view: SweepView) -> None:
        super().__init__()
        self._sweep = app
        self.glyphs = choose(os.environ)
        self.view = view
        self.known: Known | None = None

    def compose(self) -> ComposeResult:
        self.set_class(self.glyphs.ascii, "-ascii")
        yield Canvas(self._header, self.glyphs, id="header")
        yield Canvas(self._body, self.glyphs, id="body")
        yield Footer(show_command_palette=False, compact=True)

    def _header(self, width: int, _height: int) -> list[Row]:
        return header(self.known, self.view, width)

    def _body(self, width: int, height: int) -> list[Row]:
        return body(self.known, self.view, self.glyphs, width, height)

    def on_mount(self) -> None:
        self.query_one("#header", Canvas).can_focus = False
        self.query_one("#body", Canvas).focus()
        self._read(True)
        self.set_interval(POLL_S, lambda: self._read(False))

    @work(thread=True, exclusive=True)
    def _read(self, first: bool) -> None:
        try:
            if not self._sweep.store.refresh() and not first:
                return
            self.post_message(Read(known_of(self._sweep.store), ""))
        except LlmprofError as why:
            self.post_message(Read(None, str(why)))

    def on_read(self, message: Read) -> None:
        if message.known is None:
            self.notify(clean(message.error), severity="error", markup=False)
            return
        self.known = message.known
        self.redraw()

    def redraw(self) -> None:
        for canvas in self.query(Canvas):
            canvas.redraw()

    def set_view(self, view: SweepView) -> None:
        self.view = view
        self.redraw()

    def action_tab(self, way: int) -> None:
        at = TABS.index(self.view.tab)
        self.set_view(replace(self.view, tab=TABS[(at + way) % len(TABS)]))

    def action_page(self, number: int) -> None:
        self.set_view(replace(self.view, tab=TABS[number]))

    def action_axis(self) -> None:
        self.set_view(replace(self.view, axis=self.view.axis + 1, curve=0, place=0))

    def action_metric(self) -> None:
        self.set_view(replace(self.view, metric=self.view.metric + 1))

    def action_move(self, curve: int, place: int) -> None:
        if self.known is not None:
            self.set_view(self.view.moved(self.known, curve, place))

    def action_help(self) -> None:
        from llmprof.tui.shell.dialogs import HelpScreen

        keys = {b.id: b.key for b in self.BINDINGS if isinstance(b, Binding) and b.id}
        self.app.push_screen(HelpScreen(self.glyphs, "sweep", keys))

    def action_sources(self) -> None:
        """Where the numbers are from."""
        from llmprof.tui.shell.sources_screen import SourcesScreen

        self.app.push_screen(SourcesScreen(self.glyphs, "sweep", None))

    def action_open(self) -> None:
        chosen = None if self.known is None else self.view.chosen(self.known)
        if chosen is None:
            return
        name = str(chosen[1].rows[0].get("run_file") or "")
        path = self._sweep.store.folder / name
        if not name or not path.is_file():
            where = clean(str(path)) if name else "this point has no run file"
            self.notify(f"{where}: not here" if name else where, severity="warning", markup=False)
            return
        self._sweep.exit((path, self.view))


class SweepApp(OneScreenApp[tuple[Path | None, SweepView]]):
    """Returns the run file that is to be opened, if any, and the view to come back to."""

    def __init__(self, store: Store, view: SweepView) -> None:
        super().__init__()
        self.store = store
        self.page = SweepScreen(self, view)

    def get_default_screen(self) -> Screen[None]:
        return self.page

    def action_leave(self) -> None:
        self.exit((None, self.page.view))


def known_of(store: Store) -> Known:
    """What the page shows of a store; takes a second for ten thousand points."""
    states = [ended.state for ended in store.ended.values()]
    fixed = [
        f"{name} {short(name, values[0])}"
        for name, values in store.grid.fields.items()
        if len(values) == 1 and name in ("model", "context", "batch")
    ]
    title = one_line(" · ".join([store.folder.name, *fixed]), 120)
    done, failed = states.count("done"), len(states) - states.count("done")
    return Known.of(title, store.grid.axes, store.rows(), len(store.points), done, failed)
