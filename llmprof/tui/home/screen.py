"""What there is to do, and the runs that there are. Returns a wish; nothing is done here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer
from textual.worker import get_current_worker

from llmprof.analysis.view.recent import Recent, age_words
from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_label, fit_text, row, rule
from llmprof.tui.drawing.glyphs import Glyphs, choose
from llmprof.tui.drawing.one_screen import OneScreenApp
from llmprof.tui.shell.dialogs import Ask

Kind = Literal["run", "record", "open", "sweep"]
DOORS: Final[tuple[tuple[str, Kind, str, str], ...]] = (
    ("r", "run", "run engines here", "choose engines and a model, then watch them"),
    ("c", "record", "record a program", "any command: vLLM, a script; its kernels, step by step"),
    ("o", "open", "open a trace", "run, sweep, or trace of nsys, torch.profiler, rocprof"),
    ("s", "sweep", "sweep", "many settings, one table"),
)
_QUESTIONS: Final = {
    "record": "Command to record",
    "open": "File to open",
    "sweep": "Sweep: GRID.toml, or options (--batch 1,8 …)",
}


@dataclass(frozen=True)
class Wish:
    """What the user wants. ``text``: a command, a path, options; empty for ``run``."""

    kind: Kind
    text: str = ""


@dataclass(frozen=True)
class State:
    """What the screen shows."""

    runs: tuple[Recent, ...] = ()
    reading: bool = True
    cursor: int = 0
    folders: str = ""
    doors: tuple[Kind, ...] = ("run", "record", "open", "sweep")


def page(state: State, glyphs: Glyphs, width: int) -> list[Row]:
    """Doors above, runs below."""
    out: list[Row] = []
    for key, kind, name, meaning in DOORS:
        if kind in state.doors:
            out.append(
                fit(row(Span(f" {key}  ", "accent0 strong"), Span(f"{name:<20}", "strong"),
                        Span(meaning, "dim")), width)
            )  # fmt: skip
    if out:
        out.append(())
    count = len(state.runs)
    title = f"{count} run{'s' * (count != 1)}" + (", reading…" if state.reading else "")
    note = row(Span("j k: choose · enter: open", "dim"))
    out.append(rule(row(Span(title, "strong")), note, width, glyphs.track))
    if not state.runs and not state.reading:
        text = f"no run in {clean(state.folders)}" if state.folders else "no run yet"
        out.append(row(Span(text, "dim")))
    for index, run in enumerate(state.runs):
        out += _run(run, index == state.cursor, glyphs, width)
    return out


def _run(run: Recent, on: bool, glyphs: Glyphs, width: int) -> list[Row]:
    mark = Span(f"{glyphs.focus if on else ' '} ", "accent0 strong")
    age = Span(f"{age_words(run.age_s) if run.readable else '':>7}  ", "dim")
    wide = max(18, min(44, width // 3))
    name = Span(fit_label(clean(run.path.name), wide), "strong" if on else "")
    who = " vs ".join(clean(e) for e in run.engines)
    head = fit(row(mark, age, name, "  ", Span(who, "" if run.readable else "dim")), width)
    if not on:
        role = "dim" if run.readable else "fail"
        room = max(0, width - 2 - 9 - wide - 2)
        said = clean(run.verdict)
        # A verdict has the names in it; what is one number, or nothing, has not.
        named = run.sweep or any(clean(e) in said for e in run.engines)
        text = said if named or not run.readable or not who else f"{who}: {said}"
        return [fit(row(mark, age, name, "  ", Span(fit_text(text, room), role)), width)]
    indent = " " * 11
    facts = " · ".join(x for x in (clean(run.what), clean(str(run.path.parent))) if x)
    return [
        head,
        fit(row(Span(indent + clean(run.verdict), "bright" if run.readable else "fail")), width),
        fit(row(Span(indent + facts, "dim")), width),
    ]


class RunRead(Message):
    """One more file was read; ``None``: that was all."""

    def __init__(self, run: Recent | None) -> None:
        super().__init__()
        self.run = run


class HomeScreen(Screen[None], inherit_bindings=False):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open_run", "Open", key_display="enter"),
        # Priority: what is typed ahead belongs to the dialog.
        *(Binding(key, f"door('{kind}')", kind, priority=True) for key, kind, _, _ in DOORS),
        Binding("up,k", "move(-1)", "Up", show=False, priority=True),
        Binding("down,j,tab", "move(1)", "Down", show=False, priority=True),
        Binding("q,escape", "app.leave", "Quit", key_display="q"),
    ]

    def __init__(self, app: HomeApp) -> None:
        super().__init__()
        self._home = app
        self.glyphs = choose(os.environ)
        self.state = State(doors=app.doors, folders=app.folders)

    def compose(self) -> ComposeResult:
        self.set_class(self.glyphs.ascii, "-ascii")
        yield Canvas(self._header, self.glyphs, id="header")
        yield Canvas(lambda w, h: page(self.state, self.glyphs, w), self.glyphs, id="body")
        yield Footer(show_command_palette=False, compact=True)

    def _header(self, width: int, _height: int) -> list[Row]:
        text = "where does the time of every generated token go?"
        return [fit(row(Span("llmprof", "bright"), Span(f"  {text}", "dim")), width), ()]

    def on_mount(self) -> None:
        self.query_one("#header", Canvas).can_focus = False
        self.query_one("#body", Canvas).focus()
        self._look()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "door":
            return parameters[0] in self._home.doors
        return True

    @work(thread=True)
    def _look(self) -> None:
        worker = get_current_worker()
        for run in self._home.look():
            if worker.is_cancelled:
                return
            self.post_message(RunRead(run))
        self.post_message(RunRead(None))

    def on_run_read(self, message: RunRead) -> None:
        if message.run is None:
            self.set_state(replace(self.state, reading=False))
        else:
            self.set_state(replace(self.state, runs=(*self.state.runs, message.run)))

    def set_state(self, state: State) -> None:
        self.state = state
        for canvas in self.query(Canvas):
            canvas.redraw()

    def action_move(self, way: int) -> None:
        if not self.state.runs:
            return
        cursor = (self.state.cursor + way) % len(self.state.runs)
        self.set_state(replace(self.state, cursor=cursor))
        body = self.query_one("#body", Canvas)
        mark = self.glyphs.focus
        at = next((y for y, line in enumerate(body.rows) if line and line[0].text[:1] == mark), 0)
        room = body.scrollable_content_region.height
        if not body.scroll_offset.y <= at < body.scroll_offset.y + room - 2:
            body.scroll_to(y=max(0, at - room // 2), animate=False)

    def action_open_run(self) -> None:
        if self.state.runs:
            run = self.state.runs[self.state.cursor]
            self._home.exit(Wish("open", str(run.path)))

    def action_door(self, kind: Kind) -> None:
        if kind == "run":
            self._home.exit(Wish("run"))
            return

        def answered(text: str | None) -> None:
            if text and text.strip():
                self._home.exit(Wish(kind, text.strip()))

        self.app.push_screen(Ask(self.glyphs, _QUESTIONS[kind]), answered)


class HomeApp(OneScreenApp[Wish]):
    """Returns the wish, ``None`` when left.

    Args:
        look: reads the runs one by one; called on a thread.
        doors: what can be done beside opening one of the runs.
        folders: where was looked for runs, in words.
    """

    def __init__(
        self,
        look: Callable[[], Iterable[Recent]],
        doors: tuple[Kind, ...] = ("run", "record", "open"),
        folders: str = "",
    ) -> None:
        super().__init__()
        self.look = look
        self.doors = doors
        self.folders = folders
        self.home = HomeScreen(self)

    def get_default_screen(self) -> Screen[None]:
        return self.home
