"""The DRAM curve of any traced kernels, from the fitted profiles of their names and shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmprof.analysis.bandwidth.fit.design import MOST
from llmprof.analysis.bandwidth.kernels import KernelBandwidth, KernelDram
from llmprof.plaintext import one_line
from llmprof.records import Unavailable
from llmprof.runfile.trace.rows import KernelRows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Profiles:
    """Finds the fitted value of a kernel by name, launch shape and, where several fit, duration."""

    def __init__(self, found: KernelBandwidth) -> None:
        self._known: dict[tuple[object, ...], list[KernelDram]] = {}
        self.idle_gb_s = found.idle_gb_s
        for kernel in found.kernels:
            self._known.setdefault((kernel.name, kernel.grid, kernel.block), []).append(kernel)

    def of(self, rows: KernelRows, i: int) -> KernelDram | None:
        """Of row ``i``; ``None``: it did not run while samples were taken."""
        key = (
            one_line(rows.names.get(int(rows.name_id[i]), ""), 1000),
            (int(rows.grid_x[i]), int(rows.grid_y[i]), int(rows.grid_z[i])),
            (int(rows.block_x[i]), int(rows.block_y[i]), int(rows.block_z[i])),
        )
        length = int(rows.end_ns[i] - rows.start_ns[i])
        candidates = self._known.get(key, ())
        return min(candidates, key=lambda k: abs(k.median_ns - length), default=None)

    def curve(self, rows: KernelRows) -> tuple[Ints, Ints, Floats]:
        """Disjoint stretches in order, GB/s: parts of kernels, and idle time between known ones.

        Where kernels overlap the later one is shown from its start on. Kernels without a value
        leave a hole.
        """
        keys = np.stack(
            [rows.name_id, rows.grid_x, rows.grid_y, rows.grid_z,
             rows.block_x, rows.block_y, rows.block_z]
        )  # fmt: skip
        _, first, kind = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        kind = kind.ravel()
        edges: list[Ints] = []
        levels: list[Floats] = []
        end = np.minimum(rows.end_ns, np.append(rows.start_ns[1:], np.iinfo(np.int64).max))
        known = np.zeros(len(rows), bool)
        for number in range(len(first)):
            mine = np.flatnonzero(kind == number)
            at = [self.of(rows, i) for i in _samples_of(mine, rows)]
            for dram in dict.fromkeys(at):
                if dram is None or isinstance(dram.dram_gb_s, Unavailable):
                    continue
                chosen = mine[_nearest(mine, rows, dram, [k for k in at if k is not None])]
                known[chosen] = True
                values = np.array(dram.profile_gb_s or (dram.dram_gb_s,))
                share = np.arange(len(values) + 1) / len(values)
                length = (rows.end_ns - rows.start_ns)[chosen, None]
                border = rows.start_ns[chosen, None] + np.rint(length * share).astype(np.int64)
                border = np.minimum(border, end[chosen, None])
                edges.append(np.stack([border[:, :-1].ravel(), border[:, 1:].ravel()]))
                # Each launch moves the same bytes, in its own time.
                slower = np.clip(dram.median_ns / np.maximum(length, 1), 1 / MOST, MOST)
                levels.append((values * slower).ravel())
        between = np.flatnonzero(known[:-1] & known[1:]) if len(rows) else np.empty(0, np.int64)
        edges.append(np.stack([end[between], rows.start_ns[between + 1]]))
        levels.append(np.full(len(between), self.idle_gb_s))
        joined, value = np.concatenate(edges, axis=1), np.concatenate(levels)
        there = joined[1] > joined[0]
        order = np.argsort(joined[0][there], kind="stable")
        return joined[0][there][order], joined[1][there][order], value[there][order]


def _samples_of(mine: Ints, rows: KernelRows) -> list[int]:
    """The shortest, the median and the longest: they show which values these rows have."""
    order = mine[np.argsort((rows.end_ns - rows.start_ns)[mine], kind="stable")]
    return [int(order[0]), int(order[len(order) // 2]), int(order[-1])]


def _nearest(
    mine: Ints, rows: KernelRows, dram: KernelDram, candidates: list[KernelDram]
) -> NDArray[np.bool_]:
    length = (rows.end_ns - rows.start_ns)[mine][:, None]
    medians = np.array([k.median_ns for k in dict.fromkeys(candidates)])
    place = list(dict.fromkeys(candidates)).index(dram)
    chosen: NDArray[np.bool_] = np.abs(length - medians).argmin(1) == place
    return chosen
