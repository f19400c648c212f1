"""Steps of ranks on GPUs: told by one store, in order with the requests in the pipe."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.engines.torch import rank_process
from llmprof.engines.torch.step_board import StepBoard


class Recorded:
    """In the engine's place: what it was told, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def launch_step(self) -> None:
        self.done.append("step")


@pytest.fixture
def pipe() -> Iterator[tuple[Channel, Channel]]:
    """(rank 0's side, the rank's side)."""
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    ends = Channel(back_read, to_write), Channel(to_read, back_write)
    yield ends
    for end in ends:
        end.close()


def test_both_counters_are_one_word(tmp_path: Path) -> None:
    board = StepBoard(tmp_path / "steps", create=True)
    other = StepBoard(tmp_path / "steps", create=False)
    for _ in range(3):
        board.message()
        board.step()
        board.step()
    assert other.seen == (3, 6)
    other.close()
    board.close()
    board.close()


@pytest.mark.parametrize("spin_s", [0.0, 0.25])
def test_steps_and_requests_are_done_in_the_order_of_rank_0(
    tmp_path: Path, pipe: tuple[Channel, Channel], spin_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_process, "SPIN_S", spin_s)
    board = StepBoard(tmp_path / "steps", create=True)
    told = [random.Random(5).choice(["step", "step", "step", "reset"]) for _ in range(400)]

    def rank_0() -> None:
        steps = 0
        for what in [*told, "end"]:
            if what == "step":
                steps += 1
                board.step()
            else:
                board.message()
                pipe[0].send({"do": what, "after": steps})

    rank = rank_process._Rank(pipe[1])
    engine: Any = Recorded()
    rank.engine, rank.board = engine, StepBoard(tmp_path / "steps", create=False)
    sender = threading.Thread(target=rank_0)
    sender.start()
    while (ask := rank.next())["do"] != "end":
        engine.done.append(ask["do"])
    sender.join()
    assert engine.done == told


def test_a_rank_that_sleeps_sees_that_rank_0_is_gone(
    tmp_path: Path, pipe: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_process, "SPIN_S", 0.0)
    rank = rank_process._Rank(pipe[1])
    rank.board = StepBoard(tmp_path / "steps", create=True)
    pipe[0].close()
    with pytest.raises(ChannelClosed):
        rank.next()
