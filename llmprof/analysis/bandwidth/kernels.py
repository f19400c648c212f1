"""Measured DRAM bandwidth of every kernel of an engine, from its sampled rounds with kernels.

Percentages become bytes by the specification's peak, which the counter is a share of; "of the
ceiling" is against what a copy reached on this GPU before the run. GB is 1e9 bytes, MB 1e6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.design import Activity
from llmprof.analysis.bandwidth.fit.grouping import Grouping, grouped
from llmprof.analysis.bandwidth.fit.kernel_fit import KernelFit, fit
from llmprof.analysis.bandwidth.fit.units import SAME_TIME, Unit
from llmprof.analysis.bandwidth.roofline import copy_gb_s
from llmprof.analysis.bandwidth.rounds import (
    FURTHER,
    DeviceWork,
    Dim,
    device_work,
    samples_of,
    traced,
    until,
)
from llmprof.analysis.bandwidth.sampled import no_samples
from llmprof.analysis.device.naming.categories import COPY, Rule, categorise
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.plaintext import one_line
from llmprof.records import LOST_RECORDS, EngineRecord, Maybe, RoundRecord, RunData, Unavailable
from llmprof.runfile.reader import RunFileReader

Ints = NDArray[np.int64]

REACH_NS = 25_000_000
"""Kernels this far around the samples: a wrong clock is looked for up to here."""


@dataclass(frozen=True, eq=False)
class KernelDram:
    """One kernel: name, launch shape and place; or several that samples cannot tell apart."""

    short_name: str
    """Printable."""
    name: str
    """As recorded, on one line."""
    others: tuple[str, ...]
    """Short names of the further kernels of the same value; empty for one kernel."""
    after: str
    """Short name of what runs before it, where that tells it from others of its name; or empty."""
    category: str
    grid: Dim | None
    block: Dim | None
    launches_per_step: float
    median_ns: float
    share: float
    """Of the decode time."""
    dram_gb_s: Maybe
    low_gb_s: Maybe
    """95 % interval, as ``high_gb_s``."""
    high_gb_s: Maybe
    of_ceiling: Maybe
    """``dram_gb_s`` over what a copy reaches, 0-1."""
    mb_per_launch: Maybe
    """At the median duration; ``Unavailable`` for several kernels."""
    low_mb: Maybe
    high_mb: Maybe
    profile_gb_s: tuple[float, ...]
    """Along the kernel, equal parts from its start to its end."""
    further_pct: dict[str, float]
    """Mean of further counters while it ran, %."""
    note: str


@dataclass(frozen=True)
class Headroom:
    """What products with weights would win at a better bandwidth."""

    of_ceiling: float
    """Bytes over time of all matrix products, against the ceiling."""
    target: float
    step_ns: float
    saved_ns: float
    """A step, if each product ran at ``target`` of the ceiling at the least."""

    @property
    def words(self) -> str:
        if self.saved_ns <= 0:
            return f"GEMVs run at {self.of_ceiling:.0%} of what a copy reaches"
        return (
            f"GEMVs run at {self.of_ceiling:.0%} of what a copy reaches; at {self.target:.0%}"
            f" a step would be {self.saved_ns / 1e6:.2f} ms ({self.saved_ns / self.step_ns:.0%})"
            " shorter"
        )


@dataclass(frozen=True)
class KernelBandwidth:
    """The fit of one engine."""

    rounds: int
    steps: int
    samples: int
    interval_ns: int
    step_ns: float
    """Mean step of the sampled rounds."""
    spec_gb_s: float
    """What the counters are a share of: memory clock × bus width × 2."""
    ceiling_gb_s: Maybe
    """What a copy reached."""
    mean_gb_s: float
    """Of the samples, over the decode steps."""
    fitted_gb_s: float
    """What the kernels and the idle time add up to."""
    idle_gb_s: float
    offset_ns: int
    drift_ns: int
    part_ns: float | None
    """Length of the parts; ``None``: kernels are not cut."""
    r2: float
    error_pct: float
    """Standard deviation of the residual, % of ``spec_gb_s``."""
    counters: dict[str, str]
    """Further counter → why it was not counted; empty where it was."""
    kernels: tuple[KernelDram, ...]
    """By share."""
    headroom: Headroom | Unavailable


def kernel_bandwidth(
    reader: RunFileReader, data: RunData, engine: EngineRecord, rules: Sequence[Rule]
) -> KernelBandwidth | Unavailable:
    """Read the sampled rounds of one engine and fit them.

    Raises:
        RunFileError: the file is damaged.
    """
    missing = no_samples(reader, data, engine.label, "no sampled round with kernels")
    lost = data.why_missing(engine.label, LOST_RECORDS)
    if lost and data.rounds_of(engine.engine_id, "sampled"):
        return Unavailable(f"kernels are missing in the trace, their traffic is not: {lost}")
    found = [
        (record, *pm)
        for record in data.rounds_of(engine.engine_id, "sampled")
        if record.steps and (pm := reader.pm_samples(record.round_id)) is not None
    ]
    work, until_ns = traced(reader, [r for r, *_ in found])
    found = [(until(record, until_ns), facts, pm) for record, facts, pm in found]
    found = [f for f in found if f[0].steps]
    if not found or not any(len(rows.kernels) for rows in work):
        return missing
    facts = found[0][1]
    peak = next((d.peak_bandwidth_gb_s for d in data.gpu_devices if d.index == facts.device), None)
    if peak is None:
        return Unavailable("the GPU's peak bandwidth is not known: counters are a share of it")
    device = device_work(work, facts.device)
    samples, counted = samples_of([(r, pm) for r, _, pm in found])
    if not len(samples.dram_pct):
        return Unavailable("no sample lies inside a decode step")
    near = (device.end > samples.start_ns[0] - REACH_NS) & (
        device.start < samples.end_ns[-1] + REACH_NS
    )
    start, end, key = device.start[near], device.end[near], device.key[near]
    groups = grouped(key, start, end)
    activity = Activity(start, end, groups.group, len(groups.base))
    result = fit(activity, samples, groups.parent)
    if isinstance(result, Unavailable):
        return result
    steps = sum(r.steps for r, *_ in found)
    step_ns = sum(r.stamps_ns[-1] - r.stamps_ns[0] for r, *_ in found) / steps
    categories = {
        number: kernel_category(name, engine.name, rules)
        for number, name in enumerate(device.names)
    }
    ceiling = copy_gb_s(data, engine)
    naming = _Naming(
        result, groups, device, categories,
        _launches(result.group[groups.group], start, [r for r, *_ in found]),
    )  # fmt: skip
    made = [naming.kernel(unit, peak, ceiling, counted) for unit in result.units]
    kernels = tuple(sorted(made, key=lambda k: -k.share))
    return KernelBandwidth(
        rounds=len(found),
        steps=steps,
        samples=result.samples,
        interval_ns=facts.interval_ns,
        step_ns=step_ns,
        spec_gb_s=peak,
        ceiling_gb_s=ceiling,
        mean_gb_s=result.sampled_pct / 100 * peak,
        fitted_gb_s=result.fitted_pct / 100 * peak,
        idle_gb_s=result.idle_pct / 100 * peak,
        offset_ns=result.offset_ns,
        drift_ns=result.drift_ns,
        part_ns=None if np.isinf(result.part_ns) else result.part_ns,
        r2=result.r2,
        error_pct=result.error_pct,
        counters={
            name: ""
            if name in counted
            else data.why_missing(engine.label, f"pm.{name}") or "not counted"
            for name in FURTHER
        },
        kernels=kernels,
        headroom=_headroom(kernels, ceiling, step_ns),
    )


def kernel_category(name: str, engine: str, rules: Sequence[Rule]) -> str:
    """Of a kernel, or of a copy as this module names it."""
    return COPY if name.startswith("[mem") else categorise({0: name}, engine, rules)[0]


def with_categories(found: KernelBandwidth, categories: Sequence[str]) -> KernelBandwidth:
    """With other categories of its kernels, and what depends on them."""
    pairs = zip(found.kernels, categories, strict=True)
    kernels = tuple(replace(k, category=c) for k, c in pairs)
    headroom = _headroom(kernels, found.ceiling_gb_s, found.step_ns)
    return replace(found, kernels=kernels, headroom=headroom)


def _launches(group: Ints, start: Ints, rounds: Sequence[RoundRecord]) -> NDArray[np.float64]:
    """Of each group, a decode step."""
    size = int(group.max(initial=0)) + 1
    count = np.zeros(size)
    for record in rounds:
        inside = (start >= record.stamps_ns[0]) & (start < record.stamps_ns[-1])
        count += np.bincount(group[inside], minlength=size)
    return count / max(1, sum(r.steps for r in rounds))


ALONE = "of its launches that ran alone; those beside others are told apart from them"


class _Naming:
    """From the fit's units to kernels with names, bytes and places."""

    def __init__(
        self,
        result: KernelFit,
        groups: Grouping,
        device: DeviceWork,
        categories: dict[int, str],
        launches: NDArray[np.float64],
    ) -> None:
        self.result, self.device, self.categories = result, device, categories
        self.launches = launches
        self.base: dict[int, int] = {}
        self._before: dict[int, list[int | None]] = {}
        for number, joined in enumerate(result.group.tolist()):
            self.base.setdefault(joined, int(groups.base[number]))
            self._before.setdefault(joined, []).append(groups.before[number])
        beside = dict(zip(result.group.tolist(), groups.beside, strict=True))
        bases = [base for group, base in self.base.items() if not beside[group]]
        self._apart = {base for base in bases if bases.count(base) > 1}
        shared = {base for group, base in self.base.items() if beside[group]}
        self._alone = {g for g, b in self.base.items() if b in shared and not beside[g]}
        self.names = [short_name(text) for text in device.names]

    def after(self, group: int) -> str:
        if self.base[group] not in self._apart:
            return ""
        before = [self.names[b] for b in self._before[group] if b is not None]
        return " or ".join(dict.fromkeys(before))

    def kernel(
        self, unit: Unit, peak: float, ceiling: Maybe, counted: tuple[str, ...]
    ) -> KernelDram:
        first = max(unit.groups, key=lambda g: self.result.time_share[g])
        base = self.base[first]
        shape = self.device.shapes[base]
        rest = [self.names[self.base[g]] for g in unit.groups if g != first]
        median = self.result.median_ns[first]
        found = unit.dram_pct, unit.low_pct, unit.high_pct
        values = [_of_peak(v, peak, unit.note) for v in found]
        note = unit.note
        if first in self._alone and not rest:
            note = "; ".join(filter(None, (note, ALONE)))
        if note == SAME_TIME and unit.low_pct is not None and unit.high_pct is not None:
            note += self._together(unit.groups, unit.low_pct * peak, unit.high_pct * peak)
        sizes: list[Maybe] = [Unavailable(unit.note)] * 3
        if not rest:
            sizes = [v if isinstance(v, Unavailable) else v * median / 1e6 for v in values]
        share: Maybe = ceiling
        if not isinstance(ceiling, Unavailable):
            share = values[0] if isinstance(values[0], Unavailable) else values[0] / ceiling
        further = zip(counted, unit.further_pct, strict=True)
        return KernelDram(
            short_name=self.names[base],
            name=one_line(self.device.names[base], 1000),
            others=tuple(dict.fromkeys(rest)),
            after=self.after(first),
            category=self.categories[base],
            grid=None if shape is None else shape[0],
            block=None if shape is None else shape[1],
            launches_per_step=float(self.launches[list(unit.groups)].sum()),
            median_ns=median,
            share=sum(self.result.time_share[g] for g in unit.groups),
            dram_gb_s=values[0],
            low_gb_s=values[1],
            high_gb_s=values[2],
            of_ceiling=share,
            mb_per_launch=sizes[0],
            low_mb=sizes[1],
            high_mb=sizes[2],
            profile_gb_s=tuple(p / 100 * peak for p in unit.profile_pct),
            further_pct=dict(further),
            note=note,
        )

    def _together(self, groups: Sequence[int], low: float, high: float) -> str:
        """Their bytes, where one launch of each goes with one of the others."""
        launches = self.launches[list(groups)]
        if np.ptp(launches) > 0.02 * launches.max():
            return ""
        # % of GB/s over ns.
        time = sum(self.result.median_ns[g] for g in groups) / 100 / 1e6
        return f"; {low * time:.2f} to {high * time:.2f} MB a launch of each"


