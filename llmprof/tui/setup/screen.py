"""The screen before a run: engines, model, workload, what the machine allows; enter starts.

The TUI knows no engine and no doctor: what is found comes in as plain values, from a callable that
takes a second or two and runs on a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer

from llmprof.tui.drawing.canvas import Canvas
from llmprof.tui.drawing.cells import Row, Span, clean, fit, fit_text, row, rule, wrap
from llmprof.tui.drawing.glyphs import Glyphs, choose
from llmprof.tui.drawing.one_screen import OneScreenApp
from llmprof.tui.shell.dialogs import Ask

TRACES: Final = ("kernels", "full", "steps")
FIELDS: Final = (
    ("prompt_len", "prompt tokens", "the built-in text, or N seeded ids"),
    ("decode_len", "decode steps", "a round"),
    ("batch", "batch", "sequences at once"),
    ("rounds", "rounds", "timed, interleaved"),
    ("traced_steps", "traced steps", "0: no traced pass"),
    ("trace", "trace", "left, right: kernels, full (API calls too), steps"),
)
_STATUS_ROLE: Final = {"ok": "good", "degraded": "warn", "missing": "fail"}
_MOST_MODELS: Final = 9


@dataclass(frozen=True)
class Offer:
    """An engine, a model, or something that the machine has."""

    name: str
    detail: str
    status: str = "ok"
    """``ok``, ``degraded``, ``missing``."""
    fix: str = ""


@dataclass(frozen=True)
class Facts:
    """What was found."""

    engines: tuple[Offer, ...] = ()
    models: tuple[Offer, ...] = ()
    machine: tuple[Offer, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What to run. ``fields``: name of a ``[run]`` key → text; empty: the default."""

    engines: tuple[str, ...] = ()
    model: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the screen shows."""

    facts: Facts | None
    choice: Choice
    cursor: int = 0
    message: str = ""
    busy: bool = False


def rows_of(facts: Facts, choice: Choice) -> list[tuple[str, str]]:
    """What the cursor can stand on: (kind, name)."""
    models = [m.name for m in facts.models[:_MOST_MODELS]]
    if choice.model and choice.model not in models:
        models.append(choice.model)
    return [
        *(("engine", offer.name) for offer in facts.engines),
        *(("model", name) for name in models),
        ("path", ""),
        *(("field", name) for name, _, _ in FIELDS),
    ]


def toggle(state: State) -> State:
    """Space: take an engine or leave it; take a model."""
    if state.facts is None:
        return state
    kind, name = rows_of(state.facts, state.choice)[state.cursor]
    choice = state.choice
    if kind == "engine":
        taken = choice.engines
        named = tuple(e for e in taken if e != name) if name in taken else (*taken, name)
        choice = replace(choice, engines=named)
    elif kind == "model":
        choice = replace(choice, model=name)
    return replace(state, choice=choice, message="")


def edit(state: State, key: str) -> State:
    """A digit or backspace in a number; left and right in the trace level."""
    if state.facts is None:
        return state
    kind, name = rows_of(state.facts, state.choice)[state.cursor]
    if kind != "field":
        return state
    text = state.choice.fields.get(name, "")
    if name == "trace":
        if key not in ("left", "right"):
            return state
        at = TRACES.index(text) if text in TRACES else 0
        text = TRACES[(at + (1 if key == "right" else -1)) % len(TRACES)]
    elif key == "backspace":
        text = text[:-1]
    elif key.isdecimal() and len(text) < 7:
        text = (text + key).lstrip("0") or "0"
    else:
        return state
    fields = {**state.choice.fields, name: text}
    return replace(state, choice=replace(state.choice, fields=fields), message="")


def page(state: State, defaults: Mapping[str, str], glyphs: Glyphs, width: int) -> list[Row]:
    """The whole screen."""
    if state.facts is None:
        return [row(Span("looking at this machine…", "dim"))]
    facts, choice = state.facts, state.choice
    here = rows_of(facts, choice)[state.cursor]
    out: list[Row] = [rule(row(Span("engines", "strong")), row(Span("space: take", "dim")), width,
                           glyphs.track)]  # fmt: skip
    if not facts.engines:
        out.append(row(Span("no engine is installed", "fail")))
    for offer in facts.engines:
        taken = "[x]" if offer.name in choice.engines else "[ ]"
        out.append(_line(taken, offer, here == ("engine", offer.name), glyphs, width))
    out += [(), rule(row(Span("model", "strong")), row(Span("space: take", "dim")), width,
                     glyphs.track)]  # fmt: skip
    details = {offer.name: offer for offer in facts.models}
    for kind, name in rows_of(facts, choice):
        if kind == "model":
            offer = details.get(name, Offer(name, "as given"))
            taken = "(x)" if name == choice.model else "( )"
            out.append(_line(taken, offer, here == (kind, name), glyphs, width))
        elif kind == "path":
            offer = Offer("other…", "a .gguf file or a Hugging Face folder (space: type it)")
            out.append(_line("   ", offer, here == (kind, name), glyphs, width))
    out += [(), rule(row(Span("workload", "strong")), row(Span("type a number", "dim")), width,
                     glyphs.track)]  # fmt: skip
    for name, label, note in FIELDS:
        on = here == ("field", name)
        text = choice.fields.get(name, "")
        value = Span(f"{text or defaults.get(name, ''):>9}", "bright" if text else "dim")
        mark = Span(f"{glyphs.focus if on else ' '} ", "accent0")
        line = row(mark, Span(f"{label:<14}", "strong" if on else ""), value,
                   Span(f"  {note}", "dim"))  # fmt: skip
        out.append(fit(line, width))
    out += [(), rule(row(Span("this machine", "strong")), row(Span("llmprof doctor: all", "dim")),
                     width, glyphs.track)]  # fmt: skip
    for offer in sorted(facts.machine, key=lambda o: ("missing", "degraded", "ok").index(o.status)):
        out.append(_machine(offer, width))
    return out


def _line(taken: str, offer: Offer, on: bool, glyphs: Glyphs, width: int) -> Row:
    name = fit_text(clean(offer.name), 16) if len(offer.name) <= 16 else clean(offer.name)
    detail = clean(offer.detail if offer.status == "ok" else offer.fix or offer.detail)
    status = "" if offer.status == "ok" else f"{offer.status}: "
    return fit(
        row(
            Span(f"{glyphs.focus if on else ' '} ", "accent0"),
            Span(f"{taken} ", "bright" if "x" in taken else "dim"),
            Span(name, "strong" if on else ""),
            Span("  "),
            Span(status, _STATUS_ROLE.get(offer.status, "")),
            Span(detail, "dim"),
        ),
        width,
    )


def _machine(offer: Offer, width: int) -> Row:
    text = clean(offer.detail)
    return fit(
        row(
            Span(f"  {offer.status:<9}", _STATUS_ROLE.get(offer.status, "")),
            Span(f"{clean(offer.name):<14}"),
            Span(text, "dim"),
        ),
        width,
    )


class Found(Message):
    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts


class Checked(Message):
    """What is wrong with the choice; nothing: it can start."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong


