"""Kernels themselves: far below what memory allows, or many small ones that could be one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmprof.analysis.bandwidth.kernels import KernelBandwidth
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.roles import PRODUCTS, WEIGHTS
from llmprof.analysis.findings.subject import Finding, Subject
from llmprof.analysis.view.roles import RoleRow, names_text
from llmprof.records import Maybe, Unavailable
from llmprof.runfile.trace.rows import Ints

LOW = 0.7
"""Of what a copy reaches: a product with weights below it leaves something on the table."""
TARGET = 0.9
"""What such a product can reach: fp16 GEMVs of cuBLAS on an H100 are at 88 to 97 %."""
OVERLAP = 0.1
"""So much of the products' time that is another kernel's as well makes their bandwidth unknown."""
LEAST_TIME = 0.05
"""Of a step."""
SMALL = ("activation/elementwise", "norm", "RoPE", "KV cache", "embedding", "quantise", "copy")
SMALL_NS = 6000
"""A kernel takes 2 to 3 µs whatever it does; what is shorter than two of them is small."""
MANY = 20
"""Runs of small kernels a step: less is no layer's work."""


def kernel_findings(subject: Subject) -> Iterator[Finding]:
    """All that kernels say."""
    yield from below_ceiling(subject)
    yield from small_kernels(subject)


def below_ceiling(subject: Subject) -> Iterator[Finding]:
    """Products with weights that read far below what a copy reaches. Measured kernel by kernel
    where it was; else by the bytes of a role's matrices; else by those of the whole model."""
    if isinstance(subject.kernels, Unavailable) or not subject.kernels.step_count:
        return
    if not isinstance(subject.dram, Unavailable):
        found = list(_measured(subject, subject.dram))
    else:
        found = list(_by_role(subject)) or list(_whole(subject))
    yield from found[:2]


def _ceiling(subject: Subject) -> tuple[float, str] | None:
    """(GB/s, what it is)."""
    copy, peak = subject.bandwidth.copy_gb_s, subject.bandwidth.peak_gb_s
    if not isinstance(copy, Unavailable):
        return copy, "what a copy reaches"
    return None if isinstance(peak, Unavailable) else (peak, "the GPU's peak")


def _measured(subject: Subject, dram: KernelBandwidth) -> Iterator[Finding]:
    # Tracers lengthen the sampled steps, and not the kernels: their shares are of those steps.
    step = dram.step_ns / 1e6 * subject.work_scale
    made = []
    for kernel in dram.kernels:
        of, low, high = kernel.of_ceiling, kernel.low_gb_s, kernel.high_gb_s
        gb_s = kernel.dram_gb_s
        if kernel.category not in PRODUCTS or kernel.share < LEAST_TIME or of is None:
            continue
        if any(isinstance(v, Unavailable) for v in (of, low, high, gb_s)):
            continue
        assert not isinstance(of, Unavailable)
        assert not isinstance(gb_s, Unavailable)
        assert not isinstance(low, Unavailable)
        assert not isinstance(high, Unavailable)
        if of * high / max(gb_s, 1e-9) >= LOW:
            continue
        spent = kernel.share * step
        won = spent * (1 - of / TARGET)
        if not subject.worth(won):
            continue
        made.append(
            Finding(
                cause="below the ceiling",
                engine=subject.label,
                says=f"{kernel.short_name} reads at {gb_s:.0f} GB/s, {of:.0%} of what a copy"
                f" reaches, and takes {spent:.2f} ms a step",
                ms_per_token=won,
                share=subject.share(won),
                how=f"at {TARGET:.0%} of what a copy reaches",
                evidence=(
                    f"measured {low:.0f} to {high:.0f} GB/s (95 %), {kernel.launches_per_step:.0f}"
                    f" launches a step of {kernel.median_ns / 1e3:.1f} µs",
                ),
                confidence="high",
                why="DRAM counters fitted to kernels",
                next=f"llmprof open {subject.name}",
                kernel=kernel.short_name,
            )
        )
    yield from sorted(made, key=lambda f: -_won(f.ms_per_token))


def _by_role(subject: Subject) -> Iterator[Finding]:
    ceiling = _ceiling(subject)
    if isinstance(subject.roles, Unavailable) or ceiling is None or _overlap(subject):
        return
    made = []
    for row in subject.roles:
        if row.role not in WEIGHTS or isinstance(row.modelled_gb_s, Unavailable):
            continue
        made += _product(subject, row, row.modelled_gb_s, ceiling, f"the {row.role} products")
    yield from sorted(made, key=lambda f: -_won(f.ms_per_token))


def _whole(subject: Subject) -> Iterator[Finding]:
    """All products together: the engine says only how many bytes a step reads."""
    ceiling = _ceiling(subject)
    info = subject.info
    if ceiling is None or info is None or info.weight_bytes_per_step is None:
        return
    if isinstance(subject.roles, Unavailable) or _overlap(subject):
        return
    rows = [row for row in subject.roles if row.role in WEIGHTS]
    # Without all of a layer's products their time is not that of the bytes.
    if {row.role for row in rows} != set(WEIGHTS):
        return
    ms = sum(row.ms_per_step for row in rows)
    first = max(rows, key=lambda row: row.ms_per_step)
    gb_s = info.weight_bytes_per_step / ms / 1e6
    whole = RoleRow(
        "products with weights",
        ms,
        sum(row.launches_per_step for row in rows),
        first.names,
        info.weight_bytes_per_step / 1e6,
        gb_s,
        Unavailable("not measured"),
        (),
    )
    yield from _product(subject, whole, gb_s, ceiling, "the products with weights")


