"""Programs that decode, drawn at random: what the detector of steps is tried on, never tuned on.

Other than ``step_factory`` nothing here has a fixed shape. A seed draws the model (pattern of
layers, kernels a layer, names, library calls that depend on the shape), and a host that launches
onto streams of a device: idle time comes from who waits for whom. A border is right from the row
behind a step's logits to the first row of the next step's embedding, ends included, among the rows
of the stream that decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import step_factory

from llmprof.analysis.steps.detect import Detection
from llmprof.analysis.steps.events import KERNEL, ON_DEVICE, SET, TO_DEVICE, TO_HOST, Events

MAIN, COMM, COPY, OTHER = 13, 14, 20, 31
LIBRARIES = ("sm90_xmma", "cutlass_80", "ampere_fp16", "nvjet_hsh", "triton_red", "Cijk_Alik")


class Machine:
    """A host and the streams of a device; every launch is a row."""

    def __init__(self, seed: int, hidden: bool) -> None:
        self.random = np.random.default_rng([seed, 77])
        self.hidden = hidden
        self.host = 5_000_000
        self.free: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self.rows: list[tuple[int, ...]] = []
        self.launches = 0
        self.borders: list[tuple[int, int]] = []
        """(last row of the logits before, first row of the embedding)."""
        self.apart: list[tuple[int, int]] = []
        """First and last row of work that is no step: it may be cut, but not into decode steps."""
        self.before = -1
        """The last row of a program that ran before in the same process."""
        self.slow = float(self.random.uniform(1.5, 9.0))
        """µs that the host needs for a launch."""

    def put(
        self, name: str, us: float, stream: int, what: int, size: int, node: int = 0, lead: int = 0
    ) -> int:
        start = max(
            self.host + 2500, self.free.get(stream, 0) + int(self.random.uniform(400, 1300))
        )
        length = max(400, int(us * 1000 * self.random.normal(1, 0.03)))
        self.free[stream] = start + length
        number = self.names.setdefault(name, len(self.names))
        launch = lead or self._launch()
        self.rows.append((start, start + length, number, what, size, stream, node, launch))
        return len(self.rows) - 1

    def _launch(self) -> int:
        self.launches += 1
        return self.launches

    def kernel(self, name: str, us: float, size: int = 64, stream: int = MAIN) -> int:
        self.host += int(self.slow * 1000 * self.random.lognormal(0, 0.25))
        return self.put(name, us, stream, KERNEL, size)

    def copy(self, what: int, size: int, stream: int = MAIN) -> int:
        self.host += int(self.slow * 1300)
        us = 1.1 + size / 20_000
        name = {TO_DEVICE: "[H2D]", TO_HOST: "[D2H]", ON_DEVICE: "[D2D]", SET: "[set]"}[what]
        return self.put(name, us, stream, what, size)

    def graph(self, work: list[Kernel], base: int) -> list[int]:
        """One launch, all of its kernels."""
        self.host += 9000
        lead = self._launch()
        return [
            self.put(k.name, k.us, MAIN, KERNEL, k.size, base + n, lead) for n, k in enumerate(work)
        ]

    def order(self, before: int, behind: int) -> None:
        """What is launched on ``behind`` from now on waits for what ``before`` has."""
        self.free[behind] = max(self.free.get(behind, 0), self.free.get(before, 0))

    def wait(self, stream: int = MAIN) -> None:
        self.host = max(self.host, self.free.get(stream, 0) + 4000)

    def think(self, us: float) -> None:
        self.host += int(us * 1000 * self.random.lognormal(0, 0.4))

    def made(self) -> tuple[Events, Truth]:
        table = np.array(self.rows, np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        stream = table[:, 5]
        borders: dict[int, list[tuple[int, int]]] = {}
        for last, first in self.borders:
            own = np.sort(place[stream == stream[first]])
            low, high = np.searchsorted(own, [place[last] + 1, place[first]]).tolist()
            borders.setdefault(int(stream[first]), []).append((min(low, high), high))
        apart = [(int(place[a]), int(place[b])) for a, b in self.apart]
        names = list(self.names)
        if self.hidden:
            names = [f"kernel_{n:x}" for n in range(len(names))]
        truth = Truth({s: sorted(found) for s, found in borders.items()}, apart)
        return Events(*table[order].T, names), truth


@dataclass(frozen=True)
class Truth:
    """Where steps begin."""

    borders: dict[int, list[tuple[int, int]]]
    """For each stream that decodes and each step but its first: the first and the last row, counted
    in that stream alone, that may be the first of the step."""
    apart: list[tuple[int, int]]
    """Rows, of all, that are no step."""

    def judge(self, events: Events, found: Detection) -> tuple[int, int, int]:
        """(right, found, true) borders."""
        sums = np.zeros(3, int)
        for stream, borders in self.borders.items():
            mine = (found.stream == stream) | (found.stream == -1)
            for first, last in self.apart:
                mine &= found.decode | (found.end <= first) | (found.begin > last)
            rows = np.concatenate([found.begin[mine], found.end[mine]])
            rows = rows[~np.isin(rows, [first for first, _ in self.apart])]  # there a step ends
            own = np.concatenate([[0], np.cumsum(events.stream == stream)])
            sums += step_factory.quality(own[rows], borders)
        right, seen, true = sums.tolist()
        return right, seen, true


@dataclass(frozen=True)
class Kernel:
    name: str
    us: float
    size: int


@dataclass
class Shape:
    """One forward's tokens."""

    batch: int = 1
    tokens: int = 1
    kv: int = 100

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


