"""Programs that decode, drawn at random: what the detector of steps is tried on, never tuned on.

Other than ``step_factory`` nothing here has a fixed shape. A seed draws the model (pattern of
layers, kernels a layer, names, library calls that depend on the shape), and a host that launches
onto streams of a device: idle time comes from who waits for whom. A border is right from the row
behind a step's logits to the first row of the next step's embedding, ends included, among the rows
of the stream that decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        if border and self.logits >= 0:
            m.borders.append((self.logits, first))
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


def _drawn(m: Machine, **fixed: object) -> Engine:
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


def _requests(
    e: Engine, count: int, steps: int, batch: int = 1, grow: int = 1, pause: float = 5000
) -> None:
    r = e.m.random
    for _ in range(count):
        prompt = int(r.integers(8, 1500))
        e.step(Shape(batch, prompt, prompt), "eager")
        for n in range(int(steps * r.uniform(0.6, 1.4))):
            e.step(Shape(batch, 1, prompt + grow * n))
        e.m.think(pause)


def _any_dense(m: Machine) -> None:
    _requests(_drawn(m), 3, 40)


def _any_graph(m: Machine) -> None:
    _requests(_drawn(m, mode="graph"), 3, 40, int(m.random.integers(1, 17)))


def _piecewise(m: Machine) -> None:
    _requests(_drawn(m, mode="piecewise", layers=int(m.random.integers(4, 24))), 3, 35)


def _split_k(m: Machine) -> None:
    """The key-value length passes many limits, a few steps each."""
    _requests(_drawn(m, splits=True), 2, 60, grow=int(m.random.integers(3, 30)))


def _split_k_graph(m: Machine) -> None:
    _requests(_drawn(m, mode="graph", splits=True), 2, 60, grow=int(m.random.integers(3, 30)))


def _speculative(m: Machine) -> None:
    """A draft model, as many drafts as it likes; the large model verifies all at once."""
    big = _drawn(m, inputs=1)
    small = Engine(m, Net(m.random, name="dr", layers=3, heavy=0.3), outputs=0, think=2)
    most, kv = int(m.random.integers(3, 8)), 200
    big.step(Shape(1, kv, kv))
    for _ in range(60):
        drafts = int(m.random.integers(1, most + 1))
        before, rows = big.logits, len(m.rows)
        for _ in range(drafts):
            small.forward(Shape(1, 1, kv), border=False)
            small.token(Shape())
        big.forward(Shape(1, drafts + 1, kv), border=False)
        first = next(
            n for n in range(rows, len(m.rows)) if m.rows[n][2] == m.names["embedding_kernel"]
        )
        m.borders.append((before, first))
        big.token(Shape())
        kv += int(m.random.integers(1, drafts + 2))


def _lookup(m: Machine) -> None:
    """Drafts come from the prompt: 0 to 7 tokens to verify, other library calls by how many."""
    e = _drawn(m, inputs=2)
    e.step(Shape(1, 300, 300))
    for n in range(90):
        e.step(
            Shape(1, 1 + int(m.random.integers(0, 8)) * int(m.random.random() < 0.6), 300 + 2 * n)
        )


def _draft_heads(m: Machine) -> None:
    """Small heads draft three tokens within each step (EAGLE, MTP)."""
    e = _drawn(m, inputs=1)
    head = Net(m.random, name="head", layers=1, pattern=["attention"], heavy=0.4)
    e.step(Shape(1, 200, 200))
    for n in range(80):
        s = Shape(1, 4, 200 + 2 * n)
        e.forward(s)
        e.token(s)
        drafter = Engine(m, head, outputs=0, think=1)
        for _ in range(3):
            drafter.forward(Shape(1, 1, s.kv), border=False)
            m.kernel("argmax_reduce", 2.0, 1)


def _two_models(m: Machine) -> None:
    engines = [_drawn(m, name="one"), _drawn(m, name="two", mode="graph")]
    for _ in range(6):
        e = engines[int(m.random.integers(0, 2))]
        for other in engines:
            if other is not e:
                e.logits = max(e.logits, other.logits)
        _requests(e, 1, 25)


def _embedder_beside(m: Machine) -> None:
    """A model that never decodes answers between two requests."""
    e, other = _drawn(m), Net(m.random, name="emb", layers=12)
    for _ in range(4):
        for _ in range(int(m.random.integers(1, 6))):
            first, size = len(m.rows), Shape(1, int(m.random.integers(8, 200)), 100)
            for _, part in other.body(size):
                for k in part:
                    m.kernel("e_" + k.name, k.us, k.size)
            m.copy(TO_HOST, 4096)
            m.wait()
            m.think(500)
            e.logits = len(m.rows) - 1
            m.apart.append((first, e.logits))
        _requests(e, 1, 30)


def _two_threads(m: Machine) -> None:
    """Two requests of one model at once, a stream and a thread each."""
    one = _drawn(m)
    begin = m.host
    one.step(Shape(1, 90, 90))
    for n in range(70):
        one.step(Shape(1, 1, 90 + n))
    end, m.host = m.host, begin + 50_000
    two = Engine(m, one.net, stream=OTHER, think=one.think * 1.3, inputs=one.inputs)
    two.step(Shape(1, 90, 90))
    for n in range(70):
        two.step(Shape(1, 1, 90 + n))
    m.host = max(m.host, end)


def _tensor_parallel(m: Machine) -> None:
    _requests(_drawn(m, reduce=True, layers=int(m.random.integers(4, 30))), 3, 30)


def _offload(m: Machine) -> None:
    """Blocks of the cache are copied on a stream of their own, whenever there is time."""
    e = _drawn(m)
    e.step(Shape(1, 500, 500))
    for n in range(90):
        e.step(Shape(1, 1, 500 + n))
        if m.random.random() < 0.4:
            for _ in range(int(m.random.integers(1, 5))):
                m.copy(TO_HOST if m.random.random() < 0.5 else TO_DEVICE, 1 << 22, COPY)


def _buckets(m: Machine) -> None:
    """Continuous batching: graphs padded to a few sizes, eager beyond, prompts join."""
    e, batch = _drawn(m, mode="graph", inputs=3), 4
    sizes = np.array([1, 2, 4, 8, 16, 24, 32])
    for n in range(160):
        batch = int(np.clip(batch + m.random.integers(-2, 3), 1, 40))
        if m.random.random() < 0.12:
            e.step(Shape(1, int(m.random.integers(16, 700)), 300), "eager")
        elif batch > 32:
            e.step(Shape(batch, 1, 200 + n), "eager")
        else:
            e.step(Shape(int(sizes[sizes >= batch].min()), 1, 200 + n))


def _chunked(m: Machine) -> None:
    """Long prompts in chunks that ride along with decoding."""
    e, left, batch = _drawn(m, inputs=2), 0, 6
    for n in range(150):
        if left <= 0 and m.random.random() < 0.08:
            left = int(m.random.integers(300, 4000))
        chunk = min(left, int(m.random.choice([256, 512])))
        left -= chunk
        e.step(Shape(1, chunk + batch, 900 + n) if chunk > 0 else Shape(batch, 1, 900 + n))


def _ahead(m: Machine) -> None:
    """Asynchronous scheduling: the token of a step goes to the host on a side stream while the
    next one runs."""
    e = _drawn(m, mode=str(m.random.choice(["graph", "eager"])), outputs=0, inputs=1, think=8)
    m.slow = 2.0
    e.step(Shape(4, 100, 100), "eager")
    for n in range(90):
        e.step(Shape(4, 1, 100 + n))
        m.order(MAIN, COPY)
        m.copy(TO_HOST, 32, COPY)


def _many_a_copy(m: Machine) -> None:
    """Several steps are launched at once, their tokens are copied together."""
    e, many = _drawn(m, outputs=0, think=3), int(m.random.choice([4, 8]))
    e.step(Shape(2, 128, 128))
    for n in range(96):
        e.step(Shape(2, 1, 128 + n))
        if n % many == many - 1:
            m.copy(TO_HOST, 16 * many)
            m.wait()
            m.think(200)


def _beams(m: Machine) -> None:
    """The cache is reordered in every step, a kernel a layer."""
    e = _drawn(m, sampler=4)
    e.step(Shape(4, 60, 60))
    for n in range(60):
        e.step(Shape(4, 1, 60 + n))
        for _ in range(2 * e.net.layers):
            m.kernel("index_select_cache", 3.0, 200)


def _log_probabilities(m: Machine) -> None:
    """Some requests want them: a few copies more in some steps."""
    e = _drawn(m)
    e.step(Shape(2, 100, 100))
    for n in range(90):
        s = Shape(2, 1, 100 + n)
        e.forward(s)
        if m.random.random() < 0.3:
            m.kernel("log_softmax", 4.0, 2)
            m.kernel("topk_logprobs", 6.0, 2)
        e.token(s, int(m.random.integers(0, 3)))


def _samples_on_host(m: Machine) -> None:
    _requests(_drawn(m, on_host=True, inputs=3), 3, 40)


def _experts_apart(m: Machine) -> None:
    """A launch an expert: no two steps have as many kernels."""
    e = _drawn(m, pattern=["attention", "experts"], experts=8, layers=int(m.random.integers(4, 20)))
    _requests(e, 2, 45, int(m.random.integers(1, 5)))


def _compiled(m: Machine) -> None:
    _requests(_drawn(m, fused=True, mode=str(m.random.choice(["graph", "eager"]))), 3, 40)


def _warm_up_first(m: Machine) -> None:
    """Weights are loaded, shapes tried, graphs captured (eager runs), then requests come."""
    e = _drawn(m, mode="graph", layers=int(m.random.integers(4, 20)))
    for _ in range(150):
        m.copy(TO_DEVICE, 1 << 24)
    for batch in (32, 16, 8, 4, 2, 1):
        for _ in range(2):
            e.forward(Shape(batch), "eager", border=False)
    e.logits = len(m.rows) - 1
    m.wait()
    m.think(20_000)
    _requests(e, 3, 40)


def _housekeeping(m: Machine) -> None:
    """Pages, adapters and statistics now and then, at no fixed distance."""
    e = _drawn(m)
    e.step(Shape(1, 64, 64))
    for n in range(110):
        e.step(Shape(1, 1, 64 + n))
        if m.random.random() < 0.1:
            m.copy(SET, 1 << 16)
            m.kernel("page_table_fill", 4.0, 32)
        if m.random.random() < 0.05:
            for _ in range(int(m.random.integers(2, 12))):
                m.copy(TO_DEVICE, 1 << 19)
                m.kernel("adapter_scatter", 5.0, 32)


def _encoder_decoder(m: Machine) -> None:
    """Speech: an encoder a request, cross attention in every layer."""
    e, encoder = _drawn(m, layers=6, pattern=["attention", "attention"]), Net(m.random, name="enc")
    for _ in range(4):
        for _, part in encoder.body(Shape(1, 600, 600)):
            for k in part:
                m.kernel("enc_" + k.name, k.us, k.size)
        _requests(e, 1, 25, pause=100)


def _small_and_fast(m: Machine) -> None:
    """One or two layers: hardly anything repeats within a step."""
    _requests(_drawn(m, layers=int(m.random.integers(1, 3))), 2, 120)


def _deep(m: Machine) -> None:
    _requests(_drawn(m, layers=int(m.random.integers(60, 100))), 2, 12)


def _few(m: Machine) -> None:
    e = _drawn(m)
    for n in range(6):
        e.step(Shape(1, 1, 300 + n))


def _guided(m: Machine) -> None:
    """A grammar's mask is copied to the device between logits and sampling."""
    e = _drawn(m)
    e.step(Shape(2, 90, 90))
    for n in range(90):
        s = Shape(2, 1, 90 + n)
        e.forward(s)
        m.think(30)
        m.copy(TO_DEVICE, 2 * 4000)
        m.kernel("apply_token_bitmask", 2.2, 2)
        e.token(s)


