"""All executions of each kernel added up: count, time, the usual launch shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.device.naming.categories import OTHER
from llmprof.analysis.device.naming.kernel_names import short_name
from llmprof.analysis.device.sweep import Work, sums
from llmprof.plaintext import one_line
from llmprof.records import Maybe, Unavailable
from llmprof.runfile.trace.rows import Ints, KernelRows

Dim = tuple[int, int, int]

_DURATION_BITS = 40
"""18 minutes in ns: a duration and a label share one sortable int64."""


@dataclass(frozen=True)
class KernelSummary:
    """All executions of one kernel (or kind of copy) in the decode steps, by total time."""

    short_name: str
    name: str
    """Demangled where the tracer could, on one printable line of at most 1000 characters."""
    category: str
    count: int
    count_per_step: Maybe
    mean_ns: float
    median_ns: float
    total_ns: int
    """Sum of durations; more than its part of the busy time where kernels overlap."""
    share: float
    """Of the sum of all durations, 0–1."""
    grid: Dim | None
    """Of the most common launch shape; ``None`` for a copy."""
    block: Dim | None
    graph_share: float
    """Executions that were nodes of a CUDA graph, 0–1."""


def summaries(
    work: Work,
    rows: KernelRows,
    categories: Mapping[int, str],
    inside: Ints,
    steps: int,
    missing: Unavailable,
) -> tuple[KernelSummary, ...]:
    """All kernels of some rows of the work, by total time.

    Args:
        categories: by label.
        inside: the rows, ascending.
        steps: that they are of; 0: ``missing`` says why there are none.
    """
    label = work.label[inside]
    duration = (work.end_ns - work.start_ns)[inside]
    size = len(work.names)
    count, total = np.bincount(label, minlength=size), sums(label, duration, size)
    medians = _medians(label, duration, count)
    # Kernels come first in the work, so the kernels among `inside` lead there too.
    of_kernels = work.kernel_row[inside[work.is_kernel[inside]]]
    kernel_label = label[: len(of_kernels)]
    in_graph = sums(kernel_label, (rows.graph_node[of_kernels] != 0).astype(np.int64), size)
    shapes = _common_shapes(rows, of_kernels, kernel_label)
    everything = max(1, int(total.sum()))
    order = np.argsort(-total, kind="stable")
    return tuple(
        KernelSummary(
            short_name=short_name(work.names[n]),
            name=one_line(work.names[n], 1000),
            category=categories.get(n, OTHER),
            count=int(count[n]),
            count_per_step=int(count[n]) / steps if steps else missing,
            mean_ns=float(total[n] / count[n]),
            median_ns=float(medians[n]),
            total_ns=int(total[n]),
            share=float(total[n] / everything),
            grid=shapes[n][0] if n in shapes else None,
            block=shapes[n][1] if n in shapes else None,
            graph_share=float(in_graph[n] / count[n]),
        )
        for n in order.tolist()
        if count[n]
    )


def _medians(label: Ints, duration: Ints, count: Ints) -> NDArray[np.float64]:
    """Median duration of each label, by one sort of label and duration in one integer."""
    longest = np.int64((1 << _DURATION_BITS) - 1)
    key = np.sort((label << _DURATION_BITS) | np.minimum(duration, longest)) & longest
    begin = np.cumsum(count) - count
    if not len(key):
        return np.zeros(len(count))
    last = len(key) - 1
    low = key[np.minimum(begin + np.maximum(count - 1, 0) // 2, last)]
    high = key[np.minimum(begin + count // 2, last)]
    medians: NDArray[np.float64] = (low + high) / 2
    return medians


def _common_shapes(rows: KernelRows, of_kernels: Ints, label: Ints) -> dict[int, tuple[Dim, Dim]]:
    """Grid and block of each label's most common launch."""
    columns = (rows.grid_x, rows.grid_y, rows.grid_z, rows.block_x, rows.block_y, rows.block_z)
    # Seven columns as one 64-bit hash: sorting that is ten times faster than sorting rows.
    mixed = label.astype(np.uint64)
    for column in columns:
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        mixed += column[of_kernels].astype(np.uint64)
    _, first, count = np.unique(mixed, return_index=True, return_counts=True)
    shapes: dict[int, tuple[Dim, Dim]] = {}
    for at in first[np.argsort(count, kind="stable")].tolist():  # the most common comes last
        x, y, z, bx, by, bz = (int(column[of_kernels[at]]) for column in columns)
        shapes[int(label[at])] = ((x, y, z), (bx, by, bz))
    return shapes
