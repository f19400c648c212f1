"""The TUI: pure rendering, behaviour through Pilot, pictures at two sizes, bytes of a frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tui_snapshots_data as data
from textual.pilot import Pilot
from tui_snapshots_data import FixedSource

from llmprof.analysis.view.frames.snapshot import NOT_YET, GpuView, Snapshot
from llmprof.records import Unavailable
from llmprof.tui.drawing.canvas import Canvas, strip
from llmprof.tui.drawing.cells import (
    Row,
    Span,
    changed_runs,
    clean,
    fit,
    row,
    spread,
    text_of,
    width_of,
    wrap,
)
from llmprof.tui.drawing.compositor import Shown, smaller
from llmprof.tui.drawing.glyphs import ASCII, UNICODE, choose
from llmprof.tui.drawing.numbers import elapsed, interval, number, plain
from llmprof.tui.frame import body, header
from llmprof.tui.live.gpu import Meter
from llmprof.tui.live.gpu import strip as history_strip
from llmprof.tui.live.latency import bars, buckets, nice_ceiling, outlier_limit, per_cell, tops
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.dialogs import ConfirmStop, HelpScreen
from llmprof.tui.shell.refresh import prepare, refresh_rate
from llmprof.tui.view import PAGES, View

SNAPSHOTS = {
    name.lower(): getattr(data, name)
    for name in (
        "LIVE",
        "NO_GPU",
        "FINISHED",
        "FAILED",
        "HALF_FAILED",
        "START",
        "SIX",
        "ONE",
        "HOSTILE",
    )
}
SIZES = [(80, 24), (120, 40), (200, 60)]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same glyphs and colours whatever terminal the tests run in."""
    monkeypatch.setenv("LLMPROF_GLYPHS", "unicode")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)


def screen_text(app: LlmprofApp) -> str:
    return "\n".join(text_of(line) for canvas in app.main.query(Canvas) for line in canvas.rows)


def frame(snapshot: Snapshot, view: View, width: int, height: int) -> list[Row]:
    return header(snapshot, view, width) + body(snapshot, view, width, height - 3)


# --- pure rendering ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (60, 12), (20, 5), (3, 2)])
@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_page_of_every_state_stays_inside_its_width(
    name: str, size: tuple[int, int], glyphs: Any
) -> None:
    for page in PAGES:
        rows = frame(SNAPSHOTS[name], View(glyphs, page=page), *size)
        if size[0] >= 60:
            assert max(width_of(line) for line in rows) <= size[0]
        if glyphs.ascii:
            assert all(strip(line, glyphs).text.isascii() for line in rows)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["live", "no_gpu", "half_failed", "start", "six", "one"])
def test_the_live_page_needs_no_scrolling(name: str, size: tuple[int, int]) -> None:
    width, height = size
    assert len(frame(SNAPSHOTS[name], View(UNICODE), width - 2, height)) <= height - 1


def test_bars_have_eight_levels_a_row() -> None:
    values = [1, 2, 3, 4, 5, 6, 7, 8]
    assert text_of(bars(values, 8, math.inf, 1, UNICODE, "accent0")[0]) == "▁▂▃▄▅▆▇█"
    top, low = bars([4, 8, 12, 16], 16, math.inf, 2, UNICODE, "accent0")
    assert (text_of(top), text_of(low)) == ("  ▄█", "▄███")


def test_an_outlier_differs_by_mark_and_by_role() -> None:
    top, low = bars([4, 8, 4], 16, 6, 2, UNICODE, "accent0")
    assert (text_of(top), text_of(low)) == (" ▲ ", "▄█▄")
    assert [span.role for span in low] == ["accent0", "outlier", "accent0"]
    clipped = bars([4, 99, 4], 16, 6, 1, UNICODE, "accent0")[0]
    assert text_of(clipped) == "▂▲▂"


def test_more_steps_than_cells_show_the_largest_and_say_so() -> None:
    steps = [1.0, 5.0, 2.0, 2.0, 3.0]
    assert per_cell([steps, steps[:2]], 3) == 2
    assert buckets(steps, 2) == [5.0, 2.0, 3.0]
    long = replace(data.TORCH, step_ms=data.latencies(500, 25.9, 1))
    rows = body(replace(data.LIVE, engines=(long,)), View(UNICODE), 118, 37)
    assert any("max of 5 steps a cell" in text_of(line) for line in rows)