def _guidance_twice(m: Machine) -> None:
    """Classifier-free guidance: two forwards a token."""
    e = _drawn(m)
    e.step(Shape(1, 70, 70))
    for n in range(60):
        s = Shape(1, 1, 70 + n)
        e.forward(s)
        e.forward(s, border=False)
        m.kernel("guidance_combine", 3.0, 32)
        e.token(s)


def _tree(m: Machine) -> None:
    """Tree drafts: the accepted branch is compacted, a kernel a layer, and may be any length."""
    e = _drawn(m, inputs=1)
    e.step(Shape(1, 128, 128))
    for n in range(70):
        s = Shape(1, 24, 128 + 2 * n)
        e.forward(s)
        e.token(s)
        if m.random.random() < 0.7:
            for _ in range(e.net.layers):
                m.kernel("compact_cache", 2.0, 32)
        m.kernel("tree_heads", 6.0, 64)
        m.kernel("tree_candidates_topk", 3.0, 8)


def _flushed(m: Machine) -> None:
    """The cache is quantised in blocks: every 32nd step works more in every layer."""
    e = _drawn(m)
    e.step(Shape(1, 96, 96))
    for n in range(130):
        e.step(Shape(1, 1, 96 + n))
        if n % 32 == 31:
            for _ in range(e.net.layers):
                m.kernel("quantise_block_k", 5.0, 64)
                m.kernel("quantise_block_v", 5.0, 64)


