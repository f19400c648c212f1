"""The Textual app: polls a ``SnapshotSource`` and hands snapshots to the canvases."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from llmprof.analysis.snapshot import Snapshot, SnapshotSource
from llmprof.analysis.traced import EngineTrace, RunTrace, StepView
from llmprof.errors import (
    EXIT_ENGINE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_RAN,
    EXIT_OK,
)
from llmprof.records import Unavailable
from llmprof.tui import refresh_rate
from llmprof.tui.canvas import Canvas
from llmprof.tui.cells import clean
from llmprof.tui.compositor import CellCompositor
from llmprof.tui.dialogs import ConfirmStop, HelpScreen
from llmprof.tui.frame import body, header
from llmprof.tui.glyphs import Glyphs, choose
from llmprof.tui.host_page import SELECTIONS
from llmprof.tui.kernels_page import SORTS
from llmprof.tui.trace_page import step_count
from llmprof.tui.view import PAGES, SCALES, View


class TraceRead(Message):
    """The traced pass of the run has been read, or why it could not be."""

    def __init__(self, trace: RunTrace | Unavailable) -> None:
        super().__init__()
        self.trace = trace


class MainScreen(Screen[None], inherit_bindings=False):
    """Header, page, footer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit_run", "Quit", id="quit"),
        Binding("question_mark", "help", "Help", key_display="?", id="help"),
        Binding("space", "pause", "Pause", key_display="space", id="pause"),
        Binding("tab", "focus_engine(1)", "Engine", key_display="tab", id="engine"),
        Binding("t", "page", "Page", id="page"),
        Binding("enter", "zoom", "Zoom", key_display="enter", id="zoom"),
        Binding("s", "screenshot", "Screenshot", id="screenshot"),
        Binding("shift+tab", "focus_engine(-1)", show=False),
        Binding("left,h", "turn(-1)", show=False),
        Binding("right,l", "turn(1)", show=False),
        Binding("plus,equals_sign", "time_zoom(0.5)", show=False),
        Binding("minus", "time_zoom(2.0)", show=False),
        Binding("right_square_bracket,full_stop", "item(1)", show=False),
        Binding("left_square_bracket,comma", "item(-1)", show=False),
        Binding("n", "slowest(1)", show=False),
        Binding("N", "slowest(-1)", show=False),
        Binding("o", "sort", show=False, id="sort"),
        Binding("g", "host", show=False, id="host"),
        Binding("escape", "zoom(False)", show=False),
        Binding("y", "scale", show=False, id="scale"),
        *(Binding(str(i), f"page('{page}')", show=False) for i, page in enumerate(PAGES, 1)),
    ]

    def __init__(self, first: Snapshot, glyphs: Glyphs, live: bool) -> None:
        super().__init__()
        self._compositor = CellCompositor()
        self.snapshot = first
        """The newest snapshot, also while the display is frozen."""
        self._shown = first
        self._live = live
        self._ranked = False
        page = PAGES[0] if first.state == "running" else "summary"
        self.view = View(glyphs, page=page)

    def compose(self) -> ComposeResult:
        glyphs = self.view.glyphs
        self.set_class(glyphs.ascii, "-ascii")
        yield Canvas(lambda w, h: header(self._shown, self.view, w), glyphs, id="header")
        yield Canvas(lambda w, h: body(self._shown, self.view, w, h), glyphs, id="body")
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one("#header", Canvas).can_focus = False
        self.query_one("#body", Canvas).focus()
        if self.snapshot.state != "running":
            self._load_trace()

    def show(self, snapshot: Snapshot) -> None:
        """Take a new snapshot; draws only where it differs and the display is not frozen."""
        if snapshot == self.snapshot:
            return
        several = len(self.snapshot.engines) > 1
        ended = self.snapshot.state == "running" and snapshot.state != "running"
        self.snapshot = snapshot
        if ended:
            self.view = replace(self.view, page="summary", zoom=False, paused=False)
        if not self.view.paused:
            self._shown = snapshot
            self._draw()
        if ended:
            self._load_trace()
        if ended or several != (len(snapshot.engines) > 1):
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey out the keys that can do nothing now."""
        if action == "pause" and not (self._live and self.snapshot.state == "running"):
            return None
        if action in ("focus_engine", "zoom") and len(self.snapshot.engines) < 2:
            return None
        return True

    def _draw(self) -> None:
        with self.app.batch_update():
            for canvas in self.query(Canvas):
                canvas.redraw()

    def _set(self, view: View) -> None:
        if view.page != self.view.page or view.zoom != self.view.zoom:
            self.query_one("#body", Canvas).scroll_to(y=0, animate=False)
        self.view = view
        self._draw()

    def action_pause(self) -> None:
        self._shown = self.snapshot
        self._set(replace(self.view, paused=not self.view.paused))

    def action_focus_engine(self, step: int) -> None:
        count = len(self._shown.engines)
        if count:
            focus = (self.view.focused(self._shown) + step) % count
            self._set(replace(self.view, focus=focus))

    def action_page(self, page: str = "") -> None:
        turn = PAGES[(PAGES.index(self.view.page) + 1) % len(PAGES)]
        chosen = next((name for name in PAGES if name == page), turn)
        self._set(replace(self.view, page=chosen))

    @work(thread=True, exclusive=True, group="trace")
    def _load_trace(self) -> None:
        """Reading a long trace takes a second: not on the UI's thread."""
        trace = cast("LlmprofApp", self.app).source.trace()
        if isinstance(trace, RunTrace):
            for engine in trace.engines:
                _ = engine.kernels  # kept by the engine, so that the first frame only draws
                _ = engine.causes
        # A message, not a call: the app may be gone by now, and nobody must wait for it.
        self.post_message(TraceRead(trace))

    def on_trace_read(self, message: TraceRead) -> None:
        self._set(replace(self.view, trace=message.trace))

    def action_turn(self, way: int) -> None:
        """Left and right: the step on the trace page, the engine elsewhere."""
        on_step = self.view.page == "host" and self.view.host == "step"
        if self.view.page != "trace" and not on_step:
            self.action_focus_engine(way)
            return
        count = step_count(self.view.trace)
        if count:
            step = (self.view.step - 1 + way) % count + 1
            self._set(replace(self.view, step=step, item=0))

    def action_time_zoom(self, factor: float) -> None:
        """Zoom the step's time axis around the selected item."""
        view, step = self.view, self._step_on_show()
        if step is None or view.page != "trace":
            return
        item = step.items[min(view.item, len(step.items) - 1)]
        longest = max(s.wall_ns for s in self._steps_on_show())
        centre = (item.start_ns + item.end_ns) / 2 / longest
        half = min(0.5, max(1e-5, (view.end - view.start) / 2 * factor))
        centre = min(1 - half, max(half, centre))
        self._set(replace(view, start=centre - half, end=centre + half))

    def action_item(self, way: int) -> None:
        """Select the next kernel, copy or gap; the window follows it."""
        step, view = self._step_on_show(), self.view
        if step is None or view.page != "trace" or not step.items:
            return
        index = (min(view.item, len(step.items) - 1) + way) % len(step.items)
        longest = max(s.wall_ns for s in self._steps_on_show())
        at = (step.items[index].start_ns + step.items[index].end_ns) / 2 / longest
        start, end = view.start, view.end
        if not start <= at <= end:
            half = (end - start) / 2
            middle = min(1 - half, max(half, at))
            start, end = middle - half, middle + half
        self._set(replace(view, item=index, start=start, end=end))

    def action_slowest(self, way: int) -> None:
        """Go through the steps of the engine in focus from the slowest down."""
        engine = self._trace_in_focus()
        if engine is None or engine.record is None or self.view.page != "trace":
            return
        stamps = engine.record.stamps_ns
        order = sorted(range(1, engine.record.steps + 1), key=lambda i: stamps[i - 1] - stamps[i])
        rank = (order.index(self.view.step) + way) % len(order) if self._ranked else 0
        self._ranked = True
        self._set(replace(self.view, step=min(order[rank], step_count(self.view.trace)), item=0))

    def action_sort(self) -> None:
        turn = SORTS[(SORTS.index(self.view.sort) + 1) % len(SORTS)]
        self._set(replace(self.view, sort=turn))

    def action_host(self) -> None:
        """All steps, the selected step, or the GPU's idle gaps on the host page."""
        turn = SELECTIONS[(SELECTIONS.index(self.view.host) + 1) % len(SELECTIONS)]
        self._set(replace(self.view, host=turn))

    def _trace_in_focus(self) -> EngineTrace | None:
        trace = self.view.trace
        if not isinstance(trace, RunTrace) or not trace.engines:
            return None
        return trace.engines[min(self.view.focused(self._shown), len(trace.engines) - 1)]

    def _step_on_show(self) -> StepView | None:
        engine = self._trace_in_focus()
        step = None if engine is None else engine.step_view(self.view.step)
        return step if isinstance(step, StepView) and step.items else None

    def _steps_on_show(self) -> list[StepView]:
        trace = self.view.trace
        engines = trace.engines if isinstance(trace, RunTrace) else ()
        if self.view.zoom and (alone := self._trace_in_focus()) is not None:
            engines = (alone,)
        found = (engine.step_view(self.view.step) for engine in engines)
        return [step for step in found if isinstance(step, StepView)]

    def action_zoom(self, on: bool | None = None) -> None:
        self._set(replace(self.view, zoom=not self.view.zoom if on is None else on))

    def action_scale(self) -> None:
        turn = SCALES[(SCALES.index(self.view.scale) + 1) % len(SCALES)]
        self._set(replace(self.view, scale=turn))

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(self.view.glyphs))

    def action_screenshot(self) -> None:
        names = (Path(f"llmprof-{n}.svg") for n in range(1, 10_000))
        path = next(p for p in names if not p.exists())
        try:
            self.app.save_screenshot(str(path), path=str(Path.cwd()))
        except OSError as why:
            self.notify(f"no screenshot: {clean(str(why))}", severity="error", markup=False)
        else:
            self.notify(f"saved {clean(str(path.absolute()))}", markup=False)


