"""Frames at the terminal: nothing flickers, and what was sent adds up to the screen."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
from rich.segment import Segment
from rich.style import Style
from test_terminal import OPEN, Terminal
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from llmprof.tui.drawing import compositor

SILENCE_S = 0.15
"""Between two updates; at 2 Hz they are 0.5 s apart."""
ERASES = re.compile(rb"\x1b\[\d*[JKX]|\x1bc|\x1b\[\?1049h")
Cell = tuple[str, str, str, bool]


@pytest.fixture
def terminal() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for one in made:
        one.close()


def bursts(terminal: Terminal, seconds: float) -> list[bytes]:
    """What came, cut where nothing came for a while."""
    found: list[bytes] = []
    last = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([terminal.master], [], [], 0.05)[0]:
            continue
        now = time.monotonic()
        try:
            data = os.read(terminal.master, 1 << 16)
        except OSError:  # it ended
            break
        if not data:
            break
        if not found or now - last > SILENCE_S:
            found.append(b"")
        found[-1] += data
        last = now
    return found


def cells(screen: pyte.Screen) -> list[list[Cell]]:
    def seen(char: pyte.screens.Char) -> Cell:
        ink = char.data != " " or char.reverse or char.underscore
        return (char.data, char.fg if ink else "", char.bg, char.reverse)

    return [[seen(screen.buffer[y][x]) for x in range(screen.columns)] for y in range(screen.lines)]


def repainted(screen: pyte.Screen, stream: pyte.ByteStream, burst: bytes) -> dict[str, list[str]]:
    """Cells that changed more than once in a burst: (x, y) → their texts, one after the other."""
    texts = [[screen.buffer[y][x].data for x in range(screen.columns)] for y in range(screen.lines)]
    changes: dict[str, list[str]] = {}
    # A terminal may show any moment: look after each piece that follows a move of the cursor.
    for piece in re.split(rb"(?=\x1b\[\d+;\d+H)", burst):
        screen.dirty.clear()
        stream.feed(piece)
        for y in screen.dirty:
            for x, before in enumerate(texts[y]):
                after = screen.buffer[y][x].data
                if after != before:
                    changes.setdefault(f"{x},{y}", [before]).append(after)
                    texts[y][x] = after
    return {place: seen for place, seen in changes.items() if len(seen) > 2}


def test_a_live_session_of_two_engines_does_not_flicker(terminal, tmp_path: Path) -> None:
    """No cell is painted twice in an update, so none goes blank and comes back; nothing erases."""
    engines = ["--engine", "fake:step_us=3000", "--engine", "fake:step_us=5000"]
    load = ["--prompt-len", "16", "--decode-len", "64", "--rounds", "100000"]
    command = [sys.executable, "-m", "llmprof", *engines, *load, "-o", str(tmp_path / "r.sqlite")]
    plugin = str(Path(__file__).parents[1] / "support" / "plugin")
    shell = Terminal(command, COLORTERM="truecolor", SSH_CONNECTION="test", PYTHONPATH=plugin)
    terminal.append(shell)
    shell.until("round 2/", "tok/s")
    updates = bursts(shell, 8.0)
    assert len(updates) >= 8
    for update in updates:
        assert not ERASES.search(update)
        assert repainted(shell.screen, shell.stream, update) == {}
    shown = "\n".join(shell.screen.display)
    assert "running" in shown and "fake:step_us=3000" in shown and "failed" not in shown


def test_the_recording_would_show_a_flicker() -> None:
    screen = pyte.Screen(10, 2)
    stream = pyte.ByteStream(screen)
    assert repainted(screen, stream, b"\x1b[1;1Hab\x1b[2;1Hcd") == {}
    assert repainted(screen, stream, b"\x1b[1;1Hax\x1b[2;1Hcd") == {}
    assert repainted(screen, stream, b"\x1b[1;1H  \x1b[1;1Hax") == {
        "0,0": ["a", " ", "a"],
        "1,0": ["x", " ", "x"],
    }
    assert ERASES.search(b"\x1b[2J") and ERASES.search(b"x\x1b[K")


def test_what_was_sent_adds_up_to_the_whole_screen(terminal) -> None:
    """Dialogs, pages, zooms, resizes: afterwards a screen sent anew is the same one."""
    shell = Terminal(OPEN, 100, 30, COLORTERM="truecolor")
    terminal.append(shell)
    shell.until("finished", "ms/token")
    walk = ["3", "n", "?", "\x1b", "w", "]", "e", "\x1b", "g", "2", "\r", ":", "med", "\x1b", "4"]
    walk += ["+", "/", "el", "\r", "2", "7", "1", "3", "0", "\t", "n", "\r", "++", "hhl", "?"]
    for number, keys in enumerate(walk):
        shell.press(keys)
        take(shell, 0.5)
        if number % 6 == 5 or number == len(walk) - 1:
            sent_anew_is_the_same(shell)
    assert "Keys of" in "\n".join(shell.screen.display)
    for cols, rows in ((80, 24), (100, 30)):
        shell.resize(cols, rows)
        shell.until("q Quit")
        take(shell, 0.5)
        sent_anew_is_the_same(shell)


def take(shell: Terminal, seconds: float) -> int:
    """Bytes that came and are on the screen now."""
    data = b"".join(bursts(shell, seconds))
    shell.stream.feed(data)
    return len(data)


def sent_anew_is_the_same(shell: Terminal) -> None:
    before = cells(shell.screen)
    shell.press("\x0c")
    assert take(shell, 0.4) > 5_000
    assert cells(shell.screen) == before


# --- the compositor ---------------------------------------------------------------------------


def line(*parts: tuple[str, Style | None]) -> Strip:
    return Strip([Segment(text, style) for text, style in parts])


def test_a_frame_is_the_difference_to_what_is_shown() -> None:
    shown = compositor.Shown()
    red, blue = Style.parse("red on black"), Style.parse("blue on black")
    whole = [line(("ab", red), ("  ", blue)), line(("漢字", red))]
    assert shown.frame(whole) == [[(0, 4)], [(0, 4)]]
    assert shown.frame(whole) == [[], []]
    # A blank looks the same in any ink; a wide character goes with both its columns.
    assert shown.frame([line(("ab  ", red)), line(("漢文", red))]) == [[], [(2, 4)]]
    shown.put(0, 1, line(("x", blue)))
    assert shown.frame([line(("ax", red), ("  ", red)), line(("漢文", red))]) == [[(1, 2)], []]
    assert shown.frame([line(("ax  ", red))]) == [[(0, 4)]]  # another height: everything
    shown.forget()
    assert shown.frame([line(("ax  ", red))]) == [[(0, 4)]]


def test_many_pieces_of_a_line_add_up() -> None:
    shown = compositor.Shown()
    shown.frame([line(("." * 20, None))])
    text = ["."] * 20
    for i in range(300):
        at, char = i * 7 % 20, chr(97 + i % 26)
        shown.put(0, at, line((char, None)))
        text[at] = char
    assert shown.frame([line(("".join(text), None))]) == [[]]


def test_what_is_no_known_update_makes_it_forget() -> None:
    shown = compositor.Shown()
    strips = [line(("ab", None))]
    shown.frame(strips)
    assert compositor.smaller(None, shown) is None
    assert shown.frame(strips) == [[]]
    partial = compositor.smaller(ChopsUpdate([{0: strips[0]}], [(0, 0, 2)], [[2]]), shown)
    assert isinstance(partial, compositor.CellUpdate)
    full = compositor.smaller(LayoutUpdate([strips], Region(0, 0, 2, 1)), shown)
    assert isinstance(full, compositor.FrameUpdate)
    assert compositor.smaller("text", shown) == "text"
    assert shown.frame(strips) == [[(0, 2)]]


def test_another_textual_draws_by_itself(monkeypatch) -> None:
    assert compositor.fits()

    def otherwise(self, chops, spans, crop, chop_ends, extra):
        self.chops = chops

    monkeypatch.setattr(ChopsUpdate, "__init__", otherwise)
    assert not compositor.fits()
    assert compositor.CellApp()._shown is None