@dataclass
class Net:
    """A model whose structure is drawn once."""

    random: np.random.Generator
    name: str = ""
    layers: int = 0
    pattern: list[str] = field(default_factory=list)
    quantised: bool = False
    fused: bool = False
    splits: bool = False
    experts: int = 0
    heavy: float = 1.0

    def __post_init__(self) -> None:
        r = self.random
        self.name = self.name or str(r.choice(["m", "qw", "ll", "ds", "gm"]))
        self.layers = self.layers or int(r.integers(4, 48))
        kinds = ["attention", "sliding", "state", "experts", "dense"]
        if not self.pattern:
            self.pattern = [str(r.choice(kinds[:2]))] + [
                str(r.choice(kinds)) for _ in range(int(r.integers(0, 6)))
            ]
        self.library = str(r.choice(LIBRARIES))
        self.glue = int(r.integers(0, 4))
        self.block = int(r.choice([64, 128, 192, 256, 512]))
        self.norm = str(r.choice(["rmsnorm_kernel", "layer_norm_fwd", "fused_add_norm"]))

    def _gemm(self, what: str, s: Shape, us: float) -> Iterator[Kernel]:
        if self.quantised:
            yield Kernel("dynamic_scaled_quant", 1.4, s.rows)
        tile = 16 if s.rows <= 16 else 64 if s.rows <= 64 else 128
        wide = 1 if s.rows <= 64 else s.rows / 64
        yield Kernel(f"{self.library}_gemm_{what}_{tile}x{tile}", us * wide * self.heavy, 132)
        if tile == 64:  # the library splits k for some shapes
            yield Kernel("splitKreduce_kernel", 1.6, 32)

    def _attention(self, s: Shape, sliding: bool) -> Iterator[Kernel]:
        yield Kernel("rotary_kernel", 1.3, s.rows)
        yield Kernel("reshape_and_cache", 1.2, s.rows)
        kv = min(s.kv, 512) if sliding else s.kv
        if s.tokens > 1:
            yield Kernel("fmha_varlen_fwd", 6 + s.rows * kv / 60_000, 32 * (1 + s.tokens // 128))
            return
        parts = 1 + kv // self.block if self.splits else 1
        yield Kernel("paged_attn_v2" if parts > 1 else "paged_attn_v1", 3 + kv / 400, 8 * parts)
        if parts > 1:
            yield Kernel("paged_attn_reduce", 1.4, 8)
        if parts > 8:
            yield Kernel("paged_attn_reduce_2", 1.2, 8)

    def _experts(self, s: Shape) -> Iterator[Kernel]:
        yield from self._gemm("router", s, 1.5)
        yield Kernel("topk_softmax_gating", 1.5, s.rows)
        if self.experts:  # one launch an expert that has a token
            for _ in range(int(self.random.integers(1, self.experts + 1))):
                yield Kernel("expert_mlp_up", 4.0, int(self.random.integers(8, 64)))
                yield Kernel("expert_mlp_down", 3.0, int(self.random.integers(8, 64)))
        else:
            yield Kernel("moe_align_block_size", 1.7, 1)
            yield Kernel("fused_moe_kernel", 14 * self.heavy, 400)
            yield Kernel("moe_sum", 1.5, s.rows)

    def body(self, s: Shape) -> Iterator[tuple[str, list[Kernel]]]:
        """(part, its kernels) of all layers; parts called "attention" cannot be in a graph."""
        for layer in range(self.layers):
            kind = self.pattern[layer % len(self.pattern)]
            if self.fused:
                yield (
                    "dense",
                    [
                        Kernel(f"triton_poi_fused_{self.name}_{layer}_{n}", 2.5 + n, s.rows)
                        for n in range(2 + self.glue)
                    ],
                )
            else:
                yield "dense", [Kernel(self.norm, 1.5, s.rows), *self._gemm("qkv", s, 7.0)]
            if kind == "state":
                yield "attention", [Kernel("conv1d_update", 1.6, 64), Kernel("ssd_chunk", 4.0, 64)]
            elif kind != "dense":
                yield "attention", list(self._attention(s, kind == "sliding"))
            rest = [*self._gemm("o", s, 4.0)]
            rest += [Kernel("elementwise_glue", 1.1, s.rows) for _ in range(self.glue)]
            rest.append(Kernel(self.norm, 1.5, s.rows))
            if kind == "experts":
                rest += self._experts(s)
            else:
                rest += self._gemm("gate_up", s, 12.0)
                rest.append(Kernel("act_and_mul", 1.4, s.rows))
                rest += self._gemm("down", s, 8.0)
            yield "dense", rest


@dataclass
class Engine:
    """How a program runs a model's forward and what it does around it."""

    m: Machine
    net: Net
    mode: str = "eager"
    """``eager``, ``graph``, or ``piecewise``: graphs between the attentions."""
    inputs: int = 0
    """Copies to the device before a forward."""
    on_host: bool = False
    """Logits go to the host, which samples."""
    sampler: int = 1
    """Kernels that choose the token."""
    outputs: int = 1
    """Small copies to the host behind it."""
    think: float = 60.0
    stream: int = MAIN
    reduce: bool = False
    """All-reduces on a stream of their own."""
    logits: int = -1
    graphs: dict[tuple[int, int], int] = field(default_factory=dict)

    def forward(self, s: Shape, mode: str | None = None, border: bool = True) -> None:
        m, mode = self.m, mode or self.mode
        for n in range(self.inputs):
            m.copy(TO_DEVICE, 8 * s.rows + 32 * n, self.stream)
        if mode == "eager" and self.inputs:
            m.kernel("arange_positions", 1.2, s.rows, self.stream)
        first = m.kernel("embedding_kernel", 1.8, s.rows, self.stream)
        behind = max(self.logits, m.before)
        if border and behind >= 0:
            m.borders.append((behind, first))
        if mode == "graph":
            work = [k for _, part in self.net.body(s) for k in part]
            bucket = (s.rows, len(work))
            base = self.graphs.setdefault(bucket, 1 + 100_000 * (1 + len(self.graphs)))
            m.graph([*work, *self._head(s)], base)
            self.logits = len(m.rows) - 1
            return
        for number, (part, work) in enumerate(self.net.body(s)):
            if mode == "piecewise" and part == "dense":
                base = 1 + 1_000_000 * (s.rows + 1) + 500 * number
                m.graph(work, base)
                continue
            for k in work:
                m.kernel(k.name, k.us, k.size, self.stream)
            if self.reduce and part == "dense":
                m.order(self.stream, COMM)
                m.kernel("ncclDevKernel_AllReduce_Sum", 9.0, 24, COMM)
                m.order(COMM, self.stream)
        for k in self._head(s):
            self.logits = m.kernel(k.name, k.us, k.size, self.stream)

    def _head(self, s: Shape) -> list[Kernel]:
        return [Kernel(self.net.norm, 1.5, s.rows), Kernel(f"lm_head_{self.net.name}", 25, 1000)]

    def token(self, s: Shape, more: int = 0) -> None:
        """Sampling, copies, and the host's work behind them."""
        m = self.m
        if self.on_host:
            m.copy(TO_HOST, 4 * 32_000 * s.batch, self.stream)
        else:
            for n in range(self.sampler):
                name = ("softmax_logits", "sort_logits_radix", "cumsum_topp", "sample_token")[n % 4]
                m.kernel(name if self.sampler > 1 else "argmax_reduce", 2.5, s.batch, self.stream)
            for n in range(self.outputs + more):
                m.copy(TO_HOST, 8 * s.batch if n == 0 else 4, self.stream)
        if self.on_host or self.outputs:
            m.wait(self.stream)
        m.think(self.think)

    def step(self, s: Shape, mode: str | None = None) -> None:
        self.forward(s, mode)
        self.token(s)


def drawn(m: Machine, **fixed: object) -> Engine:
    """An engine with everything drawn that is not given."""
    r = m.random
    net_fields = {k: fixed.pop(k) for k in list(fixed) if k in Net.__dataclass_fields__}
    net = Net(r, **{"quantised": bool(r.random() < 0.3), **net_fields})  # type: ignore[arg-type]
    drawn = {
        "inputs": int(r.integers(0, 4)),
        "sampler": int(r.choice([1, 1, 3, 4, 6])),
        "outputs": int(r.integers(1, 3)),
        "think": float(r.uniform(10, 400)),
    }
    return Engine(m, net, **{**drawn, **fixed})  # type: ignore[arg-type]


def requests(
    e: Engine, count: int, steps: int, batch: int = 1, grow: int = 1, pause: float = 5000
) -> None:
    r = e.m.random
    for _ in range(count):
        prompt = int(r.integers(8, 1500))
        e.step(Shape(batch, prompt, prompt), "eager")
        for n in range(int(steps * r.uniform(0.6, 1.4))):
            e.step(Shape(batch, 1, prompt + grow * n))
        e.m.think(pause)