def test_outliers_need_enough_steps_and_survive_a_nan() -> None:
    assert outlier_limit([1.0, 9.0]) == math.inf
    assert outlier_limit([2.0, 2.0, 2.0, 2.0, 9.0, math.nan]) == 3.0


def test_scale_is_shared_unless_engines_are_far_apart() -> None:
    lanes = View(UNICODE).lanes(data.LIVE)
    limits, shared = tops(lanes, "auto")
    assert shared and limits == [60.0, 60.0]
    fast = replace(data.LLAMACPP, step_ms=(2.0,) * 9, itl_p50_ms=2.0, itl_max_ms=2.4)
    far = View(UNICODE).lanes(replace(data.LIVE, engines=(data.TORCH, fast)))
    assert tops(far, "auto") == ([60.0, 2.5], False)
    assert tops(far, "shared")[1] and not tops(lanes, "own")[1]
    assert [nice_ceiling(v) for v in (0.0, 0.9, 26.0, 101.0)] == [1.0, 1.0, 30.0, 120.0]


def test_scale_stays_when_a_round_begins() -> None:
    begun = replace(data.TORCH, step_ms=data.latencies(2, 20.0, 3))
    lanes = View(UNICODE).lanes(replace(data.LIVE, engines=(begun, data.LLAMACPP)))
    assert tops(lanes, "auto")[0] == tops(View(UNICODE).lanes(data.LIVE), "auto")[0]


def test_numbers_keep_their_width() -> None:
    values = (0.8421, 3.857, 38.57, 385.7, 38571, 123456, 1.2e6, 9.996, 99.96)
    shown = [plain(v) for v in values]
    assert shown == ["0.842", "3.86", "38.6", "386", "38571", "123k", "1.2M", "10.0", "100"]
    assert max(map(len, shown)) <= 5
    assert number(Unavailable("no counter")) == "n/a"
    assert number(NOT_YET) == "–"
    assert number(math.nan) == "n/a"
    assert interval(38.1, NOT_YET) == "" and interval(1.0, 2.0) == "1.00–2.00"
    assert [elapsed(s) for s in (5, 725, 3723)] == ["0:05", "12:05", "1:02:03"]


def test_rows_fit_with_wide_characters() -> None:
    assert text_of(fit(row("漢字漢字"), 5)) == "漢字…"
    assert width_of(fit(row("漢字", Span("x", "dim")), 4)) == 4
    assert text_of(spread(row("left side"), row("right"), 10)) == "left…right"
    assert wrap("aa bb cccccc", 5) == ["aa bb", "ccccc", "c"]


def test_changed_runs_merge_and_keep_wide_characters_whole() -> None:
    same = "x" * 90
    assert changed_runs(row(same), row(same)) == []
    assert changed_runs(row(same + "a"), row(same + "b")) == [(90, 91)]
    assert changed_runs(row("a" + same + "a"), row("b" + same + "b")) == [(0, 1), (91, 92)]
    assert changed_runs(row("abc" + same), row("xbz" + same)) == [(0, 3)]
    assert changed_runs(row(same + "漢" + same), row(same + "ab" + same)) == [(90, 92)]
    assert changed_runs(row("abc"), row("xyz")) == [(0, 3)]
    assert changed_runs(row(Span("a" + same)), row(Span("a", "dim"), same)) == [(0, 1)]


def test_a_history_strip_moves_only_with_its_slices() -> None:
    meter = Meter("power", "W", lambda s: s.power_w, 700.0)
    drawn = [history_strip(data.gpu_at(last), meter, 12, UNICODE) for last in range(20)]
    assert len(set(drawn)) < len(drawn) / 2
    assert all(len(d) == 12 for d in drawn)


def test_gpu_panel_says_why_it_is_empty_and_lists_several() -> None:
    rows = "\n".join(text_of(r) for r in body(data.NO_GPU, View(UNICODE), 78, 21))
    assert "NVML not found (libnvidia-ml.so.1): no NVIDIA driver" in rows
    two = replace(data.LIVE, gpus=(data.gpu(), replace(data.gpu(), throttle=("SwPowerCap",))))
    rows = "\n".join(text_of(r) for r in body(two, View(UNICODE), 118, 37))
    assert "2 devices" in rows and "throttled: SwPowerCap" in rows
    bare = replace(
        data.LIVE, gpus=(GpuView(data.H100, data.sample(0), missing=(("power_w", "x"),)),)
    )
    assert any("not throttled" in text_of(r) for r in body(bare, View(UNICODE), 118, 37))


