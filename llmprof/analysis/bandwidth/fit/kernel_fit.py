"""DRAM throughput of each kernel and along it, from PM samples longer than a kernel.

Decode steps repeat, and samples fall on them at random phase, so hundreds of steps see every part
of every kernel many times, as a sampling oscilloscope does. Throughputs are the non-negative least
squares solution of ``design``; ``parts`` chooses how finely kernels are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.clock_scan import Scan, scan
from llmprof.analysis.bandwidth.fit.design import Activity, Cuts, Equations, equations
from llmprof.analysis.bandwidth.fit.nonnegative import solve
from llmprof.analysis.bandwidth.fit.parts import (
    LADDER_NS,
    NEAR_BEST,
    SMOOTH,
    coarsest,
    cuts,
    held_out,
    roughness,
)
from llmprof.analysis.bandwidth.fit.streams import shared
from llmprof.analysis.bandwidth.fit.units import Z95, Unit, separable
from llmprof.records import Unavailable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MIN_SAMPLES = 500
BLOCKS = 20
RUN = 16
"""Neighbouring samples that stay in one block: some steps, so that blocks are independent."""
SUBSET = 24_000
"""Samples that parts and groups are chosen by."""
SCAN_PART_NS = 6_000.0
REFERENCE_NS = 3_000.0
STRUCTURE = 1.5
"""Held-out error against that of 3 µs parts from which the residual has structure at borders: 17
for ExLlama v1 with one value a kernel, 1.0 where the parts are fine enough."""
SETTLE_NS = 10_000
VAGUE_NS, SHARP = 6_000, 1.3
"""A shift that was found must beat shifts this far off by this ratio of held-out errors."""
MOVED_NS = (-500, 500)
"""What the samples' clock may still be off by after the scan: part of the interval."""
BORDER_NS = 250
"""A kernel's times and its traffic are off from each other by this much: part of the interval. The
errors of 17 matrix products on an H100 were all smaller; the largest was what 0.23 µs read."""
DRAWS = 60
SUM_WITHIN = 0.01
"""Of the samples' mean: what all kernels and idle time together may differ from it."""
IDLE_PCT, IDLE_SHARE = 0.25, 0.005
"""% of the peak while nothing is known to run, over so much of the time: 0.00 to 0.01 in twelve
recordings of an H100. One kernel record in 500 lost makes 1, and kernels 7 % wrong."""
SPLIT_GAIN = 0.98
"""Held-out error from which groups of one name and shape stay apart."""


@dataclass(frozen=True, eq=False)
class Samples:
    """PM samples in order; of several rounds, one round after the other."""

    start_ns: Ints
    end_ns: Ints
    dram_pct: Floats
    round: Ints
    """0 …, the round of each."""
    others: Floats
    """(samples, M): further counters, in %; a column with a NaN is not fitted."""


@dataclass(frozen=True, eq=False)
class KernelFit:
    """``units`` has the groups of the activity, each in one unit."""

    units: tuple[Unit, ...]
    group: Ints
    """Group of the activity → group of the fit (those of one name may have been merged again)."""
    time_share: tuple[float, ...]
    """Group of the fit → share of the samples' time that it ran."""
    median_ns: tuple[float, ...]
    """Group of the fit → median duration."""
    samples: int
    r2: float
    error_pct: float
    """Standard deviation of the residual, % of peak."""
    offset_ns: int
    drift_ns: int
    part_ns: float
    """Length that kernels are cut to; infinite: one value a kernel."""
    smooth: float
    sampled_pct: float
    """Mean of the samples."""
    fitted_pct: float
    """What kernels and idle time add up to."""
    idle_pct: float
    """DRAM throughput while no kernel ran."""


def fit(
    activity: Activity,
    samples: Samples,
    parent: Ints | None = None,
    lengths_ns: Sequence[float] = LADDER_NS,
) -> KernelFit | Unavailable:
    """Fit one engine.

    Args:
        activity: kernels and copies of one device, ordered by start.
        parent: ``Grouping.parent``: groups that may be one.
        lengths_ns: part lengths to choose from, coarsest first.
    """
    count = len(samples.dram_pct)
    if count < MIN_SAMPLES:
        return Unavailable(
            f"{count} samples while kernels ran, {MIN_SAMPLES} are needed: record more steps"
        )
    with one_thread():
        return _fitted(activity, samples, parent, lengths_ns)


