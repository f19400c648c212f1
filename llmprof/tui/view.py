"""What the user chose to see; all that a frame depends on besides the snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar, get_args

from llmprof.analysis.findings.ranked import Findings
from llmprof.analysis.timeline.axis import Align, RoundKey
from llmprof.analysis.timeline.lod import Gap
from llmprof.analysis.view.frames.snapshot import EngineView, Snapshot
from llmprof.analysis.view.traced import RunTrace
from llmprof.records import Unavailable
from llmprof.tui.drawing.cells import Row, Span, clean, row, wrap
from llmprof.tui.drawing.glyphs import Glyphs
from llmprof.tui.drawing.palette import accent
from llmprof.tui.opening import Reading

T = TypeVar("T")
Page = Literal[
    "steps", "summary", "timeline", "compare", "text", "log", "host", "memory", "findings", "ranks"
]
PAGES: Final[tuple[Page, ...]] = get_args(Page)
PAGE_KEYS: Final[dict[Page, str]] = {
    page: str(number) if number <= 9 else "x" for number, page in enumerate(PAGES, 1)
}
"""A digit each; the tenth has a letter, since 0 is the whole timeline."""
Scale = Literal["auto", "shared", "own"]
SCALES: Final[tuple[Scale, ...]] = ("auto", "shared", "own")
Sort = Literal["change", "A", "B", "name"]
SORTS: Final[tuple[Sort, ...]] = ("change", "A", "B", "name")
Basis = Literal["timing", "traced", "step"]
BASES: Final[tuple[Basis, ...]] = ("timing", "traced", "step")
MemoryOrder = Literal["share", "distance", "µs/step"]
MEMORY_ORDERS: Final[tuple[MemoryOrder, ...]] = ("share", "distance", "µs/step")
HostRange = Literal["all", "step", "gaps"]
HOST_RANGES: Final[tuple[HostRange, ...]] = ("all", "step", "gaps")


def turned(value: T, every: tuple[T, ...]) -> T:
    """The one behind it; after the last the first."""
    return every[(every.index(value) + 1) % len(every)]


@dataclass(frozen=True)
class Selected:
    """A step, or one item or gap of it, of the engine in focus."""

    key: RoundKey
    step: int
    """0 is prefill."""
    item: int | None = None
    """Index into ``LaneWork``."""
    gap: Gap | None = None


@dataclass(frozen=True)
class TimelineView:
    align: Align = "step"
    key: RoundKey | None = None
    """The round on the axis when aligned by step; ``None``: the first that there is."""
    window: tuple[int, int] | None = None
    """The part of the axis on show, ns; ``None``: where the axis is at home."""
    selected: Selected | None = None
    rank: int | None = None
    """Place in the order of the slowest steps, or of the widest gaps of the step."""
    streams: bool = False
    """A row a stream."""
    search: str = ""


@dataclass(frozen=True)
class CompareView:
    sort: Sort = "change"
    basis: Basis = "timing"
    against: int = 0
    """Index of the baseline engine; the other is the one in focus."""
    filter: str = ""
    roles: bool = False
    """What a step spends on each purpose, in place of its categories and kernels."""


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
    round: int | None = None
    """Timing round on the steps page, from 0; ``None``: the current or the last one."""
    trace: RunTrace | Unavailable | None = None
    """``None``: not asked for yet."""
    reading: Reading | None = None
    """What is still being read of it."""
    timeline: TimelineView = field(default_factory=TimelineView)
    compare: CompareView = field(default_factory=CompareView)
    findings: Findings | None = None
    """``None``: not looked for yet, or without a trace."""
    finding: int = 0
    """The one that is selected, from 0."""
    memory: MemoryOrder = "share"
    """Order of the memory page: by share, distance from the ceiling, what would be saved."""
    host: HostRange = "all"
    """Whose stacks the host page shows: all steps', the selected step's, those in idle gaps."""

    @property
    def pages(self) -> tuple[Page, ...]:
        """In the header and in turn: without ``ranks`` where one process computes alone. Its key
        works all the same."""
        trace = self.trace
        ranks = isinstance(trace, RunTrace) and bool(trace.ranks or trace.skews or trace.no_ranks)
        return PAGES if ranks else tuple(page for page in PAGES if page != "ranks")

    @property
    def next_page(self) -> Page:
        pages = self.pages
        after = pages.index(self.page) + 1 if self.page in pages else 0
        return pages[after % len(pages)]

    @property
    def step(self) -> int:
        """The traced decode step that is selected on the timeline, else the first."""
        chosen = self.timeline.selected
        return max(1, chosen.step) if chosen is not None and chosen.key[0] == "traced" else 1

    def focused(self, snapshot: Snapshot) -> int:
        return min(self.focus, max(0, len(snapshot.engines) - 1))

    def lanes(self, snapshot: Snapshot) -> list[Lane]:
        """The engines on show, each with its colour."""
        focus = self.focused(snapshot)
        # One engine needs no mark that says which one is in focus.
        several = len(snapshot.engines) > 1
        lanes = [
            Lane(engine, accent(i), several and i == focus, i)
            for i, engine in enumerate(snapshot.engines)
        ]
        return [lanes[focus]] if self.zoom and lanes else lanes


def sorted_anew(view: View) -> View:
    """The next order of kernels: of the memory page, else of compare."""
    if view.page == "memory":
        return replace(view, memory=turned(view.memory, MEMORY_ORDERS))
    return replace(view, compare=replace(view.compare, sort=turned(view.compare.sort, SORTS)))


def other_basis(view: View) -> View:
    """Timing pass, as traced, one step."""
    return replace(view, compare=replace(view.compare, basis=turned(view.compare.basis, BASES)))


@dataclass(frozen=True)
class Lane:
    """An engine and how it is drawn."""

    engine: EngineView
    accent: str
    focused: bool
    index: int = 0
    """Among all engines of the snapshot."""

    @property
    def failed(self) -> bool:
        return self.engine.state == "failed" or bool(self.engine.failure)

    @property
    def reason(self) -> str:
        """Why the engine failed, without the label that many messages begin with."""
        text = clean(self.engine.failure).removeprefix(f"{clean(self.engine.label)}: ")
        return text or "no reason given"


def trace_or_why(snapshot: Snapshot, view: View, width: int) -> RunTrace | list[Row]:
    """The trace that a page draws, or the page while there is none."""
    if view.trace is None:
        going = snapshot.state == "running"
        text = "the trace is read when the run is over" if going else "reading the trace…"
        return [row(Span(text, "dim"))]
    if isinstance(view.trace, Unavailable):
        return [row(Span(line, "dim")) for line in wrap(clean(view.trace.reason), width)]
    return view.trace
