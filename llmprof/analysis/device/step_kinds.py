"""What kind each step is: how it was launched, or what else than decoding it did.

Steps of one kind are compared with one another; a step that is slow because it is of another kind
(eager where the others replay a graph, with a prompt riding along) says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.sweep import Work
from llmprof.records.steps import (
    BETWEEN,
    Composition,
    StepLabel,
    StepPhase,
)
from llmprof.runfile.trace.rows import Ints, TraceRows

StepKind = Literal["graph", "piecewise", "eager", "prefill", "mixed", "verify", "other", "pause"]
"""``graph``: one CUDA graph, or two, hold most kernels. ``piecewise``: graphs hold a part, or there
are many. ``eager``: every kernel was launched on its own. The others: what the step was for, where
its range says so, however it was launched."""
MOST_GRAPHS = 2
"""Of a step that is one graph: the model's, and the sampler's."""
SLOW = 1.25
"""A step that took so many times the median of the decode steps is an outlier."""
MOST_OUTLIERS = 20


@dataclass(frozen=True, eq=False)
class Launched:
    """How the kernels of every step were launched; shape (steps,)."""

    launches: Ints
    """Calls that started kernels; a graph of 200 kernels is one."""
    graphs: Ints
    """Those of them that were graphs."""
    in_graphs: Ints
    """Kernels of graphs."""
    kernels: Ints
    whole: Ints
    """Graphs that were traced as a whole, without their kernels."""


@dataclass(frozen=True)
class StepGroup:
    """Steps of one kind. Medians."""

    kind: StepKind
    steps: int
    counted: bool
    """Are the engine's means and medians over these?"""
    wall_ms: float
    busy_ms: float
    idle_ms: float
    kernels: float
    launches: float
    tokens: int | None
    """Decoded in all steps of the group; ``None``: the ranges do not say."""
    tok_s: float | None
    """``tokens`` by the time of those steps."""


@dataclass(frozen=True)
class Outlier:
    """A step that was slow, and why as far as the trace says."""

    step: int
    kind: StepKind
    wall_ns: int
    ratio: float
    """To the median of the steps that count."""
    reason: str


def launched(work: Work, rows: TraceRows, steps: int) -> Launched:
    """Counts of every step.

    A call that started several kernels launched a graph, also where nodes were not recorded. Of a
    graph that was traced as a whole the kernels are not known.
    """
    step = work.step[work.is_kernel]
    inside = step > 0
    node = rows.kernels.graph_node[work.kernel_row] != 0
    whole = work.whole_graph[~work.is_kernel]
    correlation = np.concatenate(
        [
            rows.kernels.correlation[work.kernel_row],
            rows.copies.correlation[work.copy_row[whole]],
        ]
    )
    steps_of = np.concatenate([step, work.step[~work.is_kernel][whole]])
    marked = np.concatenate([node, np.ones(int(np.count_nonzero(whole)), bool)])
    call, first, which, count = np.unique(
        correlation, return_index=True, return_inverse=True, return_counts=True
    )
    graph = (count > 1) & (call != 0)
    graph |= np.bincount(which, marked, len(call)) > 0

    def per_step(of: Ints) -> Ints:
        return np.bincount(of, minlength=steps + 1)[1:].astype(np.int64)

    launch_step = steps_of[first]
    there = launch_step > 0
    whole_step = steps_of[len(step) :]
    return Launched(
        launches=per_step(launch_step[there]),
        graphs=per_step(launch_step[there & graph]),
        in_graphs=per_step(step[inside & graph[which[: len(step)]]]),
        kernels=per_step(step[inside]),
        whole=per_step(whole_step[whole_step > 0]),
    )


def unusual_steps(work: Work, count: int, phases: list[StepPhase]) -> list[bool]:
    """Steps whose multiset of kernels is not that of most steps of their phase; none where most
    steps differ.

    A multiset's mark is the wrapping sum of a random 64-bit number a kernel: equal multisets have
    equal marks, and different ones the same mark with a chance of 2**-64.
    """
    inside = work.is_kernel & (work.step > 0)
    numbers = np.random.default_rng(0).integers(0, 2**63, len(work.names), np.uint64)
    marks = np.zeros(count, np.uint64)
    np.add.at(marks, work.step[inside] - 1, numbers[work.label[inside]])
    found = np.zeros(count, bool)
    of = np.array(phases)
    for phase in set(phases):
        mine = np.flatnonzero(of == phase)
        values, counts = np.unique(marks[mine], return_counts=True)
        usual = int(np.argmax(counts))
        if counts[usual] * 2 > len(mine):
            found[mine] = marks[mine] != values[usual]
    unusual: list[bool] = found.tolist()
    return unusual