def _of_peak(percent: float | None, peak: float, note: str) -> Maybe:
    return Unavailable(note) if percent is None else percent / 100 * peak


PRODUCTS = ("quantised GEMV/GEMM", "GEMM/GEMV")
TARGET = 0.95
"""Of what a copy reaches: the fp16 lm_head of a 7B model gets there on an H100 but for its ends."""


LEAST_MB = 0.5
"""Of a launch that reads weights: the reduction behind a product split in K reads next to none."""


def saved_ns(kernel: KernelDram, step_ns: float) -> float | None:
    """ns a step that a product with weights would save at ``TARGET`` of the ceiling; ``None``: it
    is no such product, or its bandwidth is not known."""
    of, size = kernel.of_ceiling, kernel.mb_per_launch
    if isinstance(of, Unavailable) or isinstance(size, Unavailable):
        return None
    if kernel.category not in PRODUCTS or size < LEAST_MB:
        return None
    return kernel.share * step_ns * max(0.0, 1 - of / TARGET)


def _headroom(
    kernels: Sequence[KernelDram], ceiling: Maybe, step_ns: float
) -> Headroom | Unavailable:
    if isinstance(ceiling, Unavailable):
        return ceiling
    mine = [(k, saved) for k in kernels if (saved := saved_ns(k, step_ns)) is not None]
    if not mine:
        return Unavailable("no product with weights is known among the kernels")
    known = [(k.share, v) for k, _ in mine if not isinstance(v := k.of_ceiling, Unavailable)]
    mean = sum(share * v for share, v in known) / sum(share for share, _ in known)
    return Headroom(mean, TARGET, step_ns, sum(saved for _, saved in mine))
