"""What the user chose to see; all that a frame depends on besides the snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from llmprof.analysis.snapshot import EngineView, Snapshot
from llmprof.analysis.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.cells import clean
from llmprof.tui.glyphs import Glyphs
from llmprof.tui.palette import accent

Page = Literal["steps", "summary", "trace", "kernels", "text", "log", "host"]
PAGES: Final[tuple[Page, ...]] = ("steps", "summary", "trace", "kernels", "text", "log", "host")
Scale = Literal["auto", "shared", "own"]
SCALES: Final[tuple[Scale, ...]] = ("auto", "shared", "own")


@dataclass(frozen=True)
class View:
    glyphs: Glyphs
    page: Page = "steps"
    focus: int = 0
    """Index of the engine in focus."""
    zoom: bool = False
    """Show the engine in focus alone."""
    paused: bool = False
    scale: Scale = "auto"
    trace: RunTrace | Unavailable | None = None
    """``None``: not asked for yet."""
    step: int = 1
    """Traced decode step on show."""
    start: float = 0.0
    end: float = 1.0
    """The part of the step's time axis on show, 0–1."""
    item: int = 0
    """Selected kernel, copy or gap of the engine in focus."""
    sort: str = "total"
    host: str = "all"
    """Stacks on the host page: ``host_page.SELECTIONS``."""

    def focused(self, snapshot: Snapshot) -> int:
        return min(self.focus, max(0, len(snapshot.engines) - 1))

    def lanes(self, snapshot: Snapshot) -> list[Lane]:
        """The engines on show, each with its colour."""
        focus = self.focused(snapshot)
        # One engine needs no mark that says which one is in focus.
        several = len(snapshot.engines) > 1
        lanes = [
            Lane(engine, accent(i), several and i == focus)
            for i, engine in enumerate(snapshot.engines)
        ]
        return [lanes[focus]] if self.zoom and lanes else lanes


@dataclass(frozen=True)
class Lane:
    """An engine and how it is drawn."""

    engine: EngineView
    accent: str
    focused: bool

    @property
    def failed(self) -> bool:
        return self.engine.state == "failed" or bool(self.engine.failure)

    @property
    def reason(self) -> str:
        """Why the engine failed, without the label that many messages begin with."""
        text = clean(self.engine.failure).removeprefix(f"{clean(self.engine.label)}: ")
        return text or "no reason given"