def _adapters(m: Machine) -> None:
    """Low-rank adapters of whoever is in the batch: none, or two kernels more a product."""
    e, plain = _drawn(m, inputs=2), 0
    e.step(Shape(3, 50, 50))
    for n in range(100):
        if n % 9 == 0:
            plain = int(m.random.integers(0, 2))
        s = Shape(1 + n % 5, 1, 50 + n)
        for _ in range(e.inputs):
            m.copy(TO_DEVICE, 64)
        first = m.kernel("embedding_kernel", 1.8, s.rows)
        m.borders.append((e.logits, first))
        for _, part in e.net.body(s):
            for k in part:
                m.kernel(k.name, k.us, k.size)
                if "gemm" in k.name and not plain:
                    m.kernel("lora_shrink", 1.5, 16)
                    m.kernel("lora_expand", 1.7, 16)
        e.logits = m.kernel("lm_head", 25, 1000)
        e.token(s)


def _streamed_weights(m: Machine) -> None:
    """Weights do not fit: each layer's are copied to the device before it runs."""
    e = _drawn(m, layers=int(m.random.integers(4, 16)))
    for n in range(40):
        s = Shape(1, 1, 40 + n)
        first = m.kernel("embedding_kernel", 1.8)
        if n:
            m.borders.append((e.logits, first))
        for number, (_, part) in enumerate(e.net.body(s)):
            if number % 3 == 0:
                m.copy(TO_DEVICE, 1 << 24, COPY)
                m.order(COPY, MAIN)
            for k in part:
                m.kernel(k.name, k.us, k.size)
        e.logits = m.kernel("lm_head", 25, 1000)
        e.token(s)


