"""The page of ranks: what it says in colour, in ASCII, at every width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ranks_factory
from ranks_run import run_of

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.tui.drawing.cells import text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE, Glyphs
from llmprof.tui.frame import body
from llmprof.tui.timeline.nav import scene
from llmprof.tui.view import TimelineView, View


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDataSource, RunTrace]:
    members = ranks_factory.group(2, 12, host_ns={1: 400_000})
    path: Path = run_of(tmp_path_factory.mktemp("tui") / "tp2.sqlite", members)
    source = RunDataSource(open_run(path))
    trace = source.trace()
    assert isinstance(trace, RunTrace)
    return source, trace


def step_window(trace: RunTrace, step: int) -> tuple[int, int]:
    """What one step fills of the step axis."""
    view = replace(View(UNICODE), page="timeline", trace=trace)
    now = scene(view)
    assert now is not None
    slots = now.axis.slots  # type: ignore[attr-defined]
    return int(slots[step]), int(slots[step + 1])


def lines(
    opened: tuple[RunDataSource, RunTrace],
    width: int,
    glyphs: Glyphs = UNICODE,
    page: str = "ranks",
) -> list[str]:
    source, trace = opened
    view = replace(View(glyphs), page=page, trace=trace)
    rows = body(source.snapshot(), view, width, 40)
    assert max(map(width_of, rows)) <= width
    return [text_of(line).rstrip() for line in rows]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_page_names_the_late_rank_at_every_width(
    opened: tuple[RunDataSource, RunTrace], width: int
) -> None:
    text = "\n".join(lines(opened, width))
    assert "rank 1 · GPU 1" in text
    assert "AllReduce" in text


def test_the_strip_says_who_was_late_without_colour(
    opened: tuple[RunDataSource, RunTrace],
) -> None:
    for glyphs in (UNICODE, ASCII):
        found = lines(opened, 80, glyphs)
        first = next(i for i, line in enumerate(found) if line.startswith("rank 0"))
        full = glyphs.bars[-1]
        assert full not in found[first][15:]
        assert found[first + 1][15:27] == full * 12


def test_the_timeline_has_a_row_for_the_other_rank(
    opened: tuple[RunDataSource, RunTrace],
) -> None:
    _, trace = opened
    (lane,) = trace.lanes.lanes
    assert [work.device for work in lane.others] == [1]
    assert any(line.startswith("rank 1 · GPU 1") for line in lines(opened, 100, page="timeline"))


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [80, 120])
def test_marks_join_the_lanes_without_colour(
    opened: tuple[RunDataSource, RunTrace], width: int, glyphs: Glyphs
) -> None:
    """Each step: the others wait 0.4 ms for rank 1, then work and seven collectives of 7 µs."""
    source, trace = opened
    chosen = TimelineView(window=step_window(trace, 3))
    view = replace(View(glyphs), page="timeline", trace=trace, timeline=chosen)
    found = [text_of(line) for line in body(source.snapshot(), view, width, 24)]
    at = next(i for i, line in enumerate(found) if line.startswith("waits for rank"))
    assert found[at - 1].startswith("rank 0 · GPU 0")
    assert found[at + 1].startswith("rank 1 · GPU 1")
    marks = found[at][15:].rstrip()
    first, rest = marks.strip().split(maxsplit=1)
    assert set(first) - {glyphs.tick[1]} == {"1"}
    assert len(first) > 0.4 * (width - 15)
    # Where all ranks are in a collective an upright line joins the rows; one of them may have come
    # so much later that its number is all that the cell shows.
    assert set(rest) <= {" ", glyphs.tick[1], "0", "1"}
    assert sum(glyphs.tick[1] in one for one in rest.split()) >= 5


def test_without_ranks_the_page_says_how_to_get_them(tmp_path: Path) -> None:
    members = ranks_factory.group(1, 8)
    path = run_of(tmp_path / "one.sqlite", members)
    source = RunDataSource(open_run(path))
    trace = source.trace()
    assert isinstance(trace, RunTrace)
    view = replace(View(UNICODE), page="ranks", trace=trace)
    text = " ".join(text_of(line) for line in body(source.snapshot(), view, 80, 24))
    assert "--tp N" in text
