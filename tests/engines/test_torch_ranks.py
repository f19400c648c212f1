"""The torch engine over several processes: the tokens of one, and what happens when a rank ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import small_models

from llmprof.engines.base import LoadRequest, RankedEngine
from llmprof.engines.torch.engine import TorchEngine
from llmprof.errors import LlmprofError, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
PROMPTS = [[3, 141, 59, 26, 5, 35], [7, 1, 88, 90, 12, 4]]


def load(model: str, **options: str) -> TorchEngine:
    engine = TorchEngine()
    request = LoadRequest(model, {"device": "cpu", "threads": "1", **options}, 2, 64, seed=1)
    engine.load(request, lambda text, share: None)
    return engine


def decode(engine: TorchEngine, steps: int) -> list[list[int]]:
    engine.reset()
    rows = [engine.prefill(PROMPTS)]
    for _ in range(steps):
        row = engine.decode_step()
        assert row is not None
        rows.append(row)
    return [list(row) for row in rows]


def test_two_ranks_give_the_tokens_of_one() -> None:
    one = load("tiny")
    wanted = decode(one, 12)
    two = load("tiny", tp="2")
    try:
        assert isinstance(two, RankedEngine)
        assert decode(two, 12) == wanted
        assert decode(two, 12) == wanted  # reset reaches every rank
        ranks = two.ranks()
        assert [r.rank for r in ranks] == [0, 1]
        assert ranks[0].pid == os.getpid() != ranks[1].pid
        info, whole = two.describe(), one.describe()
        assert info.ranks == 2
        assert info.parameters == whole.parameters
        assert info.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
        # Two fp32 sequences of 256 values; a value and a token of each sequence from both ranks.
        assert info.collective_bytes == {"AllReduce": 2 * 256 * 4, "AllGather": 2 * 2 * 8}
    finally:
        two.close()


def test_stored_weights_with_a_tied_head(tmp_path: Path) -> None:
    folder = small_models.write_hf(tmp_path / "small", small_models.weights())
    wanted = decode(load(str(folder)), 6)
    two = load(str(folder), tp="2")
    try:
        assert decode(two, 6) == wanted
    finally:
        two.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "3"}, "do not divide among 3 ranks"),
        ({"tp": "0"}, "expected an integer ≥ 1"),
    ],
)
def test_what_does_not_divide_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load("tiny", **options)


def test_a_rank_that_dies_is_named_and_ends_the_round() -> None:
    engine = load("tiny", tp="2")
    try:
        decode(engine, 1)
        victim = engine.ranks()[1].pid
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(LlmprofError, match=rf"rank 1 \(process {victim}\) was killed by SIGK"):
            decode(engine, 3)
    finally:
        engine.close()


def test_a_rank_that_stands_still_ends_the_round_in_bounded_time() -> None:
    engine = load("tiny", tp="2", timeout="2")
    try:
        decode(engine, 1)
        os.kill(engine.ranks()[1].pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(LlmprofError, match=r"did not come to a collective within 2 s"):
            decode(engine, 3)
        assert time.monotonic() - begun < 60.0
    finally:
        engine.close()
