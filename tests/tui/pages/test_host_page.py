"""The host's stacks on screen: their page, the timeline's row, the cause and stack of a gap.

On a run recorded on an H100 (eager against CUDA-graph torch) with host stacks.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tui_pilot import FIXTURE as NO_STACKS
from tui_pilot import SIZES, app, settled, shown, source

from llmprof.analysis.host.causes import GapJudge
from llmprof.analysis.host.stacks import HostTrace, StepSample
from llmprof.analysis.timeline.host import HostLane, stretches
from llmprof.analysis.timeline.lod import Gap
from llmprof.analysis.view.frames.several import SeveralRuns
from llmprof.analysis.view.traced import EngineTrace, RunTrace
from llmprof.records import HostFrame, Unavailable
from llmprof.runfile.reader import RunFileReader
from llmprof.tui.drawing.canvas import strip
from llmprof.tui.drawing.cells import Cell, cells_of, text_of, width_of
from llmprof.tui.drawing.glyphs import ASCII, UNICODE
from llmprof.tui.drawing.marks import HOST_LETTERS
from llmprof.tui.frame import body
from llmprof.tui.timeline import nav
from llmprof.tui.timeline.inspector import _stacks
from llmprof.tui.timeline.rows import GUTTER
from llmprof.tui.view import TimelineView, View

FIXTURE = NO_STACKS.with_name("h100_host.sqlite")


@pytest.fixture(scope="module")
def opened():
    return source(FIXTURE)


@pytest.fixture(scope="module")
def trace(opened) -> RunTrace:
    found = opened.trace()
    assert isinstance(found, RunTrace)
    return found


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keys", ["7", "7,g", "7,g,g", "3", "3,a", "3,n", "3,tab,n,w"])
def test_host_stacks_look_as_they_should(snap_compare, keys: str, size: tuple[int, int]) -> None:
    async def ready(pilot) -> None:
        await settled(pilot)
        await pilot.press(*keys.split(","))
        await settled(pilot)

    assert snap_compare(app(FIXTURE), terminal_size=size, run_before=ready)


# --- the row ----------------------------------------------------------------------------------


def host_rows(text: str) -> list[str]:
    return [line[GUTTER:] for line in text.splitlines() if line.startswith("host ")]


async def test_every_engine_has_a_row_and_only_where_there_are_samples() -> None:
    async with app(FIXTURE).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3")
        rows = host_rows(shown(screen))
        assert len(rows) == 2
        # Eager launches all along, the graph waits for its end.
        assert rows[0].count("l") > rows[0].count("s") and "s decode_step" in rows[1]
        assert "host l launch" in shown(screen) or "host s sync" in shown(screen)
        await pilot.press("r", "r")  # a timing round: nothing was sampled there
        assert "timing round" in shown(screen) and not host_rows(shown(screen))
    async with app(NO_STACKS).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3")
        assert "GPU busy" in shown(screen) and not host_rows(shown(screen))


def test_a_cell_shows_the_kind_that_takes_most_of_it_at_any_zoom(opened, trace) -> None:
    view = View(UNICODE, page="timeline", trace=trace)
    home = nav.scene(view)
    assert home is not None
    start, end = home.axis.home
    for align in ("step", "time"):
        for zoom in (1, 7, 60, 1000):
            length = (end - start) // zoom
            middle = start + (end - start) // 3
            timeline = TimelineView(align=align, window=(middle, middle + length))
            wide = body(opened.snapshot(), replace(view, timeline=timeline), 118, 37)
            rows = [cells_of(line)[GUTTER:] for line in wide if text_of(line).startswith("host ")]
            now = nav.scene(replace(view, timeline=timeline))
            assert now is not None and len(rows) == 2
            edges = middle + np.arange(104, dtype=np.int64) * length // 103
            for index, row in enumerate(rows):
                _check_row(trace.engines[index], now.axis.times(index, edges), row)


def _check_row(engine: EngineTrace, times: np.ndarray, row: list[Cell]) -> None:
    """Against the samples themselves, one by one."""
    host = engine.host
    assert isinstance(host, HostTrace)
    width = min(200_000, host.sampled.tick_ns)
    stamps = host.record.stamps_ns
    at = np.array([s.time_ns for s in host.samples]) - width // 2
    begin, finish = stretches(at, 1_000_000_000 // host.sampled.rate_hz, (stamps[0], stamps[-1]))
    assert len(row) == len(times) - 1
    for x, (char, role) in enumerate(row):
        spent: dict[str, int] = {}
        for s, a, b in zip(host.samples, begin.tolist(), finish.tolist(), strict=True):
            part = min(b, int(times[x + 1])) - max(a, int(times[x]))
            if part > 0:
                spent[s.kind] = spent.get(s.kind, 0) + part
        if not spent:
            assert (char, role) == (" ", "")
        else:
            most = max(spent.values())
            assert role in {f"host{HOST_LETTERS[k]}" for k, ns in spent.items() if ns == most}


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=60, unique=True),
    st.integers(2, 10**7),
)
def test_samples_stand_for_disjoint_stretches_around_them(moments: list[int], every: int) -> None:
    times = np.array(sorted(moments), np.int64)
    start, end = stretches(times, every, (10**8, 9 * 10**8))
    assert (start <= end).all() and (end[:-1] <= start[1:]).all()
    assert (end - start <= every).all()
    inside = (times >= 10**8) & (times <= 9 * 10**8)
    assert ((start <= times) & (times <= end))[inside].all()
    alone = np.diff(times) >= every
    if len(times) > 2:
        middle = inside[1:-1] & alone[:-1] & alone[1:]
        whole = (times - every // 2 >= 10**8) & (times + every // 2 <= 9 * 10**8)
        assert (end - start)[1:-1][middle & whole[1:-1]].tolist() == [every // 2 * 2] * int(
            (middle & whole[1:-1]).sum()
        )


def test_the_curves_hold_every_sample(trace) -> None:
    for engine in trace.engines:
        assert isinstance(engine.host, HostTrace)
        lane = HostLane.of(engine.host)
        kinds = sum(int(c.before_ns[-1]) for c in lane.kinds.values())
        frames = sum(int(c.before_ns[-1]) for c in lane.frames.values())
        assert kinds == frames > 0
        step = engine.host.record.stamps_ns
        # At 1 kHz, some samples lost: most of the time is covered, none of it twice.
        assert 0.2 * (step[-1] - step[0]) < kinds <= step[-1] - step[0]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("size", SIZES)
def test_rows_fit_and_the_inspector_stays_in_view(opened, trace, glyphs, size) -> None:
    view = View(glyphs, page="timeline", trace=trace)
    now = nav.scene(view)
    assert now is not None
    step = nav.outlier(now, TimelineView(), 1)
    for timeline in (TimelineView(), step, nav.widest_gap(now, step, 1)):
        rows = body(opened.snapshot(), replace(view, timeline=timeline), size[0] - 2, size[1] - 3)
        assert len(rows) <= size[1] - 3
        assert max(width_of(line) for line in rows) <= size[0] - 2
        if glyphs.ascii:
            assert all(strip(line, glyphs).text.isascii() for line in rows)
            assert "?" not in "".join(strip(line, glyphs).text for line in rows)


def test_many_engines_give_way_to_the_one_in_focus() -> None:
    runs = []
    for path in (FIXTURE, NO_STACKS, FIXTURE):
        with RunFileReader(path) as reader:
            runs.append(reader.run_data())
    several = SeveralRuns(runs)
    snapshot, trace = several.snapshot(), several.trace()
    for width, height in ((78, 21), (118, 37)):
        for focus in range(6):
            view = View(UNICODE, page="timeline", trace=trace, focus=focus)
            now = nav.scene(view)
            assert now is not None
            view = replace(view, timeline=nav.outlier(now, view.timeline, 1))
            rows = [text_of(line) for line in body(snapshot, view, width, height)]
            assert len(rows) <= height
            assert any("slowest of" in line for line in rows)
            name = snapshot.engines[focus].label
            assert any(line.startswith(UNICODE.focus + name[:15]) for line in rows)
            names = sum(line[0] in UNICODE.focus + UNICODE.lane for line in rows if line)
            assert names == 6 or f"{names} of 6 engines" in rows[0]


async def test_hostile_frames_are_shown_as_text(tmp_path: Path) -> None:
    hostile = tmp_path / "run.sqlite"
    shutil.copyfile(FIXTURE, hostile)
    sql = sqlite3.connect(hostile)
    evil = "[red]evil[/] \x1b[2J 漢字"
    sql.execute("UPDATE LLMPROF_HOST_FRAME SET function = ?, source = ?", (evil, evil))
    sql.commit()
    sql.close()
    async with app(hostile).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        for keys in ("3,n,w", "7", "7,g,g"):
            await pilot.press(*keys.split(","))
            assert "\x1b" not in shown(screen) and "[red]" in shown(screen)
            assert max(width_of(row) for row in screen.query_one("#body").rows) <= 118


# --- a gap ------------------------------------------------------------------------------------


async def test_a_gap_tells_its_cause_and_its_stack(trace) -> None:
    async with app(FIXTURE).run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "tab", "n", "w")
        gap = screen.view.timeline.selected.gap
        judge = trace.engines[1].judge
        assert isinstance(judge, GapJudge)
        parts = judge.of(gap.start_ns, gap.end_ns)
        assert sum(parts.values()) == gap.end_ns - gap.start_ns
        text = shown(screen)
        assert re.search(
            rf"likely cause \(\d+ samples? in similar gaps\): {next(iter(parts))}", text
        )
        assert "host stack sampled there" in text and "CUDAGraph.replay" in text


def test_a_gap_names_the_stacks_that_were_sampled_in_it() -> None:
    frames = [
        HostFrame(1, "copy_to_host", "/x/model.py", 7, ""),
        HostFrame(2, "f", "/x/a.py", 1, ""),
    ]
    taken = [(500, 1), (1_000, 0), (1_500, 0), (2_050, 0), (2_500, 1)]
    samples = [
        StepSample(at, 1, (frames[n], frames[1]), "sync" if n == 0 else "host", 0.0)
        for at, n in taken
    ]
    host = SimpleNamespace(samples=samples, sampled=SimpleNamespace(tick_ns=100))
    engine = cast("EngineTrace", SimpleNamespace(host=host))
    gap = Gap(900, 2_000, 1, 0, 1)
    # The sample after the gap may have been taken in it: its time is known to a tick.
    said = _stacks(engine, gap, 200)
    assert said == (
        "host stack sampled there, 3 of 3 (sync): copy_to_host (model.py:7) ← f (a.py:1)"
    )
    assert _stacks(engine, gap, 70).endswith("copy_to_host (model.py:7) …")
    far = _stacks(engine, Gap(2_700, 2_800, 1, 0, 1), 200)
    assert far == "nearest host stack, 200 ns earlier (host): f (a.py:1) ← f (a.py:1)"
    away = _stacks(engine, Gap(3_252_500, 3_252_600, 1, 0, 1), 200)
    assert away == "no host stack within 500 µs (the nearest: 3.25 ms earlier)"
    assert _stacks(engine, replace(gap, step=2), 200) == ""
    assert _stacks(cast("EngineTrace", SimpleNamespace(host=Unavailable("no"))), gap, 200) == ""
    assert _stacks(None, gap, 200) == ""


# --- the page ---------------------------------------------------------------------------------


def lines(opened, trace, **changes) -> list[str]:
    view = replace(View(UNICODE, page="host", trace=trace), **changes)
    return [text_of(line).rstrip() for line in body(opened.snapshot(), view, 120, 40)]


def test_one_step_is_about_that_step(opened, trace) -> None:
    whole, step = lines(opened, trace), lines(opened, trace, host="step")
    assert any("ms idle a step" in line for line in whole)
    assert not any("ms idle a step" in line or "ms a step the host" in line for line in step)
    assert any(f"of {trace.engines[0].host.step_ms(1):.2f} ms in step 1: " in line for line in step)
    assert any("samples: too few for shares" in line for line in step)


def test_functions_of_one_engine_alone_are_no_difference(opened, trace) -> None:
    text = lines(opened, trace)
    table = text[: text.index("")]
    kinds = {k for e in trace.engines for k in e.host.kinds_ms()}
    assert {line.split()[0] for line in table[2:]} - kinds <= {"no", "self"}
    assert "silu" not in "".join(table)  # the eager engine alone has it
