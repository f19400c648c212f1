"""Sends the cells of a frame that differ from what the terminal shows, and no others.

Textual 8 sends dirty regions whole. Its ``ChopsUpdate`` crops a dirty span at its right end only:
each span is sent from the left edge of all dirty cells of the frame on, once for every span of the
line (Textualize/textual#5625; a live frame cost 12 kB that way, 1.4 kB with both ends cropped). Its
``LayoutUpdate``, which every dialog that opens or closes causes, is the whole screen: 35 to 67 kB.
``Shown`` keeps what was sent, so that a whole frame costs what it changes.

Only here does llmprof reach into private parts of Textual; tests and ``benchmarks/tui_bytes.py``
watch over it. With a Textual that is built otherwise its own updates are sent: more bytes, the same
picture.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, ClassVar

from rich.console import Console
from rich.control import Control
from rich.style import Style
from textual import events, on
from textual._compositor import ChopsUpdate, Compositor, CompositorUpdate, LayoutUpdate
from textual.app import App, ReturnType
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.screen import Screen
from textual.strip import Strip

from llmprof.tui.drawing.cells import cells_of, runs_of
from llmprof.tui.drawing.pen import Pen

_PATCHES = 64
"""Pieces of a line that are kept before they are put together."""

Line = list[tuple[str, Style | None]]


class Shown:
    """What the terminal shows; text that others wrote to it is not known."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._patches: list[list[tuple[int, Strip]]] = []

    def forget(self) -> None:
        """The next whole frame is sent whole."""
        self._lines, self._patches = [], []

    def put(self, y: int, x: int, strip: Strip) -> None:
        """A piece of a line was sent."""
        if y < len(self._lines):
            self._patches[y].append((x, strip))
            if len(self._patches[y]) > _PATCHES:
                self._line(y)

    def _line(self, y: int) -> Line:
        line = self._lines[y]
        for x, strip in self._patches[y]:
            piece = _cells(strip)
            line[x : x + len(piece)] = piece
        self._patches[y].clear()
        return line

    def frame(self, strips: list[Strip]) -> list[list[tuple[int, int]]]:
        """Columns [start, end) of each line of a whole frame that differ; they count as sent."""
        known = len(strips) == len(self._lines)
        old = [self._line(y) for y in range(len(strips))] if known else []
        new = [_cells(strip) for strip in strips]
        self._lines, self._patches = new, [[] for _ in new]
        if not known:
            return [[(0, len(line))] for line in new]
        return [
            [] if before == line else
            runs_of(before, line) if len(before) == len(line) else [(0, len(line))]
            for before, line in zip(old, new, strict=True)
        ]  # fmt: skip


def _cells(strip: Strip) -> Line:
    return [
        (char, _ground(style) if char == " " else style)
        for char, style in cells_of((s.text, s.style) for s in strip if not s.control)
    ]


@lru_cache(maxsize=512)
def _ground(style: Style | None) -> Style | None:
    """What is seen of a style in a blank: two blanks may look the same in different ones."""
    if style is None or style.reverse or style.underline or style.strike:
        return style
    return Style.from_color(None, style.bgcolor)


class CellUpdate(ChopsUpdate):
    """A ``ChopsUpdate`` that crops spans at both ends."""

    shown: Shown

    def render_segments(self, console: Console) -> str:
        out: list[str] = []
        pen = Pen(console._color_system)
        for y, x1, x2 in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(x, x1), min(end, x2)
                if strip is not None and left < right:
                    piece = strip.crop(left - x, right - x)
                    out += [Control.move_to(left, y).segment.text, pen.write(piece)]
                    self.shown.put(y, left, piece)
        return "".join([*out, pen.end()])


class FrameUpdate(LayoutUpdate):
    """A ``LayoutUpdate`` that sends what differs."""

    shown: Shown

    def render_segments(self, console: Console) -> str:
        strips = [Strip.join(line) for line in self.strips]
        out: list[str] = []
        pen = Pen(console._color_system)
        for y, (strip, runs) in enumerate(zip(strips, self.shown.frame(strips), strict=True)):
            for start, end in runs:
                piece = strip if (start, end) == (0, strip.cell_length) else strip.crop(start, end)
                out += [Control.move_to(start, y).segment.text, pen.write(piece)]
        return "".join([*out, pen.end()])


def smaller(update: Any, shown: Shown) -> Any:
    """The same update with fewer bytes; whatever else is drawn makes ``shown`` forget."""
    made: CellUpdate | FrameUpdate
    if type(update) is ChopsUpdate:
        made = CellUpdate(update.chops, update.spans, update.chop_ends)
    elif type(update) is LayoutUpdate and not any(update.region.offset):
        made = FrameUpdate(update.strips, update.region)
    else:
        if update is not None:
            shown.forget()
        return update
    made.shown = shown
    return made


def fits() -> bool:
    """Is this Textual built as this module needs it (8.2 is)?"""

    def takes(made: type, *names: str) -> bool:
        return list(inspect.signature(made).parameters) == list(names)

    try:
        cut = Strip.blank(2).crop(0, 1)
        chops = ChopsUpdate([{0: Strip.blank(2)}], [(0, 0, 2)], [[2]])
        same = (chops.spans, chops.chop_ends) == ([(0, 0, 2)], [[2]])
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        return False
    return (
        same
        and cut.cell_length == 1
        and takes(ChopsUpdate, "chops", "spans", "chop_ends")
        and takes(LayoutUpdate, "strips", "region")
        and all(issubclass(u, CompositorUpdate) for u in (ChopsUpdate, LayoutUpdate))
        and hasattr(CompositorUpdate, "render_segments")
        and hasattr(Console(), "_color_system")
        and hasattr(Style, "_make_ansi_codes")
        and hasattr(Compositor, "render_full_update")
        and list(inspect.signature(App._display).parameters) == ["self", "screen", "renderable"]
    )


class CellApp(App[ReturnType]):
    """An app whose frames cost what they change."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+l", "redraw", show=False, priority=True, system=True),
    ]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shown = Shown() if fits() else None

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        drawn = self._running and not self._batch_count and not self.is_headless
        if drawn and self._shown is not None:
            renderable = smaller(renderable, self._shown)
        super()._display(screen, renderable)

    def on_resize(self, event: events.Resize) -> None:
        """A terminal moves its text about when it gets another size."""
        if self._shown is not None:
            self._shown.forget()

    @on(Driver.SignalResume)
    def _resumed(self) -> None:
        """Back in the foreground: the terminal has another program's text."""
        self.action_redraw()

    def action_redraw(self) -> None:
        """Send everything: something else may have written to the terminal."""
        if self._shown is not None:
            self._shown.forget()
        self.screen.refresh(layout=True)
