"""Made-up device work of programs that decode, with the rows at which their steps begin.

A step may begin anywhere from the end of its predecessor's logits to its own first embedding, so
the truth is a stretch of rows a step. Names can be hidden: then only what repeats is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from llmprof.analysis.steps.events import KERNEL, ON_DEVICE, SET, TO_DEVICE, TO_HOST, Events

STREAM, SIDE = 7, 9


@dataclass
class Program:
    """Rows are added as the program runs."""

    seed: int
    hidden: bool = False
    """Kernels are called k0, k1, …"""
    now: int = 1_000_000
    stream: int = STREAM
    names: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    truth: list[tuple[int, int]] = field(default_factory=list)
    """First and last row that may be the first of a step, in the order in which rows were added."""
    launch: int = 0
    node: int = 0
    logits: int = 0
    """The row behind the logits of the last step."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def run(
        self,
        name: str,
        ns: int,
        idle: int = 500,
        size: int = 1,
        what: int = KERNEL,
        graph: bool = False,
        stream: int | None = None,
    ) -> None:
        """One kernel, copy or set behind the last one."""
        if graph:
            self.node += 1
        else:
            self.launch += 1
        length = max(300, int(ns * self.random.normal(1, 0.04)))
        self.now += max(0, int(idle * self.random.lognormal(0, 0.4)))
        number = self.names.setdefault(name, len(self.names))
        node = self.node if graph else 0
        lane = self.stream if stream is None else stream
        row = (self.now, self.now + length, number, what, size, lane, node, self.launch)
        self.rows.append(row)
        if lane == self.stream:
            self.now += length

    def wait(self, ns: int) -> None:
        self.now += int(ns * self.random.lognormal(0, 0.3))

    def events(self) -> Events:
        """All rows in order of their start."""
        table = np.array(self.rows, np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        last = len(order) - 1
        self.truth = [
            (int(place[low : high + 1].min()), int(place[min(high, last)]))
            for low, high in self.truth
            if low <= last
        ]
        names = [f"k{n}" if self.hidden else name for name, n in self.names.items()]
        return Events(*table[order].T, names)


@dataclass(frozen=True)
class Model:
    """What one forward runs."""

    layers: int = 24
    graph: bool = False
    tensor_parallel: bool = False
    experts: bool = False
    state_space: bool = False
    """Three of four layers have no attention."""
    fused: bool = False
    """Compiled: every kernel has a name of its own."""
    sampler: str = "argmax_kernel"
    """Empty: logits go to the host."""
    penalties: int = 0
    token_copy: int = 8
    """Bytes; 0: tokens stay on the device."""
    inputs: bool = False
    """Ids and positions are copied to the device each step."""
    side_copies: bool = False
    noise: float = 0.0
    """Chance of a stray kernel before each one."""
    split_at: int = 256
    """KV length from which attention is split, with a kernel more a layer."""
    host_ns: int = 20_000
    """The host's pause behind the token."""
    idle_ns: int = 600


def step(
    p: Program, m: Model, kv: int, tokens: int = 1, batch: int = 1, prefill: bool = False
) -> None:
    """One forward and its token. ``prefill``: other kernels, more work."""
    graph = m.graph and not prefill
    idle = 0 if graph else m.idle_ns
    if graph:
        p.launch += 1
        p.node = 10_000 * m.layers

    def kernel(name: str, ns: int, size: int = 1) -> None:
        if m.noise and p.random.random() < m.noise:
            p.run(f"stray_{int(p.random.integers(3))}", 1500)
        p.run(("graph_" if graph else "") + name, ns, idle, size, graph=graph)

    low = p.logits or len(p.rows)
    if m.inputs:
        p.run("[to device]", 1200, m.idle_ns, 8 * batch, TO_DEVICE)
    if not graph:
        kernel("prepare_inputs", 1000, batch)
    p.truth.append((low, len(p.rows)))
    kernel("embedding_lookup", 2500, batch * tokens)
    wide = "wide_" if prefill else ""
    for layer in range(m.layers):
        if m.fused:
            kernel(f"fused_{layer}_a", 3000, batch)
            kernel(f"fused_{layer}_b", 9000, 128)
            continue
        kernel("rms_norm", 2000, batch * tokens)
        kernel(wide + "gemm_qkv", 40_000 if prefill else 12_000, 96 + tokens // 16)
        _mix(kernel, m, layer, kv, tokens, prefill)
        kernel(wide + "gemm_out", 8000, 64)
        if m.tensor_parallel:
            kernel("ncclDevKernel_AllReduce", 7000)
        kernel("add", 1200, batch * tokens)
        kernel("rms_norm", 2000, batch * tokens)
        if m.experts:
            kernel("moe_topk_gating", 2000)
            for _ in range(int(p.random.integers(1, 6))):
                kernel("expert_gemm", 6000, int(p.random.integers(8, 64)))
        else:
            kernel(wide + "gemm_up", 20_000, 172)
            kernel("silu_mul", 1500, batch * tokens)
            kernel(wide + "gemm_down", 12_000, 64)
        kernel("add", 1200, batch * tokens)
        if m.side_copies and layer % 8 == 0:
            p.run("[on device]", 4000, 0, 4096, ON_DEVICE, stream=SIDE)
    kernel("rms_norm", 2000, batch)
    kernel("gemm_lm_head", 30_000, 500)
    p.logits = len(p.rows)
    if m.sampler:
        for n in range(m.penalties):
            p.run(f"penalty_{n}", 1500)
        p.run(m.sampler, 6000, m.idle_ns, batch)
    size = m.token_copy * batch if m.sampler else 4 * 128_000 * batch
    if size:
        p.run("[to host]", 1500 if m.sampler else 20_000, m.idle_ns, size, TO_HOST)
    if m.host_ns:
        p.wait(m.host_ns)


def _mix(
    kernel: Callable[..., None], m: Model, layer: int, kv: int, tokens: int, prefill: bool
) -> None:
    if m.state_space and layer % 4 != 3:
        kernel("causal_conv", 2500)
        kernel("selective_scan", 6000, 64)
        return
    kernel("rope", 1500, tokens)
    kernel("cache_write", 1200, tokens)
    if prefill:
        kernel("flash_prefill", 30_000, 32 * max(1, tokens // 64))
    elif kv > m.split_at:
        kernel("flash_split", 4000 + 5 * kv, 32 * (kv // m.split_at))
        kernel("flash_combine", 1500, 32)
    else:
        kernel("flash_decode", 3000 + 8 * kv, 32)


def requests(p: Program, m: Model, count: int = 3, steps: int = 40, batch: int = 1) -> None:
    """Requests one after the other, with prompts of any length and a pause between them."""
    for _ in range(count):
        prompt = int(p.random.integers(30, 1000))
        step(p, m, prompt, prompt, batch, prefill=True)
        for n in range(steps):
            step(p, m, prompt + n, batch=batch)
        p.now += 40_000_000


def _graph_or_eager(p: Program) -> None:
    """A padded graph, now and then an eager step; the batch changes."""
    batch = 1
    for n in range(160):
        if n % 40 == 0:
            batch = int(p.random.integers(1, 8))
            step(p, Model(), 200, 200, prefill=True)
        step(p, Model(graph=p.random.random() > 0.15), 200 + n % 40, batch=batch)


def _continuous(p: Program) -> None:
    """Prompts join at any time, in chunks."""
    batch = 1
    for n in range(200):
        batch = min(32, max(1, batch + int(p.random.integers(-1, 2))))
        mixed = p.random.random() < 0.2
        tokens = int(p.random.integers(16, 256)) if mixed else 1
        step(p, Model(graph=not mixed), 100 + n, tokens, batch, prefill=mixed)


def _speculative(p: Program, drafts: int = 5) -> None:
    """A small model drafts 1 to ``drafts`` tokens, the large one verifies them."""
    step(p, Model(), 100, 100, prefill=True)
    for n in range(60):
        low = p.logits
        for _ in range(int(p.random.integers(1, drafts + 1))):
            step(p, Model(layers=4, host_ns=0), 100 + 3 * n)
            p.truth.pop()
        step(p, Model(), 100 + 3 * n, drafts)
        p.truth[-1] = (low, low + 4)


def _two_models(p: Program) -> None:
    """One process serves two models, request by request."""
    for n in range(4):
        requests(p, Model(layers=32) if n % 2 else Model(layers=12, graph=True), 1, 30)


def _two_threads(p: Program) -> None:
    """Two requests at once, on a stream each."""
    requests(p, Model(), 1, 80)
    first, p.now, p.stream, p.logits = len(p.rows), 7_000_000, SIDE, 0
    requests(p, Model(), 1, 80)
    begins = next(n for n, (_, high) in enumerate(p.truth) if high >= first)
    del p.truth[begins]


def _load_first(p: Program) -> None:
    for _ in range(300):
        p.run("init_normal", 50_000, 100, 10_000)
    for _ in range(200):
        p.run("[to device]", 90_000, 5000, 1 << 24, TO_DEVICE)
    p.logits = len(p.rows)
    requests(p, Model())


def _housekeeping(p: Program) -> None:
    """Pages are allocated every 16th step, statistics made every 7th."""
    step(p, Model(), 64, 64, prefill=True)
    for n in range(160):
        if n % 16 == 0:
            p.run("alloc_pages", 9000, 2000)
            p.run("[set]", 1000, 500, 4096, SET)
        step(p, Model(), 64 + n)
        if n % 7 == 0:
            p.run("stats", 2000)
            p.run("[to host]", 1500, 200, 64, TO_HOST)


def _of(model: Model, **rest: int) -> Callable[[Program], None]:
    return lambda p: requests(p, model, **rest)


_GRAPH = Model(graph=True)
SCENARIOS: dict[str, Callable[[Program], None]] = {
    "eager": _of(Model()),
    "eager, batch 8": _of(Model(), batch=8),
    "stray kernels 3 %": _of(Model(noise=0.03)),
    "graph": _of(_GRAPH),
    "graph, inputs copied": _of(replace(_GRAPH, inputs=True)),
    "graph, runs free": _of(replace(_GRAPH, host_ns=0, token_copy=0, idle_ns=100)),
    "split attention from 150 on": _of(Model(split_at=150)),
    "tensor parallel": _of(Model(tensor_parallel=True)),
    "experts, any number of kernels": _of(Model(experts=True)),
    "state space, 3 of 4 layers": _of(Model(state_space=True)),
    "compiled, all names unique": _of(Model(fused=True)),
    "sampler without a name": _of(Model(sampler="mystery")),
    "logits to the host": _of(Model(sampler="")),
    "copies on a side stream": _of(Model(side_copies=True)),
    "20 penalties behind the logits": _of(Model(penalties=20)),
    "80 layers": _of(Model(layers=80), steps=20, count=2),
    "2 layers": _of(Model(layers=2), steps=60),
    "5 steps": _of(Model(), count=1, steps=5),
    "400 steps": _of(Model(layers=16), count=2, steps=400),
    "loading before": _load_first,
    "graph and eager": _graph_or_eager,
    "continuous batching": _continuous,
    "speculative, 1-5 drafts": _speculative,
    "two models in one process": _two_models,
    "two threads, two streams": _two_threads,
    "housekeeping now and then": _housekeeping,
}


def make(name: str, seed: int = 0, hidden: bool = False) -> tuple[Events, list[tuple[int, int]]]:
    """(the work, for every step but the trace's first the rows that may be its first one)."""
    program = Program(seed, hidden)
    SCENARIOS[name](program)
    events = program.events()
    return events, sorted(program.truth)[1:]


def quality(found: np.ndarray, truth: list[tuple[int, int]]) -> tuple[int, int, int]:
    """(right, found, true) borders; a border is right in a stretch that no other one is in.

    Borders before the first true one and behind the last are not looked at: where the first step
    of a trace begins is not to be seen.
    """
    low = np.array([a for a, _ in truth])
    high = np.array([b for _, b in truth])
    borders = np.unique(found)
    borders = borders[(borders >= low.min() - 5) & (borders <= high.max() + 5)]
    place = np.searchsorted(low, borders, "right") - 1
    inside = (place >= 0) & (borders <= high[np.maximum(place, 0)])
    return len(np.unique(place[inside])), len(borders), len(truth)
