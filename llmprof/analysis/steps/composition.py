"""What a step computes, from the names that engines write on its range.

Formats, each with the place in the engine that writes it:

* vLLM ``vllm/v1/worker/gpu_worker.py`` (``annotate_profile``): requests and tokens of prompts
  (context) and of decoding (generation): ``execute_context_1(888)_generation_32(32)``. Behind the
  tokens there may be the sum of their squares, ``(888_788544)``. With
  ``detailed_trace_annotation``:
  ``execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk55086sqsq32sqsk55086)``: sums over
  the requests of query length (sq), KV length (sk), sq², and sq·sk.
* SGLang ``sglang/srt/utils/profile_utils.py`` (``build_step_span_name``): ``step[DECODE bs=31]``,
  ``step[EXTEND bs=2 toks=512]``, ``step[MIXED bs=2 c=1 g=1 c_sq=5 c_sk=8 … g_sq=1 g_sk=12 …]``,
  ``step[TARGET_VERIFY bs=4]``, and the same sums with ``c_`` (context) and ``g_`` before them.
* TensorRT-LLM ``tensorrt_llm/_torch/pyexecutor/py_executor.py`` (``_forward_step``):
  ``[Executor] _forward_step 17: 1 ctx reqs, 512 ctx tokens, 4 gen reqs``; older ones have no token
  count or no number.
* ATOM: ``prefill[bs=6 tok=17408 ctx=[4096, …] sk=17408]``, ``decode[bs=4 tok=16 p=0 d=4 spec=3]``,
  ``eager_decode[bs=32]``.
* vLLM's older profilers: ``prefill_batch``, ``decode_batch``, ``mixed_batch``.

A name in no format is just a name; where it says prefill or decode in words it is taken at its
word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from llmprof.records.steps import (
    Composition,
    StepPhase,
)

LONGEST = 2_000
"""Characters of a text that are looked at."""
_VLLM = re.compile(
    r"execute(?:_(\d{1,9}))?_context_(\d{1,9})\(([^()]{0,120})\)"
    r"_generation_(\d{1,9})\(([^()]{0,120})\)"
)
_SUMS = re.compile(r"(sqsq|sqsk|sq|sk)(\d{1,18})")
_SGLANG = re.compile(r"step\[([A-Z_]{1,40})((?: [a-z_]{1,20}=\d{1,18}){0,20})")
_PAIR = re.compile(r"([a-z_]{1,20})=(\d{1,18})")
_TRTLLM = re.compile(
    r"_forward_step(?: \d{1,12})?: (\d{1,9}) ctx reqs,"
    r"(?: (\d{1,12}) ctx tokens,)? (\d{1,9}) gen reqs"
)
_ATOM = re.compile(r"\b(?:eager_)?(prefill|decode|mixed)\[(bs=[^\n]{0,400})")
_BATCH = re.compile(r"\b(prefill|decode|mixed)_batch\b")
_PREFILL = re.compile(r"(?<![a-z])(prefill|extend|prompt|context.?phase)(?![a-z])", re.IGNORECASE)
_DECODE = re.compile(r"(?<![a-z])(decod\w*|generat\w*|next.?token|gen.?step)", re.IGNORECASE)
_VERIFY = re.compile(r"(?<![a-z])(target.?)?verify(?![a-z])", re.IGNORECASE)
_MIXED = re.compile(r"(?<![a-z])mixed(?![a-z])", re.IGNORECASE)

_SGLANG_PHASE: dict[str, StepPhase] = {
    "DECODE": "decode",
    "EXTEND": "prefill",
    "PREFILL": "prefill",
    "MIXED": "mixed",
    "TARGET_VERIFY": "verify",
    "VERIFY": "verify",
    "IDLE": "other",
}


@lru_cache(maxsize=65_536)
def composition(text: str) -> Composition | None:
    """What the range's text says; ``None``: nothing that is known. Never raises."""
    if len(text) > LONGEST:
        return None
    for read in _READERS:
        found = read(text)
        if found is not None:
            return found
    return None


def phase_of(text: str) -> StepPhase | None:
    """Prefill, decode …, where the text says so in a format or in words."""
    found = composition(text)
    if found is not None:
        return found.phase
    text = text[:LONGEST]
    for words, phase in _WORDS:
        if words.search(text):
            return phase
    return None


