"""The main screen: header, page, footer, and what the keys do to the view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Protocol, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer
from textual.worker import get_current_worker

from llmprof.analysis.view.frames.snapshot import Snapshot, SnapshotSource
from llmprof.analysis.view.traced import RunTrace
from llmprof.plaintext import one_line
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.findings import evidence
from llmprof.tui.frame import body, header
from llmprof.tui.live import rounds
from llmprof.tui.opening import TraceRead, read
from llmprof.tui.shell.dialogs import Ask, HelpScreen
from llmprof.tui.timeline import nav
from llmprof.tui.timeline.page import layout
from llmprof.tui.view import (
    HOST_RANGES,
    PAGE_KEYS,
    PAGES,
    SCALES,
    TimelineView,
    View,
    other_basis,
    sorted_anew,
    turned,
)  # fmt: skip


class RunApp(Protocol):
    """What the screen asks of the app that shows it."""

    source: SnapshotSource

    def keys(self) -> dict[str, str]: ...

    def take_screenshot(self) -> None: ...


class MainScreen(Screen[None], inherit_bindings=False):
    """Header, page, footer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit_run", "Quit", id="quit"),
        Binding("question_mark", "help", "Help", key_display="?", id="help"),
        Binding("i", "sources", show=False, id="sources"),
        Binding("space", "pause", "Pause", key_display="space", id="pause"),
        Binding("tab", "focus_engine(1)", "Engine", key_display="tab", id="engine"),
        Binding("t", "page", "Page", id="page"),
        Binding("enter", "zoom", "Zoom", key_display="enter", id="zoom"),
        Binding("e", "app.export", "Export", id="export"),
        Binding("f", "page('findings')", show=False, id="findings"),
        Binding("p", "app.pick_steps", "Pick steps", show=False, id="steps-pick"),
        Binding("s", "screenshot", "Screenshot", show=False, id="screenshot"),
        Binding("c", "copy", "Copy", show=False, id="copy"),
        Binding("ctrl+p,colon", "app.command_palette", "Palette", show=False, id="palette"),
        Binding("shift+tab", "focus_engine(-1)", show=False, id="engine-back"),
        Binding("left,h", "turn(-1)", show=False, id="left"),
        Binding("right,l", "turn(1)", show=False, id="right"),
        Binding("shift+left,H", "turn(-8)", show=False, id="left-far"),
        Binding("shift+right,L", "turn(8)", show=False, id="right-far"),
        Binding("j", "vertical(1)", show=False, id="down"),
        Binding("k", "vertical(-1)", show=False, id="up"),
        Binding("plus,equals_sign", "time_zoom(0.5)", show=False, id="zoom-in"),
        Binding("minus", "time_zoom(2.0)", show=False, id="zoom-out"),
        Binding("right_square_bracket", "item(1)", show=False, id="item-next"),
        Binding("left_square_bracket", "item(-1)", show=False, id="item-back"),
        Binding("full_stop", "match(1)", show=False, id="match-next"),
        Binding("comma", "match(-1)", show=False, id="match-back"),
        # Priority: what is typed ahead belongs to the dialog.
        Binding("slash", "search", show=False, priority=True, id="search"),
        Binding("n", "outlier(1)", show=False, id="slowest"),
        Binding("N", "outlier(-1)", show=False, id="slowest-back"),
        Binding("m", "median", show=False, id="median"),
        Binding("w", "gap(1)", show=False, id="widest-gap"),
        Binding("W", "gap(-1)", show=False, id="widest-gap-back"),
        Binding("g", "goto", show=False, priority=True, id="goto"),
        Binding("a", "align", show=False, id="align"),
        Binding("r", "round(1)", show=False, id="round"),
        Binding("R", "round(-1)", show=False, id="round-back"),
        Binding("v", "streams", show=False, id="streams"),
        Binding("0,home", "whole", show=False, id="whole"),
        Binding("o", "sort", show=False, id="sort"),
        Binding("b", "basis", show=False, id="basis"),
        Binding("u", "purpose", show=False, id="purpose"),
        Binding("A", "baseline", show=False, id="baseline"),
        Binding("escape", "out", show=False, id="out"),
        Binding("y", "scale", show=False, id="scale"),
        *(
            Binding(key, f"page('{page}')", show=False, id=f"page-{page}")
            for page, key in PAGE_KEYS.items()
        ),
    ]

    def __init__(self, first: Snapshot, glyphs: Glyphs, live: bool) -> None:
        super().__init__()
        self.snapshot = first
        """The newest snapshot, also while the display is frozen."""
        self._shown = first
        self._live = live
        page = PAGES[0] if first.state == "running" else "findings"
        self.view = View(glyphs, page=page)

    def compose(self) -> ComposeResult:
        glyphs = self.view.glyphs
        self.set_class(glyphs.ascii, "-ascii")
        yield Canvas(lambda w, h: header(self._shown, self.view, w), glyphs, id="header")
        yield Canvas(
            lambda w, h: body(self._shown, self.view, w, h),
            glyphs,
            id="body",
            wheel=self._wheel,
            click=self._click,
        )
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one("#header", Canvas).can_focus = False
        self.query_one("#body", Canvas).focus()
        if self.snapshot.state != "running":
            self._load_trace()

    def reopen(self, snapshot: Snapshot) -> None:
        """The same file, read in another way."""
        self.view = replace(
            self.view,
            trace=None,
            timeline=TimelineView(),
            focus=0,
            zoom=False,
            findings=None,
            finding=0,
        )
        self.show(snapshot)
        self._draw()
        self._load_trace()

    def show(self, snapshot: Snapshot) -> None:
        """Take a new snapshot; draws only where it differs and the display is not frozen."""
        if snapshot == self.snapshot:
            return
        several = len(self.snapshot.engines) > 1
        ended = self.snapshot.state == "running" and snapshot.state != "running"
        self.snapshot = snapshot
        if ended:
            self.view = replace(self.view, page="findings", zoom=False, paused=False)
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
        if action == "focus_engine" and len(self.snapshot.engines) < 2:
            return None
        whole = self.view.page not in ("timeline", "findings")
        if action == "zoom" and whole and len(self.snapshot.engines) < 2:
            return None
        if action == "export" and self.snapshot.state == "running":
            return None
        return True

    def _draw(self) -> None:
        with self.app.batch_update():
            for canvas in self.query(Canvas):
                canvas.redraw()

    def set_view(self, view: View) -> None:
        """Show another view of the same run."""
        turned = view.page != self.view.page
        enabled = self.check_action("zoom", ())
        if turned or view.zoom != self.view.zoom:
            self.query_one("#body", Canvas).scroll_to(y=0, animate=False)
        self.view = view
        self._draw()
        if self.check_action("zoom", ()) != enabled:
            self.refresh_bindings()  # composes the footer anew: not for nothing

    def action_pause(self) -> None:
        self._shown = self.snapshot
        self.set_view(replace(self.view, paused=not self.view.paused))

    def action_focus_engine(self, step: int) -> None:
        count = len(self._shown.engines)
        if not count:
            return
        focus = (self.view.focused(self._shown) + step) % count
        timeline = self.view.timeline
        if chosen := timeline.selected:
            # Items are of one engine; the step is there in the other too.
            chosen = replace(chosen, item=None, gap=None)
        timeline = replace(timeline, selected=chosen, rank=None)
        self.set_view(replace(self.view, focus=focus, timeline=timeline))

    def action_page(self, page: str = "") -> None:
        chosen = next((name for name in PAGES if name == page), self.view.next_page)
        self.set_view(replace(self.view, page=chosen))

    @work(thread=True, exclusive=True, group="trace")
    def _load_trace(self) -> None:
        """Reading a long trace takes its time: not on the UI's thread."""
        # Messages, not calls: the app may be gone by now, and nobody must wait for it.
        read(
            cast(RunApp, self.app).source,
            self.post_message,
            lambda: get_current_worker().is_cancelled,
        )

    def on_trace_read(self, message: TraceRead) -> None:
        trace = self.view.trace if message.trace is None else message.trace
        found = self.view.findings if message.findings is None else message.findings
        self.set_view(replace(self.view, trace=trace, reading=message.reading, findings=found))
        if message.reading is None and isinstance(trace, RunTrace) and trace.cuts:
            cuts = tuple(one_line(f"{w.scope}: {w.text}") for w in trace.cuts)
            missing = tuple(text for text in cuts if text not in self.snapshot.warnings)
            self.show(replace(self.snapshot, warnings=(*self.snapshot.warnings, *missing)))

    def _move(self, step: Callable[[nav.Scene, TimelineView], TimelineView]) -> None:
        now = nav.scene(self.view) if self.view.page == "timeline" else None
        if now is not None:
            self.set_view(replace(self.view, timeline=step(now, self.view.timeline)))

    def action_turn(self, way: int) -> None:
        """Left and right: pan on the timeline, the step of the host's stacks, else the engine."""
        if self.view.page == "timeline":
            self._move(lambda now, view: nav.pan(now, view, way / 8))
        elif self.view.page == "host" and self.view.host == "step":
            self.set_view(nav.turn_traced_step(self.view, way))
        else:
            self.action_focus_engine(1 if way > 0 else -1)

    def action_vertical(self, way: int) -> None:
        """Up and down: the engine on the timeline, scrolling elsewhere."""
        canvas = self.query_one("#body", Canvas)
        if self.view.page == "timeline" and len(self._shown.engines) > 1:
            self.action_focus_engine(way)
        elif self.view.page == "findings":
            self.set_view(evidence.moved(self.view, way))
        else:
            canvas.scroll_relative(y=way, animate=False)

    def action_time_zoom(self, factor: float) -> None:
        self._move(lambda now, view: nav.zoom(now, view, factor))

    def action_item(self, way: int) -> None:
        self._move(lambda now, view: nav.neighbour(now, view, way))

    def action_outlier(self, way: int) -> None:
        self._move(lambda now, view: nav.outlier(now, view, way))

    def action_median(self) -> None:
        self._move(nav.median)

    def action_gap(self, way: int) -> None:
        self._move(lambda now, view: nav.widest_gap(now, view, way))

    def action_whole(self) -> None:
        self._move(lambda now, view: nav.whole(view))

    def action_round(self, way: int) -> None:
        """The next round: of the steps page, or of the timeline's axis."""
        if self.view.page == "steps":
            self.set_view(rounds.turned(self.view, way))
            return
        self._move(lambda now, view: nav.other_round(now, view, way))

    def action_streams(self) -> None:
        self._move(lambda now, view: replace(view, streams=not view.streams))

    def action_align(self) -> None:
        if self.view.page == "timeline" and nav.scene(self.view) is not None:
            self.set_view(nav.align(self.view))

    def action_goto(self) -> None:
        """Ask for a step and show it; on the host page, the next range of stacks."""
        if self.view.page == "host":
            self.set_view(replace(self.view, host=turned(self.view.host, HOST_RANGES)))
            return
        now = nav.scene(self.view) if self.view.page == "timeline" else None
        if now is None or now.track is None:
            return

        def go(text: str | None) -> None:
            if text and text.strip().isdecimal():
                self.goto_step(int(text))

        steps = now.track.steps
        self.app.push_screen(Ask(self.view.glyphs, f"Step, 1 to {steps}", digits=True), go)

    def goto_step(self, step: int) -> None:
        self.set_view(replace(self.view, page="timeline"))
        self._move(lambda now, view: nav.to_step(now, view, step))

    def action_search(self) -> None:
        """Ask for a text: the next kernel with it on the timeline, a filter on compare."""
        if self.view.page == "compare":
            before = self.view.compare.filter

            def narrow(text: str | None) -> None:
                if text is not None:
                    compare = replace(self.view.compare, filter=text)
                    self.set_view(replace(self.view, compare=compare))

            self.app.push_screen(Ask(self.view.glyphs, "Kernels with", before), narrow)
        elif self.view.page == "timeline" and nav.scene(self.view) is not None:

            def look(text: str | None) -> None:
                if text:
                    self.search(text)

            last = self.view.timeline.search
            self.app.push_screen(Ask(self.view.glyphs, "Kernel", last), look)

    def search(self, text: str) -> None:
        """Select the next kernel of the engine in focus whose name holds ``text``."""
        timeline = replace(self.view.timeline, search=text)
        self.set_view(replace(self.view, page="timeline", timeline=timeline))
        self.action_match(1)

    def action_match(self, way: int) -> None:
        now = nav.scene(self.view) if self.view.page == "timeline" else None
        text = self.view.timeline.search
        if now is None or not text:
            return
        found = nav.match(now, self.view.timeline, way)
        if found is None:
            engine = self._shown.engines[now.index].label
            self.notify(f"no kernel of {engine} holds {text!r}", markup=False)
        else:
            self.set_view(replace(self.view, timeline=found))

    def action_zoom(self) -> None:
        """Enter: fill the view on the timeline; evidence of a finding; else one engine alone."""
        if self.view.page == "timeline":
            self._move(nav.fit)
        elif self.view.page == "findings":
            self._show_evidence()
        else:
            self.set_view(replace(self.view, zoom=not self.view.zoom))

    def _show_evidence(self) -> None:
        there = evidence.shown(self.view, [engine.label for engine in self._shown.engines])
        if there is not None:
            self.set_view(there)
        elif evidence.chosen(self.view) is not None:
            self.notify("its evidence is not on a timeline: kernels were not traced")

    def action_out(self) -> None:
        if self.view.zoom:
            self.set_view(replace(self.view, zoom=False))
        elif self.view.page == "compare" and self.view.compare.filter:
            self.set_view(replace(self.view, compare=replace(self.view.compare, filter="")))
        else:
            self._move(nav.out)

    def _wheel(self, x: int, y: int, way: int) -> bool:
        """The mouse wheel zooms around the pointer; elsewhere it scrolls."""
        spot = self._spot(x, y)
        if spot is None or spot[1] is None:
            return False
        at = spot[1]
        self._move(lambda now, view: nav.zoom(now, view, 0.8 if way < 0 else 1.25, at))
        return True

    def _click(self, x: int, y: int) -> None:
        spot = self._spot(x, y)
        if spot is None:
            return
        lane, at = spot
        if lane is None:
            return
        if lane != self.view.focused(self._shown):
            self.action_focus_engine(lane - self.view.focused(self._shown))
        if at is not None:
            position = at
            self._move(lambda now, view: nav.pick(now, view, position))

    def _spot(self, x: int, y: int) -> tuple[int | None, int | None] | None:
        if self.view.page != "timeline":
            return None
        size = self.query_one("#body", Canvas).scrollable_content_region.size
        return layout(self._shown, self.view, size.width, size.height).at(x, y)

    def action_sort(self) -> None:
        self.set_view(sorted_anew(self.view))

    def action_basis(self) -> None:
        self.set_view(other_basis(self.view))

    def action_purpose(self) -> None:
        """Kernels by what they are for, and back."""
        compare = replace(self.view.compare, roles=not self.view.compare.roles)
        self.set_view(replace(self.view, compare=compare))

    def action_baseline(self) -> None:
        """The engine in focus becomes the baseline."""
        compare = replace(self.view.compare, against=self.view.focused(self._shown))
        self.set_view(replace(self.view, compare=compare))

    def action_scale(self) -> None:
        self.set_view(replace(self.view, scale=turned(self.view.scale, SCALES)))

    def action_help(self) -> None:
        keys = cast(RunApp, self.app).keys()
        self.app.push_screen(HelpScreen(self.view.glyphs, self.view.page, keys))

    def action_sources(self) -> None:
        """Where the numbers of the page are from."""
        from llmprof.tui.shell.sources_screen import SourcesScreen

        self.app.push_screen(SourcesScreen(self.view.glyphs, self.view.page, self._shown))

    @classmethod
    def default_keys(cls) -> dict[str, str]:
        """Binding id → keys."""
        bindings = (b for b in cls.BINDINGS if isinstance(b, Binding))
        return {b.id: b.key for b in bindings if b.id}

    @classmethod
    def action_of(cls, name: str) -> str:
        """The action of a binding id."""
        bindings = (b for b in cls.BINDINGS if isinstance(b, Binding))
        return next(b.action for b in bindings if b.id == name)

    def action_copy(self) -> None:
        """The page as text into the clipboard of the terminal (OSC 52)."""
        from llmprof.tui.shell.copying import selection_text

        what, text = selection_text(self._shown, self.view, self.query_one("#body", Canvas).rows)
        self.app.copy_to_clipboard(text)
        self.notify(f"copied {what}", markup=False)

    def action_screenshot(self) -> None:
        cast(RunApp, self.app).take_screenshot()
