"""From one engine's step to another's: by category, kernel by kernel, role by role."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Protocol

from llmprof.analysis.device.kernels import KernelReport
from llmprof.analysis.device.pairing import Pairing, pair_kernels
from llmprof.analysis.device.waterfall import StepParts, Waterfall, timing_waterfall, waterfall
from llmprof.analysis.timing.steps import engine_steps
from llmprof.analysis.view.roles import RolePair, RoleRow, role_pairs
from llmprof.records import Maybe, RoundRecord, RunData, Unavailable


class Side(Protocol):
    """What is asked of an engine's trace (``traced.EngineTrace``)."""

    label: str
    record: RoundRecord | None

    @property
    def parts(self) -> StepParts | Unavailable: ...

    @property
    def kernels(self) -> KernelReport | Unavailable: ...

    @property
    def role_rows(self) -> tuple[RoleRow, ...] | Unavailable: ...


@dataclass(frozen=True)
class Fall:
    """From engine ``a`` to engine ``b``: as traced, and scaled to the timing pass."""

    a: str
    b: str
    traced: Waterfall | Unavailable
    timing: Waterfall | Unavailable
    kernels: Pairing | Unavailable
    """Kernel by kernel."""
    roles: tuple[RolePair, ...] | Unavailable
    """What both do for the same purpose."""


def timing_step_ns(data: RunData, label: str, trace: Side) -> Maybe:
    """Mean step of the timing pass at the positions that were traced, median over rounds, ns.

    Means add up with the traced parts, and steps grow with the context: step 1 to N of both. A
    program that was recorded twice did the same both times, so there it is the mean of all steps.
    """
    depth = 0 if trace.record is None else trace.record.steps
    for engine in data.engines:
        if engine.label == label and depth:
            rounds = engine_steps(data, engine).rounds
            if data.info.source == "recorded":
                every = [ns for r in rounds for ns in r.step_ns]
                return mean(every) if every else Unavailable("the second run has no decode step")
            means = [mean(r.step_ns[:depth]) for r in rounds if len(r.step_ns) >= depth]
            return median(means) if means else Unavailable("no timing round is that long")
    return Unavailable(f"no traced steps of {label}")


def fall_between(a: Side, a_step_ns: Maybe, b: Side, b_step_ns: Maybe) -> Fall:
    """The way from one engine's step to another's, of one run or of two."""
    return Fall(
        a=a.label,
        b=b.label,
        traced=waterfall(a.parts, b.parts),
        timing=timing_waterfall(a.parts, b.parts, a_step_ns, b_step_ns),
        kernels=pair_kernels(a.kernels, b.kernels),
        roles=role_pairs(a.role_rows, b.role_rows),
    )
