"""Device work as the detector of steps sees it: one row a kernel, copy or set, in order of start.

The few words that it knows about names (sampling, embedding) are hints: with every name hidden the
steps are found all the same, by what repeats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.runfile import activity
from llmprof.runfile.trace.rows import Ints, TraceRows

Flags = NDArray[np.bool_]
Marks = NDArray[np.uint64]

KERNEL, TO_HOST, TO_DEVICE, ON_DEVICE, SET, WHOLE_GRAPH = range(6)
"""What a row of ``Events`` is; a whole graph is one that was traced without its nodes."""
TOKEN_BYTES = 8 << 20
"""A copy to the host up to here may carry tokens or logits (128,000 × 4 bytes × batch 16)."""
INPUT_BYTES = 1 << 20
"""A copy to the device up to here may carry the inputs of a step."""
BURST = 24
"""Of several alike within so many rows only the first is an anchor."""

_SAMPLING = re.compile(
    r"arg_?max|top_?[kp](?!_?softmax)|sampl|multinomial|mbtopk|penalt|gumbel|radixsort"
    r"|sort.*(block|pairs)|randperm|exponential|distribution_elementwise|greedy|nucleus",
    re.IGNORECASE,
)
_ROUTING = re.compile(r"moe|expert|rout(er|ing)|gating|topk_forward", re.IGNORECASE)
"""Experts are chosen by a top-k too, once a layer."""
_EMBEDDING = re.compile(
    r"(?<!rotary_)(?<!rotary)(?<!rope_)embed|index_?select|get_rows|vectorized_gather|lookup"
    r"|gather_kernel|(?<![a-z])take\d*(?![a-z])",
    re.IGNORECASE,
)
# Symbols of neighbours are joined to one number: two odd multipliers, wrapping.
_JOIN_A, _JOIN_B = np.int64(1_000_003), np.int64(998_244_353)
_POSITIVE = np.int64(0x7FFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True, eq=False)
class Events:
    """All columns are int64 and equally long, ordered by ``start_ns``."""

    start_ns: Ints
    end_ns: Ints
    name: Ints
    """Index into ``names``."""
    what: Ints
    size: Ints
    """Bytes of a copy or set, blocks of a kernel's grid."""
    stream: Ints
    node: Ints
    """Graph node, 0 for work launched on its own."""
    launch: Ints
    """Equal for all work of one launch."""
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.start_ns)

    def take(self, rows: Ints) -> Events:
        """Some rows, ascending."""
        cut: dict[str, Any] = {
            f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "names"
        }
        return replace(self, **cut)

    def joined(self, rows: Ints) -> Events:
        """Some rows, ascending, as if nothing had been between them: time that rows left out
        took is left out too."""
        rest = self.take(rows)
        behind = np.flatnonzero(np.diff(rows) > 1) + 1
        skipped = np.zeros(len(rows), np.int64)
        skipped[behind] = np.maximum(0, rest.start_ns[behind] - rest.end_ns[behind - 1])
        shift = np.cumsum(skipped)
        return replace(rest, start_ns=rest.start_ns - shift, end_ns=rest.end_ns - shift)

    @cached_property
    def sampling(self) -> Flags:
        """Kernels whose name says that they choose the token."""
        said = [bool(_SAMPLING.search(n)) and not _ROUTING.search(n) for n in self.names]
        found: Flags = _by_name(said, self.name) & (self.what == KERNEL)
        return found

    @cached_property
    def embedding(self) -> Flags:
        """Kernels whose name says that they look tokens up."""
        said = [bool(_EMBEDDING.search(n)) for n in self.names]
        found: Flags = _by_name(said, self.name) & (self.what == KERNEL)
        return found

    @cached_property
    def token_copies(self) -> Flags:
        found: Flags = (self.what == TO_HOST) & (self.size <= TOKEN_BYTES)
        return found

    @cached_property
    def input_copies(self) -> Flags:
        found: Flags = (self.what == TO_DEVICE) & (self.size <= INPUT_BYTES)
        return found

    @cached_property
    def before_ns(self) -> Ints:
        """Up to when earlier rows had occupied the device, for every row."""
        reach = np.maximum.accumulate(self.end_ns)
        return np.concatenate([self.start_ns[:1], reach[:-1]])

    @cached_property
    def symbol(self) -> Ints:
        """Equal for work of one name; copies and sets are told apart by size, large ones
        roughly: the copy of a token is not the copy of a cache."""
        symbol = self.name.copy()
        moved = np.flatnonzero(self.what != KERNEL)
        size = np.maximum(self.size[moved], 1)
        rough = 64 + 8 * np.log2(size).astype(np.int64)
        symbol[moved] = (symbol[moved] + 1) * 100_000 + np.where(size <= 64, size, rough)
        return symbol

    @cached_property
    def tag(self) -> Ints:
        """What may end or begin a step whatever its kernels are called: 0 token copy, 1 sampling,
        2 embedding, 3 input copy, of a burst the first one only; -1 all else."""
        small = self.size <= TOKEN_BYTES
        tag = np.full(len(self), -1, np.int64)
        tag[(self.what == TO_DEVICE) & small] = 3
        tag[self.embedding] = 2
        tag[self.sampling] = 1
        tag[self.token_copies] = 0
        for value in range(4):
            at = np.flatnonzero(tag == value)
            tag[at[1:][np.diff(at) < BURST]] = -1
        return tag

    @cached_property
    def bags(self) -> Marks:
        """Running sum of a 64-bit mark a symbol, from 0: equal differences of two places mean
        that the same work lies between them, but for a chance of 2**-64."""
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(self.symbol))])

    @cached_property
    def kernel_bags(self) -> Marks:
        """The same of kernels and whole graphs alone: copies on another stream are now in one
        step, now in the next."""
        kernel = (self.what == KERNEL) | (self.what == WHOLE_GRAPH)
        marks = np.where(kernel, _mixed(self.symbol), np.uint64(0))
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(marks)])

    @cached_property
    def busy_ns(self) -> Ints:
        """Running sum of durations, from 0."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.end_ns - self.start_ns)])


def trigrams(symbol: Ints) -> Ints:
    """A number for every row and both its neighbours; -1 at the ends. Repeats in layers."""
    found = np.full(len(symbol), -1, np.int64)
    if len(symbol) > 2:
        found[1:-1] = joined(symbol[:-2], symbol[1:-1], symbol[2:])
    return found


def joined(left: Ints, middle: Ints, right: Ints) -> Ints:
    """Three symbols as one positive number."""
    with np.errstate(over="ignore"):
        number: Ints = ((left * _JOIN_A + middle) * _JOIN_B + right) & _POSITIVE
    return number


def with_grid(symbol: Ints, size: Ints, what: Ints) -> Ints:
    """A kernel's name and grid as one number."""
    return symbol * _JOIN_A + np.where(what == KERNEL, size, 0)


