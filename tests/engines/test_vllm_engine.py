"""The vllm engine against a double of vLLM 0.24.0 (tests/support/vllm_double): it follows vLLM's
source, but is not it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_models

from llmprof.engines.base import Engine, LoadRequest
from llmprof.engines.vllm.engine import VllmEngine
from llmprof.errors import EngineFailure, MissingPackage, ModelError, OutOfMemory, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
DOUBLE = Path(__file__).parents[1] / "support" / "vllm_double"
PROMPTS = [[3, 41, 59, 26, 5, 35], [7, 8, 9, 10, 11, 12]]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
                 "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_LOGGING_LEVEL"):  # fmt: skip
        monkeypatch.setenv(name, "to be set")
    monkeypatch.syspath_prepend(str(DOUBLE))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 << 30, 80 << 30))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_models.write_hf(tmp_path / "small", small_models.weights())


def load(model: Path | str, batch: int = 1, positions: int = 40, **options: str) -> VllmEngine:
    engine = VllmEngine()
    engine.load(LoadRequest(str(model), options, batch, positions), lambda text, share: None)
    return engine


def arguments(engine: VllmEngine) -> Any:
    return engine._ready()._engine.args  # type: ignore[attr-defined]


def decode(engine: VllmEngine, rows: list[list[int]], steps: int) -> list[list[int]]:
    found = [engine.prefill(rows), *(engine.decode_step() for _ in range(steps))]
    engine.reset()
    return [list(column) for column in zip(*found, strict=True)]


def expected(row: list[int], steps: int) -> list[int]:
    made: list[int] = []
    for _ in range(steps + 1):
        made.append((sum(row) + sum(made)) % small_models.SHAPE.vocab_size)
    return made


def test_one_step_is_one_iteration_and_a_token_for_each(folder: Path) -> None:
    engine = load(folder, 2)
    assert isinstance(engine, Engine)
    inner = engine._ready()._engine  # type: ignore[attr-defined]
    before = inner.steps
    assert decode(engine, PROMPTS, 7) == [expected(row, 7) for row in PROMPTS]
    assert inner.steps - before == 8
    # All the positions there are, and again after an abandoned round.
    engine.prefill(PROMPTS)
    engine.reset()
    assert decode(engine, PROMPTS, 33) == [expected(row, 33) for row in PROMPTS]
    engine.close()


def test_a_prompt_in_chunks_waits_for_the_slowest(folder: Path) -> None:
    engine = load(folder, 2)
    arguments(engine).max_num_batched_tokens = 7
    assert decode(engine, PROMPTS, 5) == [expected(row, 5) for row in PROMPTS]


def test_what_vllm_is_asked_for(folder: Path) -> None:
    found = arguments(load(folder, 2, 100))
    assert found.enable_prefix_caching is False and found.async_scheduling is False
    assert found.skip_tokenizer_init and not found.trust_remote_code
    assert (found.max_model_len, found.max_num_seqs, found.load_format) == (101, 2, "safetensors")
    # 2 sequences of 7 blocks of 16, 64 to spare; K and V of 2 layers, 2 heads of 16, fp16.
    assert found.kv_cache_memory_bytes == (2 * 7 + 64) * 16 * (2 * 2 * 2 * 16 * 2)
    assert arguments(load(folder, gpu_memory="0.5")).gpu_memory_utilization == 0.5
    assert arguments(load(folder, graphs="full")).compilation_config == {"cudagraph_mode": "FULL"}


def test_what_it_says_of_itself(folder: Path) -> None:
    info = load(folder).describe()
    assert info.versions["vllm"] == "0.24.0" and info.cuda_graph is True
    assert "CUDA graphs: FULL_AND_PIECEWISE" in info.notes
    assert "attention: FLASH_ATTN" in info.notes
    assert info.parameters == small_models.SHAPE.parameters
    assert info.weight_bytes_per_step == small_models.SHAPE.step_parameters * 2
    assert info.weights_id is not None
    eager = load(folder, eager="1").describe()
    assert eager.cuda_graph is False


def test_random_weights_say_what_they_are_worth(tmp_path: Path) -> None:
    engine = load("tiny")
    info = engine.describe()
    assert info.model_format == "random fp16" and info.weights_id is None
    assert any("tokens mean nothing" in note for note in info.notes)
    made = Path(arguments(engine).model)
    assert sorted(p.name for p in made.iterdir()) == ["config.json"]
    engine.close()
    assert not made.exists()


def test_sizes_of_what_is_no_llama_are_unknown(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "gpt2", "vocab_size": 97, "n_positions": 64}))
    engine = load(file)
    info = engine.describe()
    assert info.parameters is info.weight_bytes_per_step is info.kv_bytes_per_token is None
    # Half of the GPU is free; a tenth of that is left to others.
    assert arguments(engine).gpu_memory_utilization == 0.45


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("Free memory on device cuda:0 (1.2/80 GiB) on startup is less", OutOfMemory, "1.2/80"),
        ("Model architectures ['Foo'] are not supported for now", ModelError, "Foo"),
        ("something\n\x1b[31mbroke", EngineFailure, "its start failed: ValueError: something"),
    ],
)
def test_a_failed_start_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.setenv("VLLM_DOUBLE_FAILS", said)
    with pytest.raises(kind, match=words) as failed:
        load(folder)
    assert "\n" not in str(failed.value) and "\x1b" not in str(failed.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp": "2"}, "there are 1 CUDA GPUs"),
        ({"graphs": "some"}, "choose from auto"),
        ({"eager": "1", "graphs": "full"}, "no CUDA graphs"),
        ({"gpu_memory": "2"}, "0.05 to 0.95"),
        ({"grahps": "full"}, "did you mean graphs"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(folder, **options)


def test_models_that_it_does_not_load(folder: Path, tmp_path: Path) -> None:
    gguf = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    with pytest.raises(ModelError, match="prepare --engine transformers"):
        load(gguf)
    with pytest.raises(UsageError, match="shorten --prompt-len"):
        load(folder, positions=10**6)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "auto_map": {"x": "y"}}))
    with pytest.raises(ModelError, match="code of its own"):
        load(folder)


def test_an_environment_without_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingPackage, match="--engine vllm@"):
        load(folder)
