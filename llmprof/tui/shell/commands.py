"""The command palette: every action of the screen, steps and kernels of the run.

A command runs the same action as its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol, cast

from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.widgets import Input

from llmprof.analysis.timeline.lod import LaneWork
from llmprof.analysis.view.traced import RunTrace
from llmprof.tui.drawing.canvas import BlockBar
from llmprof.tui.drawing.cells import clean
from llmprof.tui.shell.dialogs import Once, key_text
from llmprof.tui.shell.main_screen import MainScreen
from llmprof.tui.timeline import nav


class CommandApp(Protocol):
    """What commands ask of the app."""

    main: MainScreen

    def keys(self) -> dict[str, str]: ...


ACTIONS = {
    "page-steps": "Page: steps",
    "page-summary": "Page: summary",
    "page-timeline": "Page: timeline",
    "page-compare": "Page: compare",
    "page-text": "Page: decoded text",
    "page-log": "Page: log",
    "page-host": "Page: host stacks",
    "findings": "Page: findings",
    "page-memory": "Page: DRAM by kernel",
    "page-ranks": "Page: ranks of several GPUs",
    "engine": "Next engine in focus",
    "pause": "Freeze the display, or go on",
    "slowest": "Timeline: slowest step, then the next",
    "median": "Timeline: median step",
    "goto": "Timeline: go to a step; host: next range of stacks",
    "widest-gap": "Timeline: widest gap of the step",
    "search": "Search kernels (timeline), filter them (compare)",
    "align": "Timeline: align by step or by time",
    "round": "Steps, timeline: next round",
    "streams": "Timeline: a row a stream",
    "whole": "Timeline: show all",
    "sort": "Compare: next order of kernels",
    "purpose": "Compare: by purpose, or by kernel",
    "basis": "Compare: timing pass, as traced, one step",
    "baseline": "Compare: engine in focus is the baseline",
    "scale": "Steps: next y scale",
    "steps-pick": "Choose which NVTX ranges are steps (files of Nsight Systems)",
    "export": "Export the run",
    "screenshot": "Screenshot (SVG)",
    "copy": "Copy selection or page (OSC 52)",
    "sources": "Where are these numbers from?",
    "help": "Help on this page",
    "quit": "Quit",
}
_MOST = 12
"""Hits of kernels and of steps."""


class Palette(Once, CommandPalette):
    """Textual's, in the app's own dress (``llmprof.tcss``)."""

    def __init__(self, ascii_only: bool) -> None:
        self._ascii_only = ascii_only
        super().__init__(
            placeholder="search", id="--command-palette", classes="-ascii" if ascii_only else ""
        )

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = False  # each turn would be sent
        if self._ascii_only:
            self.query_one(CommandList).vertical_scrollbar.renderer = BlockBar  # type: ignore[misc]


class RunCommands(Provider):
    """Actions by name; kernels of the engine in focus; ``step N``."""

    async def discover(self) -> Hits:
        for text, action in self._actions():
            yield DiscoveryHit(text, partial(self._run, action), help=f"key {self._key(action)}")

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for text, action in self._actions():
            if (score := matcher.match(text)) > 0:
                yield Hit(
                    score, matcher.highlight(text), partial(self._run, action), text,
                    f"key {self._key(action)}",
                )  # fmt: skip
        main = cast(CommandApp, self.app).main
        trace = main.view.trace
        now = nav.scene(main.view)
        if not isinstance(trace, RunTrace) or now is None:
            return
        words = query.split()
        digits = next((w for w in words if w.isdecimal()), "")
        track = now.track
        if digits and track is not None and 1 <= int(digits) <= track.steps:
            step = int(digits)
            text = f"step {step}"
            yield Hit(1.0, text, partial(main.goto_step, step), text, "show it on the timeline")
        work = now.lane.work
        if not isinstance(work, LaneWork):
            return
        names = dict.fromkeys(clean(n) for n in self._kernels(trace, now.index))
        found = [(matcher.match(f"kernel {name}"), name) for name in names]
        for score, name in sorted(found, key=lambda pair: -pair[0])[:_MOST]:
            if score > 0:
                text = f"kernel {name}"
                yield Hit(score, matcher.highlight(text), partial(main.search, name), text)

    def _kernels(self, trace: RunTrace, index: int) -> Iterator[str]:
        for kernel in getattr(trace.engines[index].kernels, "kernels", ()):
            yield kernel.short_name

    def _actions(self) -> Iterator[tuple[str, str]]:
        """(text, binding id) of what can be done now."""
        main = cast(CommandApp, self.app).main
        for name, text in ACTIONS.items():
            action = main.action_of(name).partition("(")[0].removeprefix("app.")
            if main.check_action(action, ()):
                yield text, name

    def _key(self, name: str) -> str:
        return key_text(cast(CommandApp, self.app).keys().get(name, "none"))

    async def _run(self, name: str) -> None:
        main = cast(CommandApp, self.app).main
        await main.run_action(main.action_of(name))
