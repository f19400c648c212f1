"""The loops that step the ExLlama engines, over small stand-ins for the engines."""

from __future__ import annotations

from typing import Any

import pytest

from llmprof.engines.exllama.drives import ForwardDrive, JobsDrive
from llmprof.engines.exllama.id_tokenizer import IdTokenizer, token_ids
from llmprof.engines.exllama.v2 import chosen_attention
from llmprof.errors import UsageError

torch = pytest.importorskip("torch", reason="the package torch is not installed")
VOCAB = 50


class Counting:
    """A model whose next token is the last one plus the positions seen; logits are padded."""

    def __init__(self) -> None:
        self.filled = 0

    def forward(self, ids: Any, prompt: bool) -> Any:
        self.filled += ids.shape[1]
        logits = torch.full((ids.shape[0], 1, VOCAB + 14), -1.0)
        logits[:, :, VOCAB:] = 99.0  # must never be chosen
        for row in range(ids.shape[0]):
            logits[row, 0, (int(ids[row, -1]) + self.filled) % VOCAB] = 1.0
        return logits

    def rewind(self) -> None:
        self.filled = 0


def forward_drive(synchronous: bool) -> ForwardDrive:
    model = Counting()
    return ForwardDrive(
        torch, model.forward, model.rewind, torch.inference_mode, VOCAB, synchronous, "cpu"
    )


def test_free_running_gives_the_tokens_of_the_synchronous_loop() -> None:
    waiting, running = forward_drive(True), forward_drive(False)
    prompt = [[3, 4, 5], [7, 8, 9]]
    for _ in range(2):  # a second round starts anew
        first = waiting.prefill(prompt)
        rows = [waiting.step() for _ in range(5)]
        assert running.prefill(prompt) == first == [8, 12]
        assert [running.step() for _ in range(5)] == [None] * 5
        assert running.finish() == rows
        assert running.finish() == []
        waiting.reset()
        running.reset()


def test_a_step_before_prefill_is_a_bug_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="before prefill"):
        forward_drive(True).step()


class Generator:
    """Emits tokens ``100 * job + n``; every other job starts an iteration late."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.jobs: dict[int, int] = {}
        self.pages: set[tuple[int, ...]] = set()
        self.hits = 0

    def enqueue(self, number: int, row: list[int]) -> None:
        self.hits += tuple(row) in self.pages
        self.pages.add(tuple(row))
        self.jobs[number] = -(number % 2)

    def num_remaining_jobs(self) -> int:
        return len(self.jobs)

    def clear_queue(self) -> None:
        self.jobs.clear()

    def iterate(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for number in list(self.jobs):
            self.jobs[number] += 1
            count = self.jobs[number]
            if count <= 0:
                results.append({"stage": "prefill", "identifier": number})
                continue
            token = torch.tensor([[100 * number + count]])
            results.append({"stage": "streaming", "identifier": number, "token_ids": token})
            if count == self.length:
                del self.jobs[number]
        return results


def jobs_drive(generator: Generator, batch: int) -> JobsDrive:
    return JobsDrive(generator, generator.enqueue, generator.pages.clear, batch)


def test_jobs_give_one_token_of_every_sequence() -> None:
    drive = jobs_drive(Generator(10), 2)
    assert drive.prefill([[1], [2]]) == [1, 101]
    assert [drive.step() for _ in range(3)] == [[2, 102], [3, 103], [4, 104]]


def test_a_round_never_finds_the_pages_of_the_one_before() -> None:
    generator = Generator(10)
    drive = jobs_drive(generator, 1)
    for _ in range(3):
        drive.reset()
        drive.prefill([[1, 2, 3]])
        drive.step()
    assert generator.hits == 0
    assert generator.num_remaining_jobs() == 1


def test_a_generator_that_ends_early_is_no_hang() -> None:
    drive = jobs_drive(Generator(2), 1)
    drive.prefill([[1]])
    drive.step()
    with pytest.raises(RuntimeError, match="before the forced length"):
        drive.step()


def test_a_failed_job_says_why() -> None:
    class Failing(Generator):
        def iterate(self) -> list[dict[str, Any]]:
            return [{"stage": "error", "error": "NaN"}]

    with pytest.raises(RuntimeError, match="NaN"):
        jobs_drive(Failing(3), 1).prefill([[1]])


@pytest.mark.parametrize(
    ("asked", "flash", "xformers", "chosen"),
    [
        ("auto", True, True, "flash"),
        ("auto", False, True, "xformers"),
        ("auto", False, False, "sdpa"),
        ("matmul", True, True, "matmul"),
    ],
)
def test_attention_is_the_best_that_is_there(asked, flash, xformers, chosen) -> None:
    assert chosen_attention(asked, flash, xformers) == chosen


def test_attention_that_is_not_installed() -> None:
    with pytest.raises(UsageError, match="pip install flash-attn"):
        chosen_attention("flash", False, False)


def test_the_tokenizer_has_a_piece_for_every_padded_logit() -> None:
    ids = token_ids({"bos_token_id": 7, "eos_token_id": [9, 8], "pad_token_id": 999}, 300)
    assert ids == {"bos_token_id": 7, "eos_token_id": 9, "pad_token_id": 0}
    tokenizer = IdTokenizer(300, ids)
    assert len(tokenizer.get_id_to_piece_list(True)) == 384
    assert tokenizer.decode(torch.tensor([[1, 2, 3]])) == ["aaa"]