def kinds(calls: Launched, labels: Sequence[StepLabel]) -> tuple[StepKind, ...]:
    """Of every step; without labels each is a decode step."""
    found: list[StepKind] = []
    for n in range(len(calls.kernels)):
        phase = labels[n].phase if labels else "decode"
        if phase != "decode":
            found.append(phase)
        elif not calls.graphs[n]:
            found.append("eager" if calls.kernels[n] else "other")
        elif calls.graphs[n] <= MOST_GRAPHS and (
            calls.whole[n] or calls.in_graphs[n] >= 0.5 * calls.kernels[n]
        ):
            found.append("graph")
        else:
            found.append("piecewise")
    return tuple(found)


def groups(
    of: Sequence[StepKind],
    counted: NDArray[np.bool_],
    wall_ns: Ints,
    busy_ns: Ints,
    calls: Launched,
    labels: Sequence[StepLabel],
) -> tuple[StepGroup, ...]:
    """One a kind, the most frequent first."""
    made = []
    kind_of = np.array(of)
    for kind in dict.fromkeys(of):
        mine = np.flatnonzero(kind_of == kind)
        tokens = _tokens([labels[n].composition for n in mine.tolist()]) if labels else None
        time_ns = int(wall_ns[mine].sum())
        made.append(
            StepGroup(
                kind=kind,
                steps=len(mine),
                counted=bool(counted[mine].all()),
                wall_ms=float(np.median(wall_ns[mine])) / 1e6,
                busy_ms=float(np.median(busy_ns[mine])) / 1e6,
                idle_ms=float(np.median(wall_ns[mine] - busy_ns[mine])) / 1e6,
                kernels=float(np.median(calls.kernels[mine])),
                launches=float(np.median(calls.launches[mine])),
                tokens=tokens,
                tok_s=tokens / time_ns * 1e9 if tokens and time_ns > 0 else None,
            )
        )
    return tuple(sorted(made, key=lambda group: -group.steps))


def _tokens(compositions: Sequence[Composition | None]) -> int | None:
    total = 0
    for item in compositions:
        if item is None or item.new_tokens is None:
            return None
        total += item.new_tokens
    return total


def outliers(
    of: Sequence[StepKind],
    counted: NDArray[np.bool_],
    wall_ns: Ints,
    busy_ns: Ints,
    calls: Launched,
    labels: Sequence[StepLabel],
    unusual: Sequence[bool],
) -> tuple[Outlier, ...]:
    """Steps much slower than the median of those that count, the slowest first."""
    mine = np.flatnonzero(counted)
    if len(mine) < 3:
        return ()
    middle = float(np.median(wall_ns[mine]))
    kind_of = np.array(of)
    usual = max(sorted(set(of)), key=lambda kind: np.count_nonzero(counted & (kind_of == kind)))
    launches = float(np.median(calls.launches[mine]))
    busy = float(np.median(busy_ns[mine]))
    slow = np.flatnonzero((wall_ns > SLOW * middle) & ~np.isin(kind_of, BETWEEN))
    found = []
    for n in slow[np.argsort(-wall_ns[slow], kind="stable")][:MOST_OUTLIERS].tolist():
        reason = _reason(of[n], usual, labels[n] if labels else None)
        if reason is None and unusual[n]:
            reason = "ran other kernels than most steps"
        if reason is None:
            more_busy = busy_ns[n] - busy
            more_idle = (wall_ns[n] - busy_ns[n]) - (middle - busy)
            part, ns = ("busy", more_busy) if more_busy >= more_idle else ("idle", more_idle)
            reason = f"{ns / 1e6:.3f} ms more {part}"
        if of[n] in ("eager", "piecewise") and of[n] != usual:
            reason += f": {int(calls.launches[n])} launches instead of {launches:.0f}"
        ratio = float(wall_ns[n]) / middle if middle else 0.0
        found.append(Outlier(n + 1, of[n], int(wall_ns[n]), ratio, reason))
    return tuple(found)


def _reason(kind: StepKind, usual: StepKind, label: StepLabel | None) -> str | None:
    if kind == "eager" and usual in ("graph", "piecewise"):
        return f"fell off the graph: eager where most are {usual}"
    if kind == "piecewise" and usual == "graph":
        return "fell off the full graph: piecewise"
    made = label.composition if label is not None else None
    said = "" if made is None else _prompts(made)
    if kind == "mixed":
        return f"a prefill rode along{said}"
    if kind == "prefill":
        return f"a prefill{said}"
    if kind == "verify" and usual != "verify":
        return "verified drafted tokens"
    return None


def _prompts(made: Composition) -> str:
    parts = [
        f"{number} {unit}{'s' * (number != 1)}"
        for number, unit in ((made.context_requests, "request"), (made.context_tokens, "token"))
        if number is not None
    ]
    return f": {', '.join(parts)}" if parts else ""