def _fitted(
    activity: Activity, samples: Samples, parent: Ints | None, lengths_ns: Sequence[float]
) -> KernelFit | Unavailable:
    placed = _placed(activity, samples)
    if isinstance(placed, Unavailable):
        return placed
    samples, scans = placed
    work = _Work(activity, samples)
    if any(np.any(s.shift_ns) for s in scans):
        why = work.settle()
        if why is not None:
            return why
    work.merge_alike(parent)
    return work.fitted(list(lengths_ns), scans)


def one_thread() -> AbstractContextManager[object]:
    """BLAS on one thread: the matrices are small (300 columns), and a second thread mostly waits.
    On two cores a fit took up to three times as long with two threads."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # an interpreter of someone else's, with this package on its path
        return nullcontext()
    return cast("AbstractContextManager[object]", threadpool_limits(1, "blas"))


def _placed(activity: Activity, samples: Samples) -> tuple[Samples, list[Scan]] | Unavailable:
    median, share = _sizes(activity)
    coarse = cuts(median, share, SCAN_PART_NS)
    start, end = samples.start_ns.copy(), samples.end_ns.copy()
    scans = []
    for number in range(int(samples.round[-1]) + 1):
        mine = samples.round == number
        found = scan(activity, coarse, start[mine], end[mine], samples.dram_pct[mine])
        if not found.worst.good:
            return Unavailable(
                "the samples do not follow the kernels: at the best shift of the sampler's clock "
                f"kernels explain {max(0.0, found.worst.r2):.0%} of what the samples vary"
            )
        scans.append(found)
        start[mine] += found.shift_ns
        end[mine] += found.shift_ns
    return replace(samples, start_ns=start, end_ns=end), scans


def _sizes(activity: Activity) -> tuple[Floats, Floats]:
    """Median duration of each group, ns, and its share in the time of all."""
    total = np.bincount(activity.group, activity.end_ns - activity.start_ns, activity.groups)
    return activity.median_ns, total / max(float(total.sum()), 1.0)


class _Work:
    def __init__(self, activity: Activity, samples: Samples) -> None:
        self.activity, self.samples = activity, samples
        count = len(samples.dram_pct)
        self.block = (np.arange(count) // RUN % BLOCKS).astype(np.int64)
        self.every = max(1, count // SUBSET)
        self.group = np.arange(activity.groups)
        self.median, self.share = _sizes(activity)

    def _equations(
        self, cut: Cuts, every: int, others: Floats | None = None, move_ns: int = 0
    ) -> Equations:
        s = self.samples
        start, end = s.start_ns + move_ns, s.end_ns + move_ns
        return equations(self.activity, cut, start, end, s.dram_pct, self.block, others, every)

    def settle(self) -> Unavailable | None:
        """The rest of a shift that was found: coarse parts leave it uncertain by some µs.

        Returns:
            Why the shift is not known well enough.
        """
        cut = cuts(self.median, self.share, REFERENCE_NS)
        tried = sorted(range(-SETTLE_NS, SETTLE_NS + 1, SETTLE_NS // 10), key=abs)
        error = {s: held_out(self._equations(cut, self.every, None, s)).mean for s in tried}
        move = min(tried, key=lambda s: error[s])
        beside = [error[s] for s in (move - VAGUE_NS, move + VAGUE_NS) if s in error]
        if min(beside) < SHARP * error[move]:
            return Unavailable(
                "the sampler's clock was wrong, and the samples fit kernels equally well "
                f"{VAGUE_NS / 1e3:.0f} µs off: it cannot be brought right"
            )
        samples = self.samples
        self.samples = replace(
            samples, start_ns=samples.start_ns + move, end_ns=samples.end_ns + move
        )
        return None

    def merge_alike(self, parent: Ints | None) -> None:
        """Take groups of one name and shape as one again, unless held-out samples say otherwise."""
        if parent is None or (parent == self.group).all():
            return
        # Cut alike, so that part by part they can be taken together.
        share = np.bincount(parent, self.share, len(parent)).astype(np.float64)[parent]
        cut = cuts(self.median[parent], share, SCAN_PART_NS)
        found = self._equations(cut, self.every)
        group = self.group.copy()
        best = held_out(found).mean
        for head in np.unique(parent[parent != self.group]).tolist():
            trial = np.where(parent == head, head, group)
            error = held_out(_joined(found, cut, trial)).mean
            # Once merged groups cost nothing, one is simpler than several.
            if error * SPLIT_GAIN <= best:
                group = trial
        kept, numbers = np.unique(group, return_inverse=True)
        self.group = numbers.astype(np.int64)
        self.activity = replace(
            self.activity, group=self.group[self.activity.group], groups=len(kept)
        )
        self.median, self.share = _sizes(self.activity)

    def fitted(self, lengths: list[float], scans: list[Scan]) -> KernelFit | Unavailable:
        cut = [cuts(self.median, self.share, length) for length in lengths]
        found = [self._equations(c, self.every) for c in cut]
        errors = [held_out(f) for f in found]
        chosen = coarsest(errors)
        fine = self._equations(cuts(self.median, self.share, REFERENCE_NS), self.every)
        if errors[chosen].mean > STRUCTURE * held_out(fine).mean:
            return Unavailable(
                "what is left of the samples has structure at the kernels' borders: parts of "
                f"{lengths[chosen] / 1e3:.0f} µs do not describe these kernels"
            )
        results: list[KernelFit | Unavailable] = []
        # Too much in a kernel: finer parts may bring it right. Too much in a part: coarser ones.
        for at in [*range(chosen, len(lengths)), *range(chosen - 1, -1, -1)]:
            if errors[at].mean > STRUCTURE * errors[chosen].mean:
                break
            near = [(cut[i], found[i]) for i in (at - 1, at + 1) if 0 <= i < len(lengths)]
            near += [(cut[at], self._equations(cut[at], self.every, None, s)) for s in MOVED_NS]
            results.append(self._solved(cut[at], lengths[at], near, scans))
            if isinstance(results[-1], KernelFit) and not _overfull(results[-1]):
                return results[-1]
        usable = [r for r in results if isinstance(r, KernelFit)]
        return without_overfull(usable[0]) if usable else results[0]

    def _solved(
        self, cut: Cuts, length: float, near: list[tuple[Cuts, Equations]], scans: list[Scan]
    ) -> KernelFit | Unavailable:
        samples = self.samples
        found = self._equations(cut, 1, samples.others)
        form = roughness(cut, self.median)
        xx, xy, yy, y, count = found.total()
        wrong = [held_out(found, s * form).mean for s in SMOOTH]
        first = int(np.argmin(wrong))
        for smooth, error in zip(SMOOTH[first:], wrong[first:], strict=True):
            if error > NEAR_BEST * wrong[first]:
                break
            value, free = solve(xx + smooth * form * count, xy)
            if value.max() <= 100:
                break
        rng = np.random.default_rng(0)
        draws = np.empty((DRAWS, len(value)))
        for draw in range(DRAWS):
            weight = np.bincount(rng.integers(0, BLOCKS, BLOCKS), minlength=BLOCKS)
            axx, axy, _, _, drawn = found.total(weight.astype(np.float64))
            draws[draw], _ = solve(axx + smooth * form * drawn, axy, free)
        means, mean_draws = _means(cut, value), _means(cut, draws)
        beside = []
        for other, equation in near:
            oxx, oxy, *_ = equation.total()
            beside.append(_means(other, solve(oxx, oxy)[0]))
        further = np.stack(
            [_means(cut, solve(xx, found.others[:, m])[0]) for m in range(found.others.shape[1])],
            axis=1,
        ) if found.others.shape[1] else np.empty((len(means), 0))  # fmt: skip
        profiles = [value[a:b] for a, b in zip(cut.first[:-1], cut.first[1:], strict=True)]
        under = _sums(cut, found.x)
        highest = np.array([float(p.max()) for p in profiles])
        misfit = highest * np.minimum(1.0, BORDER_NS / self.median)
        units = separable(
            means, mean_draws, np.array(beside), misfit, under, profiles, further,
            shared(self.activity, cut, value),
        )  # fmt: skip
        above = next((u for u in units if u.low_pct is not None and u.low_pct > 100), None)
        if above is not None:
            return Unavailable(
                f"the fit gives a kernel {above.dram_pct:.0f} % of the peak: "
                "these samples do not tell the kernels apart"
            )
        left = max(yy - 2 * float(xy @ value) + float(value @ xx @ value), 0.0)
        fitted = float(found.x @ value) / count
        if abs(fitted - y / count) > SUM_WITHIN * y / count:
            return Unavailable(
                f"kernels add up to {fitted:.1f} % of the peak, the samples to {y / count:.1f} %"
            )
        idle_share, idle = float(found.x[-1]) / count, float(value[-1])
        certain = idle - Z95 * float(draws[:, -1].std())
        if certain > IDLE_PCT and idle_share > IDLE_SHARE:
            return Unavailable(
                f"DRAM was {idle:.1f} % busy while no kernel of this engine ran: other work was on"
                " the GPU, or kernels are missing in the trace; stop the one, or record less"
            )
        return KernelFit(
            units=tuple(units),
            group=self.group,
            time_share=tuple((_sums(cut, found.x) / count).tolist()),
            median_ns=tuple(self.median.tolist()),
            samples=int(count),
            r2=1 - left / max(yy - y * y / count, 1e-30),
            error_pct=float(np.sqrt(left / count)),
            offset_ns=int(np.median([s.offset_ns for s in scans])),
            drift_ns=max((s.drift_ns for s in scans), key=abs),
            part_ns=length,
            smooth=smooth,
            sampled_pct=y / count,
            fitted_pct=fitted,
            idle_pct=float(value[-1]),
        )


def _overfull(found: KernelFit) -> bool:
    return any(max(u.profile_pct, default=0.0) > 100 for u in found.units)


def without_overfull(found: KernelFit) -> KernelFit:
    """With longer parts in kernels of which a part came out above the peak.

    Neighbouring parts trade some % with each other: in a kernel that reads near the peak one of
    them ends above it. What they have together is right.
    """
    return replace(found, units=tuple(_below_peak(u, found.median_ns) for u in found.units))


def _below_peak(unit: Unit, median_ns: Sequence[float]) -> Unit:
    if max(unit.profile_pct, default=0.0) <= 100:
        return unit
    fine = np.array(unit.profile_pct)
    many = len(fine)
    run = np.concatenate(([0.0], np.cumsum(fine)))
    for parts in range(many - 1, 1, -1):
        until = np.interp(np.linspace(0, many, parts + 1), np.arange(many + 1), run)
        coarse = np.diff(until) * parts / many
        if coarse.max() <= 100:
            length = median_ns[unit.groups[0]] / parts
            note = f"its parts are told apart down to {length / 1e3:.1f} µs"
            return replace(unit, profile_pct=tuple(coarse.tolist()), note=note)
    note = "its parts are not told apart: one of them came out above the peak"
    return replace(unit, profile_pct=(), note=note)


def _means(cut: Cuts, value: Floats) -> Floats:
    """Mean over each group's duration; ``value`` is (..., columns + 1)."""
    return np.add.reduceat(value[..., :-1] * (cut.high - cut.low), cut.first[:-1], axis=-1)


def _sums(cut: Cuts, value: Floats) -> Floats:
    return np.add.reduceat(value[:-1], cut.first[:-1])


def _joined(found: Equations, cut: Cuts, group: Ints) -> Equations:
    """With the parts of groups that have the same number taken together."""
    column = np.arange(cut.columns + 1)
    for number, head in enumerate(group.tolist()):
        first, last = int(cut.first[number]), int(cut.first[number + 1])
        start = int(cut.first[head])
        column[first:last] = np.arange(start, start + last - first)
    kept, numbers = np.unique(column, return_inverse=True)
    return found.merged(numbers, len(kept))
