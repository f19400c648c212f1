"""What engines write on the ranges of their steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprof.analysis.steps.composition import composition, phase_of

ASKED = ("phase", "context_requests", "generation_requests", "context_tokens",
         "generation_tokens", "kv_tokens", "attention_pairs")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "engine", "values"),
    [
        ("execute_context_1(888)_generation_32(32)", "vLLM", ("mixed", 1, 32, 888, 32, None, None)),
        ("execute_context_0(0)_generation_4(4)", "vLLM", ("decode", 0, 4, 0, 4, None, None)),
        ("execute_context_1(888_788544)_generation_0(0)", "vLLM",
         ("prefill", 1, 0, 888, 0, None, None)),
        ("execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk55086sqsq32sqsk55086)", "vLLM",
         ("decode", 0, 32, 0, 32, 55086, 55086)),
        ("step[DECODE bs=31]", "SGLang", ("decode", 0, 31, 0, 31, None, None)),
        ("step[DECODE bs=2 g_sqsq=2 g_sqsk=30 g_sk=30]", "SGLang",
         ("decode", 0, 2, 0, 2, 30, 30)),
        ("step[EXTEND bs=2 toks=512]", "SGLang", ("prefill", 2, 0, 512, 0, None, None)),
        ("step[EXTEND bs=2 toks=12 c_sqsq=80 c_sqsk=120 c_sk=20]", "SGLang",
         ("prefill", 2, 0, 12, 0, 20, 120)),
        ("step[MIXED bs=2 c=1 g=1 c_sq=5 c_sk=8 c_sqsq=25 c_sqsk=40 g_sq=1 g_sk=12 g_sqsq=1"
         " g_sqsk=12]", "SGLang", ("mixed", 1, 1, 5, 1, 20, 52)),
        ("step[TARGET_VERIFY bs=4]", "SGLang", ("verify", 0, 4, 0, None, None, None)),
        ("[Executor] _forward_step 17: 1 ctx reqs, 512 ctx tokens, 4 gen reqs", "TensorRT-LLM",
         ("mixed", 1, 4, 512, None, None, None)),
        ("[Executor] _forward_step 17: 0 ctx reqs, 4 gen reqs", "TensorRT-LLM",
         ("decode", 0, 4, 0, None, None, None)),
        ("[Executor] _forward_step: 2 ctx reqs, 0 gen reqs", "TensorRT-LLM",
         ("prefill", 2, 0, None, 0, None, None)),
        ("prefill[bs=6 tok=17408 ctx=[4096, 4096, 4096]...+3 sqsq=59768832 sqsk=59768832 sk=17408"
         " tbo=1]", "ATOM", ("prefill", 6, 0, 17408, 0, 17408, 59768832)),
        ("decode[bs=64 tok=64 d=64]", "ATOM", ("decode", 0, 64, 0, 64, None, None)),
        ("decode[bs=4 tok=16 p=0 d=4 spec=3]", "ATOM", ("verify", 0, 4, 0, 16, None, None)),
        ("eager_decode[bs=32]", "ATOM", ("decode", 0, 32, 0, None, None, None)),
        ("mixed_batch", "vLLM", ("mixed", None, None, None, None, None, None)),
    ],
)  # fmt: skip
def test_formats(text: str, engine: str, values: tuple[object, ...]) -> None:
    found = composition(text)
    assert found is not None and found.engine == engine
    assert tuple(getattr(found, name) for name in ASKED) == values


def test_tokens_of_a_verifying_step_are_not_known() -> None:
    verify, decode = composition("step[TARGET_VERIFY bs=4]"), composition("step[DECODE bs=4]")
    assert verify is not None and verify.new_tokens is None
    assert decode is not None and decode.new_tokens == 4


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ("decode 17", "decode"),
        ("prefill", "prefill"),
        ("gpu_model_runner: forward", None),
        ("MyEngine.prefill_step", "prefill"),
        ("verify drafts", "verify"),
        ("gen_step", "decode"),
        ("moe_expert", None),
    ],
)
def test_words(text: str, phase: str | None) -> None:
    assert composition(text) is None
    assert phase_of(text) == phase


@given(st.text(max_size=200) | st.from_regex(r"execute_context_\d{1,30}\(.{0,20}\)_gen.{0,20}"))
def test_any_text(text: str) -> None:
    found = composition(text)
    phase_of(text)
    if found is not None:
        numbers = [getattr(found, name) for name in ASKED[1:]]
        assert all(n is None or n >= 0 for n in numbers)