def test_summary_has_verdict_agreement_text_warnings_and_reasons() -> None:
    view = View(UNICODE, page="summary")
    text = "\n".join(text_of(r) for r in body(data.FINISHED, view, 118, 37))
    for part in (
        "llamacpp is 1.58× as fast as torch (95 %: 1.55–1.60)",
        "ratio 1.58× [1.55–1.60]",
        "84 % of tokens agree",
        "first 31 tokens equal",
        "warm-up was not stable",
        "Gravity is the force",
        "differs after 157 characters",
        "J/token (torch, llamacpp): no energy counter",
        "2025-06-01-smollm2.sqlite",
    ):
        assert part in text


def test_glyphs_follow_the_locale() -> None:
    assert choose({"LANG": "en_GB.UTF-8"}) is UNICODE
    assert choose({}) is UNICODE
    assert choose({"LANG": "C"}) is ASCII
    assert choose({"LANG": "C", "LC_CTYPE": "C.UTF-8"}) is ASCII
    assert choose({"LANG": "en_GB.UTF-8", "LC_ALL": "POSIX"}) is ASCII
    assert choose({"LANG": "en_GB.UTF-8", "TERM": "linux"}) is ASCII
    assert choose({"LANG": "C", "LLMPROF_GLYPHS": "unicode"}) is UNICODE


