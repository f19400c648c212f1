"""``i``: every number of a page says where it is from."""

from __future__ import annotations

import pytest
from textual.widgets import Static
from tui_pilot import app, settled
from tui_snapshots_data import LIVE, FixedSource

from llmprof.analysis.host.stacks import LEAST_SAMPLES
from llmprof.analysis.timing.stats import CONFIDENCE
from llmprof.records import Unavailable
from llmprof.tui.drawing.glyphs import UNICODE
from llmprof.tui.live import columns
from llmprof.tui.memory import page as memory_page
from llmprof.tui.ranks import page as ranks_page
from llmprof.tui.shell.app import LlmprofApp
from llmprof.tui.shell.sources import SOURCES
from llmprof.tui.shell.sources_screen import SourcesScreen, said
from llmprof.tui.view import PAGE_KEYS, PAGES


def dialog(of: LlmprofApp) -> str:
    assert isinstance(of.screen, SourcesScreen)
    return str(of.screen.query_one(Static).content)


@pytest.mark.parametrize("page", PAGES)
async def test_each_number_of_a_page_says_it_and_fits_80x24(page: str) -> None:
    shown = app()
    async with shown.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press(PAGE_KEYS[page], "i")
        seen = set()
        for one in SOURCES[page]:
            text = dialog(shown)
            for field in ("source", "pass", "interval", "formula"):
                assert field in text
            assert one.formula.split()[0] in text
            box = shown.screen.query_one(Static).region
            assert box.height <= 24 and box.width <= 80, (page, one.name)
            seen.add(text)
            await pilot.press("j")
        assert len(seen) == len(SOURCES[page])
        await pilot.press("i")
        assert shown.screen is shown.main


def test_no_column_is_without_a_source() -> None:
    def names(page: str) -> str:
        return " ".join(one.name for one in SOURCES[page])

    for column in columns.ALL:
        known = {"interval": "tok/s", "p95": "ITL", "p99": "ITL", "max": "ITL",
                 "modelled": "modelled GB/s", "measured": "measured GB/s"}  # fmt: skip
        assert known.get(column.title, column.title) in names("summary"), column.title
    for head in ranks_page._HEADS:
        assert head in names("ranks"), head
    for name in ("share", "of a copy", "along it"):
        assert name in memory_page._head((), 200) and name in names("memory")
    for name in memory_page._WIDTHS:
        assert {"±": "GB/s", "win": "µs/step"}.get(name, name) in names("memory"), name


def test_the_words_have_the_numbers_of_the_code() -> None:
    frames = next(one for one in SOURCES["host"] if one.name == "ms of a frame")
    assert f"under {LEAST_SAMPLES} samples" in frames.interval
    ratio = next(one for one in SOURCES["summary"] if one.name == "ratio")
    assert ratio.interval.startswith(f"{CONFIDENCE:.0%}".replace("%", " %"))


def test_values_are_those_of_the_page_and_reasons_those_of_the_run() -> None:
    tok_s = SOURCES["summary"][0]
    assert ("now", "torch 38.6 tok/s") in said(tok_s, LIVE)
    joule = next(one for one in SOURCES["summary"] if one.name == "J/token")
    value = LIVE.engines[0].joule_per_token
    assert isinstance(value, Unavailable)
    text = " ".join(line for _, line in said(joule, LIVE))
    assert f"n/a: {value.reason}" in text


async def test_it_says_so_of_a_live_run_too() -> None:
    shown = LlmprofApp(FixedSource(LIVE))
    async with shown.run_test(size=(80, 24)) as pilot:
        await pilot.press("i")
        assert "torch 38.6 tok/s" in dialog(shown)
        assert UNICODE.focus in dialog(shown)
