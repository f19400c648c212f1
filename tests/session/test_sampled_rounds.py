"""How long kernels and samples are recorded together, and how that is asked for."""

from __future__ import annotations

from array import array

import pytest

from llmprof.cli.parser import parse
from llmprof.records import RoundRecord
from llmprof.session.passes.sampled import DECODE_S, MOST_S, STEPS, sampled_length


def traced(step_ns: int, steps: int = 32, prefill_ns: int = 50_000_000) -> RoundRecord:
    stamps = array("q", (prefill_ns + i * step_ns for i in range(steps + 1)))
    return RoundRecord(
        round_id=1, engine_id=0, pass_name="traced", index=0, pid=1, tid=1, start_ns=0,
        prefill_start_ns=0, stamps_ns=stamps, end_ns=stamps[-1], complete=True,
    )  # fmt: skip


@pytest.mark.parametrize("step_ms", [1, 3.5, 8, 30])
@pytest.mark.parametrize("decode_len", [16, 64, 500])
def test_enough_steps_and_time_but_not_too_long(step_ms: float, decode_len: int) -> None:
    found = sampled_length(traced(int(step_ms * 1e6)), decode_len)
    decode_s = found.rounds * decode_len * step_ms / 1e3
    assert found.rounds >= 1
    whole = found.rounds * found.round_s
    if found.rounds > 1:
        assert whole <= MOST_S
    if whole + found.round_s <= MOST_S:
        assert found.rounds * decode_len >= STEPS
        assert decode_s >= DECODE_S - 1e-6


def test_a_round_without_steps_is_sampled_once() -> None:
    assert sampled_length(traced(1, steps=0), 64).rounds == 1


def test_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--bandwidth", "steps"]).bandwidth == "steps"
    assert parse([]).bandwidth is None
    with pytest.raises(SystemExit) as stopped:
        parse(["--bandwidth", "all"])
    assert stopped.value.code == 2
    assert "--bandwidth" in capsys.readouterr().err