def events_of(rows: TraceRows, pid: int | None = None) -> Events:
    """The work of one process (``None``: all rows), in order."""
    k, c = rows.kernels, rows.copies
    mine = slice(None) if pid is None else np.flatnonzero(k.pid == pid)
    copied = slice(None) if pid is None else np.flatnonzero(c.pid == pid)
    ids, name = np.unique(k.name_id[mine], return_inverse=True)
    kinds, copy_name = np.unique(c.kind[copied], return_inverse=True)
    names = [k.names.get(int(i), f"kernel {i}") for i in ids]
    kind = c.kind[copied]
    what = np.select(
        [kind == 1, kind == 2, kind == activity.SET, kind == activity.GRAPH],
        [TO_DEVICE, TO_HOST, SET, WHOLE_GRAPH],
        default=ON_DEVICE,
    )
    start = np.concatenate([k.start_ns[mine], c.start_ns[copied]])
    order = np.argsort(start, kind="stable")

    def column(kernels: Any, copies: Any) -> Ints:
        both: Ints = np.concatenate([kernels, copies]).astype(np.int64, copy=False)
        return both[order]

    grid = k.grid_x[mine] * k.grid_y[mine] * k.grid_z[mine]
    end = column(k.end_ns[mine], c.end_ns[copied])
    return Events(
        start_ns=start[order],
        end_ns=np.maximum(end, start[order]),
        name=column(name, copy_name + len(names)),
        what=column(np.full(len(name), KERNEL), what),
        size=column(grid, c.bytes[copied]),
        stream=column(k.stream[mine], c.stream[copied]),
        node=column(k.graph_node[mine], c.graph_node[copied]),
        launch=column(k.correlation[mine], c.correlation[copied]),
        names=[*names, *(f"[copy {i}]" for i in kinds)],
    )


def _by_name(said: list[bool], name: Ints) -> Flags:
    return np.array(said or [False], bool)[name] if len(name) else np.zeros(0, bool)


def _mixed(values: Ints) -> Marks:
    """64 well mixed bits (splitmix64, Steele, Lea and Flood 2014), so that sums tell bags apart."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Marks = x ^ (x >> np.uint64(31))
    return mixed
