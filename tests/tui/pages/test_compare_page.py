"""Compare, several files, palette, keys, export and colours, on a run recorded on an H100."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import kineto_factory as kineto
import pytest
from textual.widgets import Input, Static
from tui_pilot import FIXTURE, app, settled, shown, source, typed
from vllm_twin import write_twin

from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.frames.several import SeveralRuns
from llmprof.analysis.view.opening import open_run
from llmprof.analysis.view.traced import RunTrace
from llmprof.runfile.nvtx import OpTotal
from llmprof.runfile.reader import RunFileReader
from llmprof.traces.opened import readable
from llmprof.tui.compare import page as compare_page
from llmprof.tui.compare.page import entries, step_parts
from llmprof.tui.drawing import palette
from llmprof.tui.drawing.canvas import strip
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.frame import body
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.commands import ACTIONS
from llmprof.tui.shell.dialogs import Choose
from llmprof.tui.shell.main_screen import MainScreen
from llmprof.tui.view import CompareView, View


@pytest.fixture(scope="module")
def opened() -> RunDataSource:
    return source()


@pytest.fixture(scope="module")
def trace(opened) -> RunTrace:
    found = opened.trace()
    assert isinstance(found, RunTrace)
    return found


# --- compare ----------------------------------------------------------------------------------


def test_kernels_of_both_are_sorted_and_filtered(trace) -> None:
    found = entries(trace, 0, 1, CompareView(), None)
    assert all(e.comparable for e in found)
    assert [e.weight_ms for e in found] == sorted((e.weight_ms for e in found), reverse=True)
    by_a = entries(trace, 0, 1, CompareView(sort="A"), None)
    assert by_a[0].a == max(e.a for e in found if e.a)[0:2] or by_a[0].a[1] >= by_a[1].a[1]
    norms = entries(trace, 0, 1, CompareView(filter="NORM"), None)
    assert norms and all(e.category == "norm" or "norm" in e.name for e in norms)
    only_b = [e for e in found if e.a is None]
    assert only_b and all(e.change_ms == e.b[1] for e in only_b)


def test_instances_of_one_template_are_one_line(tmp_path: Path) -> None:
    """Eager and in a graph, vLLM runs another instance of FlashAttention."""
    for kind in ("eager", "graphs"):
        write_twin(tmp_path / f"{kind}.sqlite", kind)
    runs = [open_run(tmp_path / f"{kind}.sqlite") for kind in ("eager", "graphs")]
    trace = SeveralRuns(runs).trace()
    assert isinstance(trace, RunTrace)
    found = entries(trace, 0, 1, CompareView(), None)
    flash = [e for e in found if e.name == "FlashAttnFwdSm90"]
    assert len(flash) == 1 and flash[0].a is not None and flash[0].b is not None
    # Two products of one short name keep a line each.
    products = [e for e in found if e.name == "nvjet sm90 hsh 256x8 TNT"]
    assert len(products) == 2 and all(e.a and e.b for e in products)


def test_kernels_of_two_vendors_are_paired_by_what_they_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = {"ampere_sgemm_128x64_nn": "Cijk_Alik_Bljk_B", "flash_fwd_kernel": "attn_fwd"}
    runs = []
    for name, amd in (("a.json", True), ("b.json", False)):
        events = kineto.steps(4, amd=amd)
        for event in events:
            event["name"] = other.get(event["name"], event["name"]) if amd else event["name"]
        path = kineto.write(tmp_path / name, kineto.document(events))
        runs.append(open_run(readable(path)))
    trace = SeveralRuns(runs).trace()
    assert isinstance(trace, RunTrace)
    found = {e.name: e for e in entries(trace, 0, 1, CompareView(), None)}
    assert set(found) == {
        "product: Cijk_Alik_Bljk_B | ampere sgemm 128x64 nn",
        "prefill: attn_fwd | flash_fwd",
        "my_own_thing",
    }
    assert all(e.grouped and e.a == e.b == (1.0, 0.0105) for e in found.values())
    # Of one step each kernel is shown as it ran.
    assert len(entries(trace, 0, 1, CompareView(), 1)) == 5


def test_an_engine_of_which_nothing_was_recorded_is_no_change_to_zero(trace, monkeypatch) -> None:
    monkeypatch.setattr(compare_page, "_kernels", lambda *_: {})
    monkeypatch.setattr(trace.engines[0], "operators", (OpTotal("aten::mm", 10, 5_000_000),))
    monkeypatch.setattr(trace.engines[1], "operators", ())
    (found,) = entries(trace, 0, 1, CompareView(), None)
    assert found.a is not None and found.b is None and found.change_ms is None
    (other,) = entries(trace, 1, 0, CompareView(), None)
    assert other.a is None and other.b is not None and other.change_ms is None
    (alone,) = entries(trace, None, 0, CompareView(), None)
    assert alone.comparable


def test_the_parts_of_one_step_add_up_to_it(trace) -> None:
    for lane in trace.lanes.lanes:
        for step in range(1, lane.traced.steps + 1):
            parts = step_parts(lane, step)
            assert sum(parts.parts_ns.values()) == parts.step_ns
            total = sum(e.b[1] for e in entries(trace, None, 0, CompareView(), step) if e.b)
            assert total > 0


async def test_compare_keys_change_basis_baseline_and_filter() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("4", "b")
        assert "as traced" in shown(screen) and "tracers attached" in shown(screen)
        await pilot.press("b")
        assert "traced step 1" in shown(screen)
        await pilot.press("slash")
        await typed(pilot, "silu")
        assert "1 kernel ─" in shown(screen) or "2 kernels ─" in shown(screen)
        await pilot.press("escape", "tab", "A")
        assert shown(screen).startswith("A torch:cuda_graph=1 → B torch")
        await pilot.press("o", "o", "o")
        assert "sorted by name" in shown(screen)


# --- several files, palette, keys, export -----------------------------------------------------


async def test_two_files_stand_side_by_side(tmp_path: Path) -> None:
    other = tmp_path / "second.sqlite"
    shutil.copyfile(FIXTURE, other)
    runs = []
    for path in (FIXTURE, other):
        with RunFileReader(path) as reader:
            runs.append(reader.run_data())
    async with LlmprofApp(SeveralRuns(runs)).run_test(size=(120, 60)) as pilot:
        screen = await settled(pilot)
        assert re.search("the same within|inconclusive", shown(screen))
        labels = [e.label for e in screen.snapshot.engines]
        assert labels == [f"{e} ({f})" for f in ("h100_graph", "second")
                          for e in ("torch", "torch:cuda_graph=1")]  # fmt: skip
        await pilot.press("3", "n")
        assert all(label in shown(screen) for label in labels)
        assert shown(screen).count("GPU busy") == 4
        await pilot.press("shift+tab", "4")
        assert "torch:cuda_graph=1 (second) is" in shown(screen)
        assert "ms more a step than torch:cuda_graph=1 (second): 4.12 ms idle" in " ".join(
            shown(screen).split()
        )


async def test_the_palette_runs_actions_and_finds_kernels_and_steps() -> None:
    assert ACTIONS.keys() <= MainScreen.default_keys().keys()
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        for text, check in (
            ("page timeline", lambda: screen.view.page == "timeline"),
            ("step 3", lambda: screen.view.timeline.selected.step == 3),
            ("silu", lambda: screen.view.timeline.selected.item is not None),
        ):
            await pilot.press("ctrl+p")
            await pilot.pause()
            pilot.app.screen.query_one(Input).value = text
            await pilot.pause(0.4)
            await pilot.app.workers.wait_for_complete()
            await pilot.press("enter")
            await pilot.pause()
            if not check():
                await pilot.press("enter")
                await pilot.pause()
            assert check(), text


async def test_keys_can_be_remapped_and_help_shows_them() -> None:
    keymap = {"slowest": "f8", "no-such": "x"}
    async with app(keymap=keymap).run_test(size=(80, 24)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", "n")
        assert screen.view.timeline.selected is None
        await pilot.press("f8")
        assert screen.view.timeline.selected is not None
        assert any("no-such" in n.message for n in pilot.app._notifications)
        await pilot.press("question_mark")
        await pilot.pause()
        assert "f8" in str(pilot.app.screen.query_one(".dialog", Static).content)


@pytest.mark.parametrize("page", ["1", "2", "3", "4", "5", "6", "7"])
async def test_help_of_every_page_fits_a_small_screen(page: str) -> None:
    async with app().run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(page, "question_mark")
        await pilot.pause()
        dialog = pilot.app.screen.query_one(".dialog", Static)
        assert len(str(dialog.content).splitlines()) <= dialog.content_size.height


async def test_export_asks_for_a_format_and_says_what_is_wrong(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.md").write_text("mine")
    async with app().run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("e", *["down"] * 6)
        assert isinstance(pilot.app.screen, Choose)
        await pilot.pause()
        assert pilot.app.screen.query_one(Input).value.endswith("h100_graph.md")
        await typed(pilot, str(tmp_path / "there.md"))
        await settled(pilot)
        said = " ".join(n.message for n in pilot.app._notifications)
        assert "exists already" in said
    assert (tmp_path / "there.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("downs", "name", "key"),
    [(3, "h100_graph.chrome.json", "traceEvents"), (7, "h100_graph.json", "run")],
)
async def test_export_writes_what_the_command_writes(
    tmp_path, monkeypatch, downs: int, name: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with app().run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("e", *["down"] * downs)
        await pilot.pause()
        await pilot.press("enter")
        await settled(pilot)
        said = " ".join(n.message for n in pilot.app._notifications)
    (file,) = tmp_path.iterdir()
    assert file.name == name
    assert f"wrote {file}" in said
    assert key in json.loads(file.read_text())


async def test_a_locked_account_exports_below_its_home_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPROF_LOCKED", "1")
    async with app().run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await pilot.press("e")
        await pilot.pause()
        assert pilot.app.screen.query_one(Input).value == "h100_graph.html"
        await typed(pilot, ".ssh.sqlite")
        await settled(pilot)
        assert "below its home only" in " ".join(n.message for n in pilot.app._notifications)
    assert not list(tmp_path.iterdir())


async def test_host_page_turns_its_range_and_its_step() -> None:
    async with app().run_test(size=(120, 40)) as pilot:
        screen = await settled(pilot)
        await pilot.press("7")
        assert screen.view.page == "host"
        await pilot.press("g")
        assert screen.view.host == "step"
        await pilot.press("right", "right")
        assert screen.view.step == 3
        await pilot.press("left")
        assert screen.view.step == 2
        focus = screen.view.focus
        await pilot.press("g", "right")
        assert screen.view.host == "gaps"
        assert screen.view.focus != focus
        await pilot.press("g")
        assert screen.view.host == "all"


@pytest.mark.parametrize(
    ("environ", "depth"),
    [
        ({"TERM": "xterm-256color"}, "full"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "full"),
        ({"TERM": "xterm"}, "few"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "none"),
    ],
)
def test_colours_follow_the_terminal(environ, depth, opened, trace) -> None:
    assert palette.choose(environ) == depth
    palette.use(depth)
    try:
        line = body(opened.snapshot(), View(UNICODE, page="timeline", trace=trace), 118, 37)[8]
        styles = [segment.style for segment in strip(line, UNICODE)]
        if depth == "none":
            assert all(s.color is None and s.bgcolor is None for s in styles)
        if depth == "few":
            assert all(s.color.number is not None and s.color.number < 16 for s in styles)
    finally:
        palette.use("full")


@pytest.mark.parametrize("key", ["question_mark", "e", "colon", "slash", "g"])
async def test_a_dialog_that_is_left_twice_is_left_once(key: str) -> None:
    """Keys that come faster than frames did that: the app ended with ScreenStackError."""
    async with app().run_test(size=(80, 24)) as pilot:
        screen = await settled(pilot)
        await pilot.press("3", key)
        await pilot.pause()
        box = pilot.app.screen
        assert box is not screen
        box.dismiss(None)
        box.dismiss(None)
        await pilot.pause()
        assert pilot.app.screen is screen
        await pilot.press("n")
        assert screen.view.timeline.selected is not None
