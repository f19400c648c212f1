"""What the pen writes looks as what Rich writes, in fewer bytes, and leaves the terminal plain."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color, ColorSystem
from rich.segment import Segment
from rich.style import Style

from llmprof.tui.drawing.pen import Pen

colours = st.sampled_from([None, "#58a6ff", "#0d1117", "#d29922", "default"])
flags = st.sampled_from([None, True, False])
styles = st.builds(Style, color=colours, bgcolor=colours, bold=flags, reverse=flags, dim=flags)
segments = st.lists(
    st.builds(Segment, st.text("ab c", min_size=1, max_size=3), st.none() | styles, st.none()),
    max_size=24,
)
SYSTEMS = [ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT, ColorSystem.STANDARD, None]


def screen(text: str) -> list[tuple]:
    shown = pyte.Screen(80, 1)
    pyte.Stream(shown).feed(text)
    return [shown.buffer[0][x][:] for x in range(80)]


def by_rich(parts: list[Segment], system: ColorSystem | None) -> str:
    return "".join(
        part.text if part.style is None else part.style.render(part.text, color_system=system)
        for part in parts
    )


@given(segments, st.sampled_from(SYSTEMS))
def test_it_looks_the_same(parts: list[Segment], system: ColorSystem | None) -> None:
    pen = Pen(system)
    made = pen.write(parts[:5]) + pen.write(parts[5:]) + pen.end()
    assert screen(made + "plain") == screen(by_rich(parts, system) + "plain")
    assert len(made) <= len(by_rich(parts, system))


def test_a_change_of_colour_does_not_say_the_ground_again() -> None:
    ground = Color.parse("#0d1117")
    parts = [
        Segment("G", Style(color="#58a6ff", bgcolor=ground)),
        Segment("A", Style(color="#d29922", bgcolor=ground)),
    ]
    pen = Pen(ColorSystem.TRUECOLOR)
    assert len(pen.write(parts) + pen.end()) < 0.8 * len(by_rich(parts, ColorSystem.TRUECOLOR))


@pytest.mark.parametrize("system", SYSTEMS)
def test_control_codes_go_through(system: ColorSystem | None) -> None:
    move = Segment("\x1b[2;3H", None, [(0,)])  # type: ignore[list-item]
    assert "\x1b[2;3H" in Pen(system).write([Segment("a", Style(bold=True)), move])