class SetupScreen(Screen[None], inherit_bindings=False):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Start", key_display="enter"),
        Binding("space", "take", "Take", key_display="space"),
        Binding("up,k", "move(-1)", "Up", show=False, priority=True),
        Binding("down,j,tab", "move(1)", "Down", show=False, priority=True),
        Binding("left", "edit('left')", show=False, priority=True),
        Binding("right", "edit('right')", show=False, priority=True),
        Binding("backspace", "edit('backspace')", show=False),
        *(Binding(d, f"edit('{d}')", show=False) for d in "0123456789"),
        Binding("q,escape", "app.leave", "Quit", key_display="q"),
    ]

    def __init__(self, app: SetupApp) -> None:
        super().__init__()
        self._setup = app
        self.glyphs = choose(os.environ)
        self.state = State(None, app.remembered)

    def compose(self) -> ComposeResult:
        self.set_class(self.glyphs.ascii, "-ascii")
        yield Canvas(self._header, self.glyphs, id="header")
        yield Canvas(
            lambda w, h: page(self.state, self._setup.defaults, self.glyphs, w),
            self.glyphs,
            id="body",
        )
        yield Footer(show_command_palette=False, compact=True)

    def _header(self, width: int, _height: int) -> list[Row]:
        first = row(Span("llmprof", "bright"), Span("  what to decode, and with what", "dim"))
        text, role = self.state.message, "fail"
        if self.state.busy:
            text, role = "checking…", "dim"
        elif not text and self.state.choice.engines:
            text, role = f"enter decodes with {', '.join(self.state.choice.engines)}", "good"
        elif not text:
            text, role = "take at least one engine", "dim"
        lines = wrap(clean(text), width)
        return [fit(first, width), fit(row(Span(lines[0] if lines else "", role)), width)]

    def on_mount(self) -> None:
        self.query_one("#header", Canvas).can_focus = False
        self.query_one("#body", Canvas).focus()
        self._look()

    def set_state(self, state: State) -> None:
        self.state = state
        for canvas in self.query(Canvas):
            canvas.redraw()

    @work(thread=True)
    def _look(self) -> None:
        self.post_message(Found(self._setup.look()))

    def on_found(self, message: Found) -> None:
        facts, choice = message.facts, self.state.choice
        usable = [o.name for o in facts.engines if o.status != "missing"]
        engines = tuple(e for e in choice.engines if e in {o.name for o in facts.engines})
        model = choice.model or (facts.models[0].name if facts.models else "")
        choice = replace(choice, engines=engines or tuple(usable[:2]), model=model)
        self.set_state(replace(self.state, facts=facts, choice=choice))

    def action_move(self, way: int) -> None:
        if self.state.facts is None:
            return
        count = len(rows_of(self.state.facts, self.state.choice))
        self.set_state(replace(self.state, cursor=(self.state.cursor + way) % count))
        body = self.query_one("#body", Canvas)
        at = next((y for y, line in enumerate(body.rows)
                   if line and line[0].text.startswith(self.glyphs.focus)), 0)  # fmt: skip
        room = body.scrollable_content_region.height
        if not body.scroll_offset.y <= at < body.scroll_offset.y + room - 1:
            body.scroll_to(y=max(0, at - room // 2), animate=False)

    def action_take(self) -> None:
        if self.state.facts is None:
            return
        if rows_of(self.state.facts, self.state.choice)[self.state.cursor][0] != "path":
            self.set_state(toggle(self.state))
            return

        def named(text: str | None) -> None:
            if text and text.strip():
                choice = replace(self.state.choice, model=text.strip())
                self.set_state(replace(self.state, choice=choice, message=""))

        self.app.push_screen(Ask(self.glyphs, "Model: a file, a folder or a preset"), named)

    def action_edit(self, key: str) -> None:
        self.set_state(edit(self.state, key))

    def action_start(self) -> None:
        if self.state.facts is None or self.state.busy:
            return
        if not self.state.choice.engines:
            self.set_state(replace(self.state, message="take at least one engine (space)"))
            return
        self.set_state(replace(self.state, busy=True))
        self._check(self.state.choice)

    @work(thread=True, exclusive=True)
    def _check(self, choice: Choice) -> None:
        self.post_message(Checked(self._setup.check(choice)))

    def on_checked(self, message: Checked) -> None:
        self.set_state(replace(self.state, busy=False, message=message.wrong))
        if not message.wrong:
            self._setup.exit(self.state.choice)


class SetupApp(OneScreenApp[Choice]):
    """Returns the choice, ``None`` when left.

    Args:
        look: finds engines, models and what the machine allows; called on a thread.
        check: one line about what is wrong with a choice, empty if it can run; on a thread.
        remembered: the last choice.
        defaults: field → what an empty one means.
    """

    def __init__(
        self,
        look: Callable[[], Facts],
        check: Callable[[Choice], str],
        remembered: Choice,
        defaults: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.look = look
        self.check = check
        self.remembered = remembered
        self.defaults = defaults
        self.setup = SetupScreen(self)

    def get_default_screen(self) -> Screen[None]:
        return self.setup