def _overlap(subject: Subject) -> bool:
    """Do products run beside others? Then bytes over the sum of their times are no bandwidth."""
    traced = subject.round
    if isinstance(traced, Unavailable):
        return False
    laid, work = traced.laid, traced.work.on(traced.laid.device)
    product = np.array([traced.categories.get(n) in PRODUCTS for n in range(len(work.names))], bool)
    counted = np.concatenate([[False], traced.counted])[np.maximum(work.step, 0)]
    mine = product[work.label] & counted
    whole = int((work.end_ns - work.start_ns)[mine].sum())
    # Each moment belongs to what started first.
    own = int((laid.end_ns - laid.start_ns)[product[laid.label]].sum())
    return whole - own > OVERLAP * whole


def _product(
    subject: Subject, row: RoleRow, gb_s: float, ceiling: tuple[float, str], what: str
) -> list[Finding]:
    of = gb_s / ceiling[0]
    won = row.ms_per_step * (1 - of / TARGET) * subject.work_scale
    if of >= LOW or row.ms_per_step < LEAST_TIME * (subject.step_ms or 0.0):
        return []
    if not subject.worth(won):
        return []
    return [
        Finding(
            cause="below the ceiling",
            engine=subject.label,
            says=f"{what} read at {gb_s:.0f} GB/s, {of:.0%} of {ceiling[1]}"
            f" ({ceiling[0]:.0f}), in {row.ms_per_step:.2f} ms a step",
            ms_per_token=won,
            share=subject.share(won),
            how=f"at {TARGET:.0%} of that",
            evidence=(
                f"{row.weight_mb:.0f} MB packed a step over {row.launches_per_step:.0f} launches",
                f"kernels: {names_text(row.names)}",
            ),
            confidence="medium",
            why="bytes modelled: packed weights; times measured",
            next=subject.again("--bandwidth", "kernels"),
            kernel=row.names[0] if row.names else None,
        )
    ]


def small_kernels(subject: Subject) -> Iterator[Finding]:
    """Runs of small kernels one behind the other: one kernel for each run would take as long as the
    longest in it."""
    traced, kernels = subject.round, subject.kernels
    if isinstance(traced, Unavailable) or isinstance(kernels, Unavailable):
        return
    if traced.unknown is not None or not kernels.step_count:
        return
    timeline = traced.laid
    small_label = np.array(
        [traced.categories.get(n) in SMALL and not name.startswith("[")
         for n, name in enumerate(timeline.names)], bool
    )  # fmt: skip
    if not len(timeline.label) or not small_label.any():
        return
    length = timeline.end_ns - timeline.start_ns
    small = small_label[timeline.label] & (length < SMALL_NS)
    won_ns, runs, inside = _runs(small, timeline.step, length)
    steps = kernels.step_count
    won = won_ns / steps / 1e6 * subject.work_scale
    if runs < MANY * steps or not subject.worth(won):
        return
    total = float(length[small].sum()) / steps / 1e6
    names = np.bincount(timeline.label[small], weights=length[small], minlength=len(small_label))
    most = short_name(timeline.names[int(np.argmax(names))])
    yield Finding(
        cause="small kernels",
        engine=subject.label,
        says=f"{inside / steps:.0f} small kernels a step follow one another in {runs / steps:.0f}"
        f" places; fused, a step would be {won:.2f} ms shorter",
        ms_per_token=won,
        share=subject.share(won),
        how="each run as one kernel that takes as long as its longest",
        evidence=(
            f"{int(small.sum()) / steps:.0f} kernels below {SMALL_NS / 1e3:.0f} µs take"
            f" {total:.2f} ms a step (norm, RoPE, activation, elementwise, copies)",
            f"most time: {most}",
        ),
        confidence="medium",
        why="durations are measured, that of a fused kernel is assumed",
        next=f"llmprof open {subject.name}",
        kernel=most,
    )


def _runs(small: np.ndarray, step: Ints, length: Ints) -> tuple[int, int, int]:
    """(ns beyond the longest of each run, runs, kernels in them) of runs of two and more."""
    if not small.any():
        return 0, 0, 0
    rows = np.flatnonzero(small)
    begins = np.concatenate([[True], (np.diff(rows) > 1) | (np.diff(step[rows]) != 0)])
    first = np.flatnonzero(begins)
    total = np.add.reduceat(length[rows], first)
    longest = np.maximum.reduceat(length[rows], first)
    count = np.diff(np.append(first, len(rows)))
    several = count > 1
    won = int((total - longest)[several].sum())
    return won, int(several.sum()), int(count[several].sum())


def _won(value: Maybe) -> float:
    return -1.0 if isinstance(value, Unavailable) else value
