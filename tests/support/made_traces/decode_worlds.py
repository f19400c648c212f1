"""Programs that decode, drawn at random (``decode_machine``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from decode_machine import (
    COPY,
    MAIN,
    OTHER,
    Engine,
    Machine,
    Net,
    Shape,
    Truth,
    drawn,
    requests,
)
from decode_worlds_later import LATER

from llmprof.analysis.steps.events import SET, TO_DEVICE, TO_HOST, Events


def _any_dense(m: Machine) -> None:
    requests(drawn(m), 3, 40)


def _any_graph(m: Machine) -> None:
    requests(drawn(m, mode="graph"), 3, 40, int(m.random.integers(1, 17)))


def _piecewise(m: Machine) -> None:
    requests(drawn(m, mode="piecewise", layers=int(m.random.integers(4, 24))), 3, 35)


def _split_k(m: Machine) -> None:
    """The key-value length passes many limits, a few steps each."""
    requests(drawn(m, splits=True), 2, 60, grow=int(m.random.integers(3, 30)))


def _split_k_graph(m: Machine) -> None:
    requests(drawn(m, mode="graph", splits=True), 2, 60, grow=int(m.random.integers(3, 30)))


def _speculative(m: Machine) -> None:
    """A draft model, as many drafts as it likes; the large model verifies all at once."""
    big = drawn(m, inputs=1)
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
    e = drawn(m, inputs=2)
    e.step(Shape(1, 300, 300))
    for n in range(90):
        e.step(
            Shape(1, 1 + int(m.random.integers(0, 8)) * int(m.random.random() < 0.6), 300 + 2 * n)
        )


def _draft_heads(m: Machine) -> None:
    """Small heads draft three tokens within each step (EAGLE, MTP)."""
    e = drawn(m, inputs=1)
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
    engines = [drawn(m, name="one"), drawn(m, name="two", mode="graph")]
    for _ in range(6):
        e = engines[int(m.random.integers(0, 2))]
        for other in engines:
            if other is not e:
                e.logits = max(e.logits, other.logits)
        requests(e, 1, 25)


def _embedder_beside(m: Machine) -> None:
    """A model that never decodes answers between two requests."""
    e, other = drawn(m), Net(m.random, name="emb", layers=12)
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
        requests(e, 1, 30)


def _two_threads(m: Machine) -> None:
    """Two requests of one model at once, a stream and a thread each."""
    one = drawn(m)
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
    requests(drawn(m, reduce=True, layers=int(m.random.integers(4, 30))), 3, 30)


def _offload(m: Machine) -> None:
    """Blocks of the cache are copied on a stream of their own, whenever there is time."""
    e = drawn(m)
    e.step(Shape(1, 500, 500))
    for n in range(90):
        e.step(Shape(1, 1, 500 + n))
        if m.random.random() < 0.4:
            for _ in range(int(m.random.integers(1, 5))):
                m.copy(TO_HOST if m.random.random() < 0.5 else TO_DEVICE, 1 << 22, COPY)


def _buckets(m: Machine) -> None:
    """Continuous batching: graphs padded to a few sizes, eager beyond, prompts join."""
    e, batch = drawn(m, mode="graph", inputs=3), 4
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
    e, left, batch = drawn(m, inputs=2), 0, 6
    for n in range(150):
        if left <= 0 and m.random.random() < 0.08:
            left = int(m.random.integers(300, 4000))
        chunk = min(left, int(m.random.choice([256, 512])))
        left -= chunk
        e.step(Shape(1, chunk + batch, 900 + n) if chunk > 0 else Shape(batch, 1, 900 + n))


def _ahead(m: Machine) -> None:
    """Asynchronous scheduling: the token of a step goes to the host on a side stream while the
    next one runs."""
    e = drawn(m, mode=str(m.random.choice(["graph", "eager"])), outputs=0, inputs=1, think=8)
    m.slow = 2.0
    e.step(Shape(4, 100, 100), "eager")
    for n in range(90):
        e.step(Shape(4, 1, 100 + n))
        m.order(MAIN, COPY)
        m.copy(TO_HOST, 32, COPY)


def _many_a_copy(m: Machine) -> None:
    """Several steps are launched at once, their tokens are copied together."""
    e, many = drawn(m, outputs=0, think=3), int(m.random.choice([4, 8]))
    e.step(Shape(2, 128, 128))
    for n in range(96):
        e.step(Shape(2, 1, 128 + n))
        if n % many == many - 1:
            m.copy(TO_HOST, 16 * many)
            m.wait()
            m.think(200)


def _beams(m: Machine) -> None:
    """The cache is reordered in every step, a kernel a layer."""
    e = drawn(m, sampler=4)
    e.step(Shape(4, 60, 60))
    for n in range(60):
        e.step(Shape(4, 1, 60 + n))
        for _ in range(2 * e.net.layers):
            m.kernel("index_select_cache", 3.0, 200)


def _log_probabilities(m: Machine) -> None:
    """Some requests want them: a few copies more in some steps."""
    e = drawn(m)
    e.step(Shape(2, 100, 100))
    for n in range(90):
        s = Shape(2, 1, 100 + n)
        e.forward(s)
        if m.random.random() < 0.3:
            m.kernel("log_softmax", 4.0, 2)
            m.kernel("topk_logprobs", 6.0, 2)
        e.token(s, int(m.random.integers(0, 3)))


def _samples_on_host(m: Machine) -> None:
    requests(drawn(m, on_host=True, inputs=3), 3, 40)


def _experts_apart(m: Machine) -> None:
    """A launch an expert: no two steps have as many kernels."""
    e = drawn(m, pattern=["attention", "experts"], experts=8, layers=int(m.random.integers(4, 20)))
    requests(e, 2, 45, int(m.random.integers(1, 5)))


def _compiled(m: Machine) -> None:
    requests(drawn(m, fused=True, mode=str(m.random.choice(["graph", "eager"]))), 3, 40)


def _warm_up_first(m: Machine) -> None:
    """Weights are loaded, shapes tried, graphs captured (eager runs), then requests come."""
    e = drawn(m, mode="graph", layers=int(m.random.integers(4, 20)))
    for _ in range(150):
        m.copy(TO_DEVICE, 1 << 24)
    for batch in (32, 16, 8, 4, 2, 1):
        for _ in range(2):
            e.forward(Shape(batch), "eager", border=False)
    e.logits = len(m.rows) - 1
    m.wait()
    m.think(20_000)
    requests(e, 3, 40)


def _housekeeping(m: Machine) -> None:
    """Pages, adapters and statistics now and then, at no fixed distance."""
    e = drawn(m)
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
    e, encoder = drawn(m, layers=6, pattern=["attention", "attention"]), Net(m.random, name="enc")
    for _ in range(4):
        for _, part in encoder.body(Shape(1, 600, 600)):
            for k in part:
                m.kernel("enc_" + k.name, k.us, k.size)
        requests(e, 1, 25, pause=100)


def _small_and_fast(m: Machine) -> None:
    """One or two layers: hardly anything repeats within a step."""
    requests(drawn(m, layers=int(m.random.integers(1, 3))), 2, 120)


def _deep(m: Machine) -> None:
    requests(drawn(m, layers=int(m.random.integers(60, 100))), 2, 12)


def _few(m: Machine) -> None:
    e = drawn(m)
    for n in range(6):
        e.step(Shape(1, 1, 300 + n))


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


def make(name: str, seed: int, hidden: bool = False) -> tuple[Events, Truth]:
    """The work of one program, and where its steps begin."""
    machine = Machine(seed, hidden)
    {**WORLDS, **LATER}[name](machine)
    return machine.made()


def make_several(seed: int, hidden: bool = False) -> tuple[Events, Truth]:
    """Three programs, drawn too, one after the other in one process."""
    machine = Machine(seed, hidden)
    able = [name for name in WORLDS if name != "two threads"]
    for name in machine.random.choice(able, 3, replace=False).tolist():
        WORLDS[name](machine)
        machine.wait()
        machine.think(30_000)
        machine.before = len(machine.rows) - 1
    return machine.made()
