"""The widget that shows rows and repaints only the cells that changed.

Textual repaints every dirty region whole and has no cell diff: a full-screen table costs 18 kB an
update, ten changed cells of this widget about 0.4 kB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from rich.segment import Segment
from textual import events
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBarRender
from textual.strip import Strip

from llmprof.tui.drawing.cells import Row, changed_runs, merged
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.palette import style

Build = Callable[[int, int], Sequence[Row]]
"""``build(width, height)`` in cells of the widget's content."""
Wheel = Callable[[int, int, int], bool]
"""``wheel(x, y, way)`` on a row of the content, way -1 or 1; false: the wheel scrolls."""
Click = Callable[[int, int], None]


class BlockBar(ScrollBarRender):
    """A scrollbar of blank cells only: its fine ends are no ASCII."""

    VERTICAL_BARS = (" ",) * 8  # type: ignore[assignment]


class Canvas(ScrollView, can_focus=True):
    """Shows what ``build`` returns; ``redraw`` asks it again and sends the difference."""

    ALLOW_SELECT = False

    def __init__(
        self,
        build: Build,
        glyphs: Glyphs,
        *,
        id: str,
        wheel: Wheel | None = None,
        click: Click | None = None,
    ) -> None:
        super().__init__(id=id)
        self._build = build
        self._wheel = wheel
        self._click = click
        self._glyphs = glyphs
        self._rows: list[Row] = []

    def on_mount(self) -> None:
        if self._glyphs.ascii:
            self.vertical_scrollbar.renderer = BlockBar  # type: ignore[misc]

    def on_resize(self, event: events.Resize) -> None:
        self.redraw()

    def _spot(self, event: events.MouseEvent) -> tuple[int, int]:
        at = event.get_content_offset_capture(self)
        return at.x, at.y + self.scroll_offset.y

    def _on_wheel(self, event: events.MouseEvent, way: int) -> None:
        if self._wheel is not None and self._wheel(*self._spot(event), way):
            event.prevent_default()
            event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._on_wheel(event, -1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._on_wheel(event, 1)

    def on_click(self, event: events.Click) -> None:
        if self._click is not None:
            self._click(*self._spot(event))

    @property
    def rows(self) -> Sequence[Row]:
        """What is on show, scrolled-off rows included."""
        return self._rows

    def redraw(self) -> None:
        """Build the rows for the present size and repaint what differs."""
        width, height = self.scrollable_content_region.size
        if width < 1 or height < 1:
            return
        old, new = self._rows, [merged(line) for line in self._build(width, height)]
        if new == old:
            return
        self._rows = new
        top = self.scroll_offset.y
        size = Size(width, max(len(new), height))
        if size != self.virtual_size:
            # Paints the whole widget by itself: the difference would be sent twice.
            self.virtual_size = size
            return
        regions = [
            Region(start, y - top, end - start, 1)
            for y, (a, b) in enumerate(zip_longest(old, new, fillvalue=()))
            if a != b and top <= y < top + height
            for start, end in changed_runs(a, b)
        ]
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        """Row ``y`` of the visible part, as wide as the content."""
        index = y + self.scroll_offset.y
        line = self._rows[index] if index < len(self._rows) else ()
        width = self.scrollable_content_region.width
        return strip(line, self._glyphs).adjust_cell_length(width, style(""))


def strip(line: Row, glyphs: Glyphs) -> Strip:
    """A row as Textual wants it: text in the glyph set, roles as styles."""
    return Strip([Segment(glyphs.text(span.text), style(span.role)) for span in line])