def _asks_for_the_end(m: Machine) -> None:
    """The host asks whether all sequences have ended: one copy more, behind more kernels."""
    e, left = _drawn(m), 16
    e.step(Shape(left, 40, 40))
    for n in range(100):
        s = Shape(left, 1, 40 + n)
        e.forward(s)
        e.token(s)
        for name in ("cat_ids", "eq_eos", "all_reduce_bool"):
            m.kernel(name, 1.3, left)
        m.copy(TO_HOST, 1)
        m.wait()
        if n % 20 == 19:
            left = max(1, left - int(m.random.integers(1, 5)))
        if m.random.random() < 0.03:
            m.think(90_000)


def _scores_beside(m: Machine) -> None:
    """Prompts are scored between the steps of others: a prefill, all of its logits to the host."""
    e = _drawn(m, inputs=1)
    e.step(Shape(4, 64, 64))
    for n in range(100):
        e.step(Shape(4, 1, 64 + n))
        if m.random.random() < 0.1:
            size = int(m.random.integers(32, 600))
            e.forward(Shape(1, size, size))
            m.kernel("log_softmax_all", 20, size)
            m.copy(TO_HOST, 4 * size)
            m.wait()


def _last_stage(m: Machine) -> None:
    """The last stage of a pipeline: states come from the stage before, tokens are chosen here."""
    e, r = _drawn(m, outputs=1), m.random
    for n in range(90):
        s = Shape(8, 1, 80 + n)
        first = m.kernel("ncclDevKernel_SendRecv", 30 * r.uniform(0.5, 3), 8)
        if n:
            m.borders.append((e.logits, first))
        for _, part in e.net.body(s):
            for k in part:
                m.kernel(k.name, k.us, k.size)
        e.logits = m.kernel("lm_head", 25, 1000)
        e.token(s)
        m.kernel("ncclDevKernel_Broadcast", 9, 4)


WORLDS: dict[str, Callable[[Machine], None]] = {
    "any layers, eager": _any_dense,
    "any layers, one graph": _any_graph,
    "graphs between attentions": _piecewise,
    "split-k by length": _split_k,
    "split-k by length, graph": _split_k_graph,
    "speculative, draft model": _speculative,
    "speculative, from the prompt": _lookup,
    "speculative, draft heads": _draft_heads,
    "two models by turns": _two_models,
    "embedding model beside": _embedder_beside,
    "two threads": _two_threads,
    "tensor parallel, own stream": _tensor_parallel,
    "cache offloaded": _offload,
    "graphs of buckets, joins": _buckets,
    "prompts in chunks": _chunked,
    "scheduled ahead": _ahead,
    "many steps a copy": _many_a_copy,
    "beams": _beams,
    "log probabilities at times": _log_probabilities,
    "samples on the host": _samples_on_host,
    "experts one by one": _experts_apart,
    "compiled": _compiled,
    "loading and warm-up first": _warm_up_first,
    "housekeeping at random": _housekeeping,
    "encoder and decoder": _encoder_decoder,
    "one or two layers": _small_and_fast,
    "60 to 100 layers": _deep,
    "six steps": _few,
}

LATER: dict[str, Callable[[Machine], None]] = {
    "guided by a grammar": _guided,
    "two forwards a token": _guidance_twice,
    "tree drafts": _tree,
    "cache quantised in blocks": _flushed,
    "adapters at times": _adapters,
    "weights streamed": _streamed_weights,
    "asks for the end": _asks_for_the_end,
    "prompts scored beside": _scores_beside,
    "last stage of a pipeline": _last_stage,
}
"""Written when the detector had been mended by ``WORLDS``; not looked at since."""


def make(name: str, seed: int, hidden: bool = False) -> tuple[Events, Truth]:
    """The work of one program, and where its steps begin."""
    machine = Machine(seed, hidden)
    {**WORLDS, **LATER}[name](machine)
    return machine.made()