class LlmprofApp(App[int]):
    """Shows a running session or a replayed run; ``run()`` returns the exit code.

    Args:
        source: where snapshots come from. Polled while ``source.live``, else read once.
        refresh_hz: polls a second; by default 4, over SSH 2.
    """

    CSS_PATH = "llmprof.tcss"
    TITLE = "llmprof"
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "quit_run", show=False, priority=True, system=True),
    ]

    def __init__(self, source: SnapshotSource, *, refresh_hz: float | None = None) -> None:
        super().__init__()
        self.source = source
        self.refresh_hz = refresh_hz or refresh_rate(os.environ)
        self.main = MainScreen(source.snapshot(), choose(os.environ), source.live)

    def get_default_screen(self) -> Screen[None]:
        return self.main

    def on_mount(self) -> None:
        if self.source.live:
            self.set_interval(1 / self.refresh_hz, self.poll, name="poll")

    def poll(self) -> None:
        """Read the source once and show what it has."""
        self.main.show(self.source.snapshot())

    def action_quit_run(self) -> None:
        """Quit; a running session is asked about and stopped first."""
        if not self.source.live or self.source.snapshot().state != "running":
            self.exit(self._exit_code())
        elif isinstance(self.screen, ConfirmStop):
            self.screen.dismiss(True)
        else:
            self.push_screen(ConfirmStop(self.main.view.glyphs), self._answered)

    def _answered(self, stop: bool | None) -> None:
        if not stop:
            return
        if self.source.snapshot().state != "running":
            # It ended while the question stood.
            self.exit(self._exit_code())
            return
        self.source.stop()
        self.exit(EXIT_INTERRUPTED)

    def _exit_code(self) -> int:
        """Of a live run by how it ended; looking at a file is always a success."""
        if not self.source.live:
            return EXIT_OK
        snapshot = self.source.snapshot()
        failed = [e for e in snapshot.engines if e.state == "failed"]
        if snapshot.state == "interrupted":
            return EXIT_INTERRUPTED
        if snapshot.state == "failed" or (failed and len(failed) == len(snapshot.engines)):
            return EXIT_NOTHING_RAN
        return EXIT_ENGINE_FAILED if failed else EXIT_OK
