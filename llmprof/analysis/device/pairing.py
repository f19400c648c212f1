"""Kernels of two traces side by side: by category, then by name, then by family of names.

Engines and vendors name the same work differently: a product is ``nvjet_…`` here, ``Cijk_…`` there.
Within a category, kernels of one short name are a pair; what is left is paired by what its names
say it does. Nothing is paired across categories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llmprof.analysis.device.kernel_sums import KernelSummary
from llmprof.analysis.device.kernels import KernelReport
from llmprof.records import Unavailable

How = Literal["name", "family", "only A", "only B"]

_PRODUCT = (("product", r""),)
_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "GEMM/GEMV": (("splitK reduce", r"splitk\s*reduce|splitkreduce"), *_PRODUCT),
    "quantised GEMV/GEMM": _PRODUCT,
    "attention": (
        ("merge of parts", r"reduce|combine|merge|stage_?2|segments"),
        ("decode", r"paged|decode|split_?kv|stage_?1|mmha|xqa|unified|ll4mi|(^|[_:])pa_"),
        ("prefill", r"flash|fmha|attn_fwd|prefill|extend|_fwd_kernel|varlen|sdpa"),
        ("softmax", r"soft_?max"),
    ),
    "norm": (
        ("RMS norm", r"rms|rsqrt|pow"),
        ("layer norm", r"layer|rowwisemoments|gammabeta"),
        ("batch norm", r"batch|bn_"),
        ("mean", r"mean"),
    ),
    "communication": (
        ("all-reduce", r"all_?reduce|cross_device_reduce|one_?shot|two_?shot|lamport"),
        ("all-gather", r"all_?gather"),
        ("reduce-scatter", r"reduce_?scatter"),
        ("all-to-all", r"all_?to_?all|sendrecv|dispatch|combine"),
        ("broadcast", r"broadcast"),
    ),
    "MoE": (
        ("product", r"gemm|bmm|matmul|fused_moe_kernel|mul_mat"),
        ("routing", r"rout|top_?k|gating|bitmatrix|sort|align"),
        ("gather and scatter", r"permute|scatter|gather|finali|sum|expand|reduce"),
        ("activation", r"act|silu|swiglu"),
    ),
    "copy": (
        ("transfer", r"^\[mem"),
        ("concatenation", r"cat|concat"),
        ("fill", r"fill|zero|memset"),
        ("copy", r"copy|clone|cast|to_"),
        ("transposition", r"transpose|permute|nchw|nhwc"),
    ),
    "KV cache": (("append", r""),),
    "RoPE": (("RoPE", r""),),
    "embedding": (("lookup", r""),),
    "sampling": (("argmax", r"argm"), ("sort", r"sort|top_?k"), ("draw", r"sampl|multinomial")),
    "quantise": (("quantise", r""),),
}
_COMPILED = {
    category: tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in rules)
    for category, rules in _FAMILIES.items()
}


@dataclass(frozen=True)
class PairedKernels:
    """What both traces spend on one piece of work. Names are printable."""

    category: str
    how: How
    label: str
    """The short name that both have, or the family."""
    a_names: tuple[str, ...]
    """Short names, the one with the most time first; empty: A has none."""
    b_names: tuple[str, ...]
    a_ns: float
    """Sum of durations, per step or in all (``Pairing.per_step``)."""
    b_ns: float
    a_count: float
    b_count: float

    @property
    def delta_ns(self) -> float:
        return self.b_ns - self.a_ns


@dataclass(frozen=True)
class Pairing:
    """All kernels of A and B; the rows of a side add up to its total."""

    per_step: bool
    """Times and counts are a decode step's; else of everything that was traced."""
    why_not: str
    """Why they are not a step's; empty where they are."""
    a_ns: float
    b_ns: float
    a_elsewhere_ns: float
    """The device was busy so much longer in A's steps, with work that was not launched in them."""
    b_elsewhere_ns: float
    rows: tuple[PairedKernels, ...]
    """The largest change first."""

    @property
    def paired_share(self) -> float:
        """Of both traces' time, 0–1: what has a counterpart."""
        both = sum(r.a_ns + r.b_ns for r in self.rows if r.how in ("name", "family"))
        return both / (self.a_ns + self.b_ns) if self.a_ns + self.b_ns else 0.0


def family(category: str, name: str) -> str | None:
    """What a kernel does within its category, by its full name; ``None``: its name does not say."""
    for label, pattern in _COMPILED.get(category, ()):
        if pattern.search(name) is not None:
            return label
    return None


