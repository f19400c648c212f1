"""Programs that the detector of steps saw when it had been mended by ``decode_worlds``."""

from __future__ import annotations

from collections.abc import Callable

from decode_machine import COPY, MAIN, Machine, Shape, drawn

from llmprof.analysis.steps.events import TO_DEVICE, TO_HOST


def _guided(m: Machine) -> None:
    """A grammar's mask is copied to the device between logits and sampling."""
    e = drawn(m)
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
    e = drawn(m)
    e.step(Shape(1, 70, 70))
    for n in range(60):
        s = Shape(1, 1, 70 + n)
        e.forward(s)
        e.forward(s, border=False)
        m.kernel("guidance_combine", 3.0, 32)
        e.token(s)


def _tree(m: Machine) -> None:
    """Tree drafts: the accepted branch is compacted, a kernel a layer, and may be any length."""
    e = drawn(m, inputs=1)
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
    e = drawn(m)
    e.step(Shape(1, 96, 96))
    for n in range(130):
        e.step(Shape(1, 1, 96 + n))
        if n % 32 == 31:
            for _ in range(e.net.layers):
                m.kernel("quantise_block_k", 5.0, 64)
                m.kernel("quantise_block_v", 5.0, 64)


def _adapters(m: Machine) -> None:
    """Low-rank adapters of whoever is in the batch: none, or two kernels more a product."""
    e, plain = drawn(m, inputs=2), 0
    e.step(Shape(3, 50, 50))
    for n in range(100):
        if n % 9 == 0:
            plain = int(m.random.integers(0, 2))
        s = Shape(1 + int(m.random.integers(0, 5)), 1, 50 + n)
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
    e = drawn(m, layers=int(m.random.integers(4, 16)))
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
    e, left = drawn(m), 16
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
    e = drawn(m, inputs=1)
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
    e, r = drawn(m, outputs=1), m.random
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
