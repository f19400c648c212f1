"""The steps page of a finished run, and what the timeline says of one step and of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tui_pilot import app, settled, shown, source

from llmprof.analysis.view.frames.frame import build_snapshot
from llmprof.analysis.view.report import build
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import text_of
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.frame import body
from llmprof.tui.live import latency, rounds
from llmprof.tui.timeline import nav
from llmprof.tui.timeline.rows import Cell, write
from llmprof.tui.view import View


@pytest.fixture(scope="module")
def opened():
    return source()


@pytest.fixture(scope="module")
def view(opened) -> View:
    found = opened.trace()
    assert isinstance(found, RunTrace)
    return View(UNICODE, page="steps", trace=found)


def text(opened, view: View) -> str:
    return "\n".join(text_of(line) for line in body(opened.snapshot(), view, 120, 40))


def test_every_round_can_be_shown(opened, view: View) -> None:
    known = rounds.count(view)
    assert known > 1 and f"round {known}/{known}" in text(opened, view)
    first = rounds.turned(view, 1)
    assert f"round 1/{known}" in text(opened, first)
    small = "\n".join(text_of(line) for line in body(opened.snapshot(), first, 78, 21))
    assert f"step latency round 1/{known}" in small
    assert rounds.turned(first, -1).round == known - 1
    lanes = rounds.chosen(view.lanes(opened.snapshot()), replace(view, round=1))
    for lane, mine in zip(lanes, view.trace.lanes.lanes, strict=True):
        track = mine.track(("timing", 1))
        assert np.allclose(lane.engine.step_ms, track.wall_ns[1:] / 1e6)
    assert rounds.turned(replace(view, trace=None), 1).round is None


def test_the_axis_ends_with_the_steps() -> None:
    long = text_of(latency._x_axis(latency.Cells(3), 114, None))
    assert "300" in long
    assert text_of(latency._x_axis(latency.Cells(3), 114, 256)).split()[-1] == "240"


def test_a_mark_is_written_and_a_wide_character_is_not() -> None:
    cells: list[Cell] = [(" ", "")] * 6
    write(cells, 0, "▲ 語→", "x")
    assert "".join(c for c, _ in cells) == "▲ ?→  "


def test_one_idle_number(opened, view: View) -> None:
    """The summary's, the causes', the category table's and the timeline's whole are one."""
    for trace in view.trace.engines:
        report, causes = trace.kernels, trace.causes
        assert not isinstance(report, Unavailable) and not isinstance(causes, Unavailable)
        parts = trace.parts
        assert not isinstance(parts, Unavailable)
        assert report.idle_ms_per_step == pytest.approx(causes.ms_per_step)
        assert report.idle_ms_per_step == pytest.approx(parts.parts_ns["idle"] / 1e6, abs=1e-6)
        total = report.busy_ms_per_step + report.idle_ms_per_step
        assert total == pytest.approx(report.wall_ms_per_step)


def test_a_step_that_fills_the_view_has_its_own_numbers(opened, view: View) -> None:
    page = replace(view, page="timeline")
    now = nav.scene(page)
    timeline = nav.to_step(now, page.timeline, 3)
    shown_text = text(opened, replace(page, timeline=timeline))
    lane = view.trace.lanes.lanes[0]
    bounds = lane.traced.bounds_ns[3:5]
    busy = sum(int(c.between(bounds)[0]) for c in lane.work.curves.values())
    idle = (int(bounds[1] - bounds[0]) - busy) / 1e6
    head = next(line for line in shown_text.splitlines() if "step 3 · GPU busy" in line)
    assert float(head.partition("idle")[2].split()[0]) == pytest.approx(idle, rel=0.01)


async def test_out_of_another_round_and_of_time() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "r", "r")
        assert "timing round" in shown(screen)
        await pilot.press("escape")
        assert "traced round" in shown(screen)
        await pilot.press("n", "a")
        text = shown(screen)
        assert "by time" in text and "whole run" not in text and "not traced here" not in text
        await pilot.press("1", "r")
        assert "round 1/" in shown(screen)


def test_the_gpu_of_a_finished_run_is_that_of_its_timing_rounds(opened) -> None:
    from rundata_factory import decode_round, engine, engine_info, gpu_sample, run_data

    info = engine_info(device="cuda:0")
    engines = [engine(0, "a", info=info), engine(1, "b", info=info)]
    made = [decode_round(0, 0, [100.0] * 4), decode_round(1, 0, [100.0] * 4)]
    # Engine a draws 300 W, b 200 W; at the end of the run the GPU idles at 70 W.
    samples = [gpu_sample(at, power_w=300.0) for at in (50, 150, 250)]
    samples += [gpu_sample(at, power_w=200.0) for at in (550, 650, 750)]
    samples += [gpu_sample(at, power_w=70.0) for at in (5000, 6000)]
    from tui_snapshots_data import H100

    data = run_data(engines, made, gpu_devices=[H100], gpu_samples=samples)
    over = replace(data.info, state="finished")
    snapshot = build_snapshot(replace(data, info=over), build(data), 10**10, {})
    for focus, watts in ((0, "300"), (1, "200")):
        drawn = [text_of(r) for r in body(snapshot, View(UNICODE, focus=focus), 120, 40)]
        panel = "\n".join(drawn)
        assert f"{'ab'[focus]}, timing rounds, medians" in panel
        assert any("power" in line and watts in line for line in drawn), panel