def test_ssh_gets_fewer_frames() -> None:
    env = {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22", "TEXTUAL_FPS": "30"}
    prepare(env)
    assert env["TEXTUAL_ANIMATIONS"] == "none" and env["TEXTUAL_FPS"] == "30"
    assert (refresh_rate(env), refresh_rate({})) == (2.0, 4.0)
    local: dict[str, str] = {}
    prepare(local)
    assert local == {}


# --- behaviour --------------------------------------------------------------------------------


def test_untrusted_text_is_clean() -> None:
    assert clean("\x1b[2J[red]x[/]\x9b") == "\\x1b[2J[red]x[/]\\x9b"
    assert clean("a\udcffb\u200d\ufe0f") == "a?b"


@pytest.mark.parametrize("page", ["1", "2", "5", "6"])
async def test_markup_and_escapes_are_shown_literally(page: str) -> None:
    app = LlmprofApp(FixedSource(data.HOSTILE))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press(page)
        text = screen_text(app)
        assert "[red]title[/] \\x1b[2J" in text
        assert "[bold]w[/bold]" in text
        found = {
            "1": "[red]x[/]",
            "2": "[blink]why[/blink]",
            "5": "[link=x]t[/]",
            "6": "[b]log[/b]",
        }
        assert found[page] in text
        assert "\x1b" not in text and "\x9b" not in text and "\u202e" not in text


async def test_live_run_asks_before_it_stops() -> None:
    source = FixedSource(data.LIVE)
    app = LlmprofApp(source)
    async with app.run_test() as pilot:
        await pilot.press("q")
        assert isinstance(app.screen, ConfirmStop)
        await pilot.press("n")
        assert source.stopped == 0 and app.screen is app.main
        await pilot.press("q", "y")
    assert source.stopped == 1
    assert app.return_value == 130


async def test_ctrl_c_twice_stops() -> None:
    source = FixedSource(data.LIVE)
    app = LlmprofApp(source)
    async with app.run_test() as pilot:
        await pilot.press("ctrl+c")
        assert source.stopped == 0
        await pilot.press("ctrl+c")
    assert (source.stopped, app.return_value) == (1, 130)


@pytest.mark.parametrize(
    ("snapshot", "live", "code"),
    [
        (data.FINISHED, True, 0),
        (data.FAILED, True, 3),
        (replace(data.FINISHED, engines=data.HALF_FAILED.engines), True, 1),
        (replace(data.FINISHED, state="interrupted"), True, 130),
        (data.FAILED, False, 0),
        (data.LIVE, False, 0),
    ],
)
async def test_exit_codes(snapshot: Snapshot, live: bool, code: int) -> None:
    source = FixedSource(snapshot, live)
    app = LlmprofApp(source)
    async with app.run_test() as pilot:
        await pilot.press("q")
    assert (app.return_value, source.stopped) == (code, 0)


async def test_pause_freezes_and_goes_on() -> None:
    source = FixedSource(data.LIVE)
    app = LlmprofApp(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("space")
        assert "paused" in screen_text(app)
        source.now = replace(data.LIVE, elapsed_s=99.0)
        app.poll()
        assert "0:42" in screen_text(app) and "1:39" not in screen_text(app)
        await pilot.press("space")
        assert "1:39" in screen_text(app) and "paused" not in screen_text(app)


async def test_the_end_shows_the_summary_even_when_paused() -> None:
    source = FixedSource(data.LIVE)
    app = LlmprofApp(source)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("space", "enter")
        source.now = data.FINISHED
        app.poll()
        await pilot.pause()
        assert "1.58× as fast" in screen_text(app) and "finished" in screen_text(app)


async def test_failure_is_shown_with_its_reason_in_red() -> None:
    app = LlmprofApp(FixedSource(data.HALF_FAILED))
    async with app.run_test(size=(80, 24)):
        text = screen_text(app)
        assert "✗ failed" in text and "out of memory: weights need" in text and "26.1 GB" in text
        spans = [s for line in app.main.query_one("#body", Canvas).rows for s in line]
        assert any(s.role == "fail" and "failed" in s.text for s in spans)


async def test_keys_change_page_focus_zoom_and_scale() -> None:
    app = LlmprofApp(FixedSource(data.LIVE))
    async with app.run_test(size=(120, 40)) as pilot:
        pages = []
        # No ranks in this run: that page is not in turn.
        turn = [page for page in PAGES if page != "ranks"]
        for _ in turn:
            pages.append(app.main.view.page)
            await pilot.press("t")
        assert pages == turn and app.main.view.page == "steps"
        await pilot.press("tab")
        assert app.main.view.focused(data.LIVE) == 1
        await pilot.press("left", "left", "right", "enter")
        assert "▸torch" in screen_text(app)
        assert not {"▸llamacpp", "▌llamacpp"} & set(screen_text(app).split())
        await pilot.press("escape", "y")
        assert (app.main.view.zoom, app.main.view.scale) == (False, "shared")


async def test_help_opens_and_closes() -> None:
    app = LlmprofApp(FixedSource(data.LIVE))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        assert app.screen is app.main


async def test_footer_has_few_keys_and_greys_out_what_cannot_be_done() -> None:
    app = LlmprofApp(FixedSource(data.ONE, live=False))
    async with app.run_test(size=(80, 24)):
        shown = {
            b.binding.action: b.enabled for b in app.main.active_bindings.values() if b.binding.show
        }
        assert len(shown) <= 7
        assert not shown["pause"] and not shown["zoom"] and shown["help"]


async def test_screenshot_goes_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = LlmprofApp(FixedSource(data.LIVE))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("s", "s")
        await pilot.pause()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["llmprof-1.svg", "llmprof-2.svg"]
    assert "torch" in (tmp_path / "llmprof-1.svg").read_text(encoding="utf-8")


async def test_a_frame_costs_the_bytes_of_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FixedSource(data.grown(1000))
    app = LlmprofApp(source)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        sent: list[int] = []
        partial = app.main._compositor.render_partial_update

        def counted() -> Any:
            update = partial()
            if update is not None:
                less = smaller(update, Shown())
                sent.append(len(less.render_segments(app.console).encode()))
            return update

        monkeypatch.setattr(app.main._compositor, "render_partial_update", counted)
        app.poll()
        await pilot.pause()
        assert sent == []  # nothing changed, nothing sent
        for frame_number in range(1, 5):
            source.now = data.grown(1000 + 500 * frame_number)
            app.poll()
            await pilot.pause()
        assert sent and sum(sent) / 4 < 2000


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES[:2], ids=["80x24", "120x40"])
@pytest.mark.parametrize("name", ["live", "no_gpu", "finished", "failed", "half_failed", "six"])
def test_picture(name: str, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(LlmprofApp(FixedSource(SNAPSHOTS[name])), terminal_size=size)


@pytest.mark.parametrize("key", ["question_mark", "q", "space", "enter", "t,t"])
def test_picture_after_keys(key: str, snap_compare: Callable[..., bool]) -> None:
    async def press(pilot: Pilot[Any]) -> None:
        await pilot.press(*key.split(","))

    source = FixedSource(data.FINISHED if key == "t,t" else data.LIVE)
    assert snap_compare(LlmprofApp(source), terminal_size=(80, 24), run_before=press)
