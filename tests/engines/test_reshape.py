"""Another batch and context on the weights that are loaded: as a fresh load would decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models

from llmprof.engines.base import LoadRequest, ReshapedEngine
from llmprof.engines.registry import create
from llmprof.errors import LoadAgain, UsageError

SHAPES = [(1, 40), (3, 300), (1, 16), (2, 24)]
"""Batch and positions, in the order that one engine goes through."""


def loaded(name: str, model: Path, options: dict[str, str], batch: int, positions: int):
    engine = create(name)
    engine.load(
        LoadRequest(str(model), options, batch, positions, most_batch=3, most_positions=300),
        lambda what, share: None,
    )
    return engine


def decoded(engine, batch: int, positions: int) -> list[list[int]]:
    """A whole cache full, twice the same."""
    prompt = [[(7 * row + 3 * i) % 290 + 3 for i in range(positions - 9)] for row in range(batch)]
    found = []
    for _ in range(2):
        engine.reset()
        rows = [engine.prefill(prompt), *(engine.decode_step() for _ in range(8))]
        found.append([list(row) for row in rows])
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torch", {"device": "cpu"}),
        ("llamacpp", {"drive": "forward", "binding": "cyllama"}),
        ("llamacpp", {"drive": "generator", "binding": "cyllama"}),
        ("llamacpp", {"drive": "forward", "binding": "llama-cpp-python"}),
        ("transformers", {"device": "cpu", "drive": "forward"}),
        ("transformers", {"device": "cpu", "drive": "forward", "cache": "static"}),
        ("transformers", {"device": "cpu", "drive": "generate", "cache": "static"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_tokens_and_facts_are_those_of_a_fresh_load(name, options, tmp_path: Path) -> None:
    needs = {"torch": "torch", "transformers": "transformers"}
    package = options.get("binding", "").replace("llama-cpp-python", "llama_cpp")
    pytest.importorskip(needs.get(name, package))
    weights = small_models.weights()
    if name == "llamacpp":
        model = small_models.write_gguf(tmp_path / "small.gguf", weights)
    else:
        model = small_models.write_hf(tmp_path / "small", weights)
    shapes = [s for s in SHAPES if s[0] == 1 or "generator" not in options.values()]
    kept = loaded(name, model, options, *shapes[0])
    assert isinstance(kept, ReshapedEngine)
    for number, shape in enumerate(shapes):
        if number:
            kept.reshape(*shape)
        fresh = loaded(name, model, options, *shape)
        assert decoded(kept, *shape) == decoded(fresh, *shape)
        assert kept.describe() == fresh.describe()
        fresh.close()
    with pytest.raises(UsageError, match="the context of"):
        kept.reshape(1, 100_000)
    kept.close()


def test_what_goes_with_its_shape_says_so(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    engine = loaded("llamacpp", model, {"drive": "generator", "binding": "llama-cpp-python"}, 1, 40)
    before = decoded(engine, 1, 40)
    with pytest.raises(LoadAgain, match="model and context in one"):
        engine.reshape(1, 80)
    assert decoded(engine, 1, 40) == before
    engine.close()