def pair_kernels(
    a: KernelReport | Unavailable, b: KernelReport | Unavailable
) -> Pairing | Unavailable:
    """Pair the kernels of two traced rounds."""
    for report in (a, b):
        if isinstance(report, Unavailable):
            return report
    assert not isinstance(a, Unavailable)
    assert not isinstance(b, Unavailable)
    steps_a, steps_b = _steps(a), _steps(b)
    known = bool(steps_a and steps_b)
    left = _Side(a.kernels, steps_a if known else 1)
    right = _Side(b.kernels, steps_b if known else 1)
    rows: list[PairedKernels] = []
    for category in sorted({k.category for k in (*a.kernels, *b.kernels)}):
        mine, theirs = left.of(category), right.of(category)
        rows += [
            _row(category, "name", label, left, right, mine[label], theirs[label])
            for label in sorted(mine.keys() & theirs.keys())
        ]
        rows += _by_family(
            category,
            left,
            right,
            [k for label, ks in mine.items() if label not in theirs for k in ks],
            [k for label, ks in theirs.items() if label not in mine for k in ks],
        )
    rows.sort(key=lambda r: (-abs(r.delta_ns), r.category, r.label))
    a_ns, b_ns = sum(r.a_ns for r in rows), sum(r.b_ns for r in rows)
    lacking = " and ".join(n for n, s in (("A", steps_a), ("B", steps_b)) if not s)
    return Pairing(
        per_step=known,
        why_not="" if known else f"no decode steps are known of {lacking}",
        a_ns=a_ns,
        b_ns=b_ns,
        a_elsewhere_ns=_elsewhere(a, steps_a, a_ns) if known else 0.0,
        b_elsewhere_ns=_elsewhere(b, steps_b, b_ns) if known else 0.0,
        rows=tuple(rows),
    )


class _Side:
    """Kernels of one trace by category and short name."""

    def __init__(self, kernels: Iterable[KernelSummary], steps: int) -> None:
        self.steps = steps
        self._kernels: dict[str, dict[str, list[KernelSummary]]] = {}
        for kernel in kernels:
            by_name = self._kernels.setdefault(kernel.category, {})
            by_name.setdefault(kernel.short_name, []).append(kernel)

    def of(self, category: str) -> dict[str, list[KernelSummary]]:
        return self._kernels.get(category, {})

    def sums(self, kernels: list[KernelSummary]) -> tuple[tuple[str, ...], float, float]:
        """Names, ns, executions."""
        ordered = sorted(kernels, key=lambda k: -k.total_ns)
        names = tuple(dict.fromkeys(k.short_name for k in ordered))
        total = sum(k.total_ns for k in kernels) / self.steps
        return names, total, sum(k.count for k in kernels) / self.steps


def _by_family(
    category: str,
    left: _Side,
    right: _Side,
    mine: list[KernelSummary],
    theirs: list[KernelSummary],
) -> list[PairedKernels]:
    groups: dict[str | None, tuple[list[KernelSummary], list[KernelSummary]]] = {}
    for side, kernels in enumerate((mine, theirs)):
        for kernel in kernels:
            label = family(category, kernel.name)
            groups.setdefault(label, ([], []))[side].append(kernel)
    rows = []
    for label, (a, b) in sorted(groups.items(), key=lambda item: item[0] or ""):
        if label is not None and a and b:
            rows.append(_row(category, "family", label, left, right, a, b))
            continue
        rows += [_row(category, "only A", k.short_name, left, right, [k], []) for k in a]
        rows += [_row(category, "only B", k.short_name, left, right, [], [k]) for k in b]
    return rows


def _row(
    category: str,
    how: How,
    label: str,
    left: _Side,
    right: _Side,
    a: list[KernelSummary],
    b: list[KernelSummary],
) -> PairedKernels:
    a_names, a_ns, a_count = left.sums(a)
    b_names, b_ns, b_count = right.sums(b)
    return PairedKernels(category, how, label, a_names, b_names, a_ns, b_ns, a_count, b_count)


def _elsewhere(report: KernelReport, steps: int, paired_ns: float) -> float:
    """Busy time of a step beyond the durations of its kernels: that was other work."""
    if isinstance(report.busy_ns, Unavailable):
        return 0.0
    return max(0.0, report.busy_ns / steps - paired_ns)


def _steps(report: KernelReport) -> int:
    """Decode steps that the kernels are of; 0: not known."""
    for kernel in report.kernels:
        if isinstance(kernel.count_per_step, Unavailable) or not kernel.count_per_step:
            return 0
        return round(kernel.count / kernel.count_per_step)
    return 0
