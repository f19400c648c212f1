"""Asks a page where its numbers are from, one by one."""

from __future__ import annotations

from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from llmprof.analysis.view.frames.snapshot import Snapshot
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import clean, wrap
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.numbers import number
from llmprof.tui.drawing.palette import style
from llmprof.tui.shell.dialogs import Dialog
from llmprof.tui.shell.sources import SOURCES, Number

_WIDE: Final = 52
_MOST_ENGINES: Final = 4


class SourcesScreen(Dialog[None]):
    """Names on the left; source, pass, interval and formula of the chosen one on the right."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,i,q,enter,space", "dismiss(None)", show=False),
        Binding("down,j,tab", "move(1)", show=False, priority=True),
        Binding("up,k,shift+tab", "move(-1)", show=False, priority=True),
    ]

    def __init__(self, glyphs: Glyphs, page: str, snapshot: Snapshot | None) -> None:
        super().__init__(glyphs)
        self._page = page
        self._numbers = SOURCES[page]
        self._snapshot = snapshot
        self._index = 0

    def compose(self) -> ComposeResult:
        yield Static(self._text(), classes="dialog")

    def action_move(self, way: int) -> None:
        self._index = (self._index + way) % len(self._numbers)
        self.query_one(Static).update(self._text())

    def _text(self) -> Text:
        lines = {one.name: said(one, self._snapshot) for one in self._numbers}
        shown = lines[self._numbers[self._index].name]
        tall = max(len(self._numbers), *map(len, lines.values()))
        names = [self._glyphs.text(one.name) for one in self._numbers]
        left = 4 + max(map(len, names))
        text = Text(no_wrap=True, overflow="crop")
        title = f"Numbers of {self._page}: where from?"
        text.append(title, style("strong"))
        text.append(f"{'j k: choose':>{left + _WIDE - len(title)}}\n", style("dim"))
        for y in range(tall):
            on = y == self._index
            name = names[y] if y < len(names) else ""
            mark = self._glyphs.focus if on else " "
            text.append(f"{mark} {name}".ljust(left), style("accent0 strong" if on else "dim"))
            head, body = shown[y] if y < len(shown) else ("", "")
            text.append(f"{head:<10}", style("dim"))
            text.append(f"{self._glyphs.text(body):<{_WIDE - 10}}\n")
        text.right_crop(1)
        return text


def said(one: Number, snapshot: Snapshot | None) -> list[tuple[str, str]]:
    """(field, line): what is shown of one number, with its values now."""
    parts = [
        ("source", one.source), ("pass", one.taken), ("interval", one.interval),
        ("formula", one.formula), *_now(one, snapshot),
    ]  # fmt: skip
    out = []
    for head, text in parts:
        first, *rest = wrap(text, _WIDE - 10)
        out += [(head, first), *(("", line) for line in rest)]
    return out


def _now(one: Number, snapshot: Snapshot | None) -> list[tuple[str, str]]:
    """The value of each engine, or why there is none."""
    if not one.field or snapshot is None:
        return []
    found: list[tuple[str, str]] = []
    for engine in snapshot.engines[:_MOST_ENGINES]:
        value = getattr(engine, one.field)
        unit = f" {one.unit}" if one.unit else ""
        if isinstance(value, Unavailable):
            text = f"n/a: {clean(value.reason)}"
        else:
            text = f"{number(value - one.less, one.scale).strip()}{unit}"
        found.append(("now" if not found else "", f"{clean(engine.label)} {text}"))
    return found
