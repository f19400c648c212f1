"""The traced pass as the pages ask for it: the engine of a lane, its steps, what is on show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llmprof.analysis.kernels import StepGpu
from llmprof.analysis.snapshot import Snapshot
from llmprof.analysis.traced import EngineTrace, RunTrace, StepItem, StepView
from llmprof.records import Unavailable
from llmprof.tui.cells import Row, Span, clean, row, wrap
from llmprof.tui.view import Lane, View


@dataclass(frozen=True)
class Traced:
    """A lane with its trace and its step on show."""

    lane: Lane
    engine: EngineTrace | None
    step: StepView | Unavailable

    @property
    def items(self) -> Sequence[StepItem]:
        return () if isinstance(self.step, Unavailable) else self.step.items


def engine_of(trace: RunTrace, lane: Lane) -> EngineTrace | None:
    label = clean(lane.engine.label)
    return next((e for e in trace.engines if clean(e.label) == label), None)


@lru_cache(maxsize=16)
def step_of(engine: EngineTrace, step: int) -> StepView | Unavailable:
    """The step as a value; every key on the trace page draws the same steps again."""
    return engine.step_view(step)


def gpu_steps(engine: EngineTrace | None) -> tuple[StepGpu, ...]:
    """The decode steps of an engine's traced round; none where kernels have no step."""
    if engine is None or isinstance(engine.kernels, Unavailable):
        return ()
    steps = engine.kernels.steps
    return () if isinstance(steps, Unavailable) else steps


def step_count(trace: RunTrace | Unavailable | None) -> int:
    """Traced decode steps of the engine that has the most; 0 without a trace."""
    if trace is None or isinstance(trace, Unavailable):
        return 0
    return max((len(gpu_steps(engine)) for engine in trace.engines), default=0)


def on_show(snapshot: Snapshot, view: View) -> list[Traced]:
    """Every lane of the view with its step; empty without a trace."""
    if not isinstance(view.trace, RunTrace):
        return []
    found = []
    for lane in view.lanes(snapshot):
        engine = engine_of(view.trace, lane)
        missing = Unavailable("not in the trace")
        found.append(Traced(lane, engine, missing if engine is None else step_of(engine, view.step)))
    return found


def in_focus(shown: Sequence[Traced]) -> Traced | None:
    """The engine in focus; with one lane that one."""
    return next((t for t in shown if t.lane.focused or len(shown) == 1), None)


def span_ns(shown: Sequence[Traced]) -> int:
    """Length of the common time axis: the longest step on show."""
    walls = [t.step.wall_ns for t in shown if isinstance(t.step, StepView)]
    return max([1, *walls])


def window_ns(view: View, shown: Sequence[Traced]) -> tuple[int, int]:
    """The part of the time axis on show."""
    return view.window or (0, span_ns(shown))


def instead_of_trace(snapshot: Snapshot, view: View, width: int) -> list[Row]:
    """What a page says while there is no trace; empty where there is one."""
    if isinstance(view.trace, RunTrace):
        return []
    if view.trace is not None:
        text = f"no trace: {clean(view.trace.reason)}"
    elif snapshot.state == "running":
        text = "the trace is read when the run is over"
    else:
        text = "reading the trace…"
    return [row(Span(line, "dim")) for line in wrap(text, width)]
