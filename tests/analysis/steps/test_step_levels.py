"""Which of the cycles inside one another is a step."""

from __future__ import annotations

from llmprof.analysis.steps.levels import Level, best_of


def levels(embedding: bool) -> list[Level]:
    """As a recorded vLLM has them: five requests of 59 steps with pauses between, and what takes
    part in every step; the copies of its tokens are on a stream of their own and come late."""
    inner = Level(132.0, 365, 0.556, 0.995, 0.95, embedding=embedding, score=1.245)
    outer = Level(7926.0, 6, 0.157, 1.0, 0.158, sampling=True, embedding=True, layered=True)
    outer.score = 1.019
    return [inner, outer]


def test_a_request_is_not_a_step() -> None:
    """A token's embedding is looked up once a forward, so what holds sixty of them is no step."""
    inner, outer = levels(embedding=True)
    assert best_of([inner, outer]) is inner


def test_without_an_embedding_the_inner_ones_may_be_layers() -> None:
    inner, outer = levels(embedding=False)
    assert best_of([inner, outer]) is outer