_WORDS: tuple[tuple[re.Pattern[str], StepPhase], ...] = (
    (_MIXED, "mixed"),
    (_VERIFY, "verify"),
    (_PREFILL, "prefill"),
    (_DECODE, "decode"),
)


def _phase(context: int, generation: int) -> StepPhase:
    if context and generation:
        return "mixed"
    if context:
        return "prefill"
    return "decode" if generation else "other"


def _vllm(text: str) -> Composition | None:
    match = _VLLM.search(text)
    if match is None:
        return None
    context, generation = int(match[2]), int(match[4])
    first, second = _sums(match[3]), _sums(match[5])
    return Composition(
        phase=_phase(context, generation),
        engine="vLLM",
        context_requests=context,
        generation_requests=generation,
        context_tokens=first.get("sq"),
        generation_tokens=second.get("sq"),
        kv_tokens=_added(first.get("sk"), second.get("sk")),
        attention_pairs=_added(first.get("sqsk"), second.get("sqsk")),
    )


def _sums(inner: str) -> dict[str, int]:
    """``888``, ``888_788544`` or ``sq32sk55086…``."""
    named = {name: int(value) for name, value in _SUMS.findall(inner)}
    if named:
        return named
    first = inner.partition("_")[0]
    return {"sq": int(first)} if first.isascii() and first.isdigit() and len(first) < 19 else {}


def _added(*parts: int | None) -> int | None:
    there = [part for part in parts if part is not None]
    return sum(there) if there else None


def _sglang(text: str) -> Composition | None:
    match = _SGLANG.search(text)
    if match is None:
        return None
    phase = _SGLANG_PHASE.get(match[1], "other")
    said = {key: int(value) for key, value in _PAIR.findall(match[2])}
    batch, tokens = said.get("bs"), said.get("toks")
    context = said.get("c", batch if phase == "prefill" else 0)
    generation = said.get("g", batch if phase in ("decode", "verify") else 0)
    decoded = said.get("g_sq", generation if phase in ("decode", "mixed") else tokens)
    return Composition(
        phase=phase,
        engine="SGLang",
        context_requests=context,
        generation_requests=generation,
        context_tokens=said.get("c_sq", tokens if phase == "prefill" else (None if context else 0)),
        generation_tokens=decoded if generation else 0,
        kv_tokens=_added(said.get("c_sk"), said.get("g_sk")),
        attention_pairs=_added(said.get("c_sqsk"), said.get("g_sqsk")),
    )


def _trtllm(text: str) -> Composition | None:
    match = _TRTLLM.search(text)
    if match is None:
        return None
    context, generation = int(match[1]), int(match[3])
    tokens = int(match[2]) if match[2] else (None if context else 0)
    return Composition(
        phase=_phase(context, generation),
        engine="TensorRT-LLM",
        context_requests=context,
        generation_requests=generation,
        context_tokens=tokens,
        # With speculative decoding a request has more than one; the name does not say.
        generation_tokens=None if generation else 0,
        kv_tokens=None,
        attention_pairs=None,
    )


def _atom(text: str) -> Composition | None:
    match = _ATOM.search(text)
    if match is None:
        return None
    said = {key: int(value) for key, value in _PAIR.findall(match[2])}
    batch, tokens = said.get("bs"), said.get("tok")
    prefill = match[1] == "prefill"
    context = said.get("p", batch if prefill else 0)
    generation = said.get("d", 0 if prefill else batch)
    phase = _phase(context or 0, generation or 0)
    if phase == "decode" and said.get("spec", 0) > 0:
        phase = "verify"
    return Composition(
        phase=phase,
        engine="ATOM",
        context_requests=context,
        generation_requests=generation,
        context_tokens=tokens if phase == "prefill" else (None if context else 0),
        generation_tokens=tokens if phase in ("decode", "verify") else (None if generation else 0),
        kv_tokens=said.get("sk"),
        attention_pairs=said.get("sqsk"),
    )


def _batch(text: str) -> Composition | None:
    match = _BATCH.search(text)
    if match is None:
        return None
    phases: dict[str, StepPhase] = {"prefill": "prefill", "decode": "decode", "mixed": "mixed"}
    return Composition(phase=phases[match[1]], engine="vLLM")


_READERS: tuple[Callable[[str], Composition | None], ...] = (_vllm, _sglang, _trtllm, _atom, _batch)
