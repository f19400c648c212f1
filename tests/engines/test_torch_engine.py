"""The torch engine against a slow numpy reference, and what it refuses."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_llama
import small_models

from llmprof.engines.base import Engine, FreeRunningEngine, LoadRequest, OpTracedEngine
from llmprof.engines.torch.engine import TorchEngine
from llmprof.errors import MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.models.presets import PRESETS, RopeScaling

torch = pytest.importorskip("torch", reason="torch is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")

PROMPT = [3, 141, 59, 26, 5, 35]
CPU = {"device": "cpu"}


def load(
    model: str = "tiny", *, batch: int = 1, positions: int = 64, **options: str
) -> TorchEngine:
    engine = TorchEngine()
    request = LoadRequest(model, {**CPU, **options}, batch, positions, seed=1)
    engine.load(request, lambda text, share: None)
    return engine


def decode(engine: TorchEngine, rows: list[list[int]], steps: int) -> list[list[int]]:
    """One row of tokens a sequence."""
    engine.reset()
    found: list[Any] = [engine.prefill(rows)]
    found += [engine.decode_step() for _ in range(steps)]
    if steps and found[-1] is None:
        found = [found[0], *engine.finish_round()]
    return [list(column) for column in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def tiny() -> TorchEngine:
    return load()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write_hf(tmp_path_factory.mktemp("hf") / "small", small_models.weights())


def test_it_fills_the_protocols(tiny: TorchEngine) -> None:
    for protocol in (Engine, FreeRunningEngine, OpTracedEngine):
        assert isinstance(tiny, protocol)


def forward(engine: TorchEngine, ids: list[int]) -> np.ndarray:
    """Logits after a prompt, through the engine's own prefill path."""
    loop = engine._ready()
    with torch.inference_mode():
        positions = loop.model.positions[: len(ids)]
        return loop.model.forward(torch.tensor([ids]), positions, len(ids), None)[0].numpy()


def test_logits_are_those_of_the_reference(small_folder: Path) -> None:
    wanted = reference_llama.logits(small_models.SHAPE, small_models.weights(), PROMPT)
    engine = load(str(small_folder))
    for length in range(1, len(PROMPT) + 1):
        np.testing.assert_allclose(forward(engine, PROMPT[:length]), wanted[length - 1], atol=1e-4)


def test_steps_are_those_of_the_reference(small_folder: Path) -> None:
    found = decode(load(str(small_folder)), [PROMPT], 8)[0]
    whole = reference_llama.logits(small_models.SHAPE, small_models.weights(), PROMPT + found)
    assert found == whole[len(PROMPT) - 1 : -1].argmax(1).tolist()


def test_tiny_preset_against_the_reference(tiny: TorchEngine) -> None:
    from llmprof.engines.torch.llama import random_weights

    config = PRESETS["tiny"]
    read = random_weights(config, 1, torch.device("cpu"), torch.float32)
    # The order of the reads is part of the seed: the engine takes a layer at a time, as here.
    weights = {name: read(name).numpy() for name in config.tensor_shapes()}
    wanted = reference_llama.logits(config, weights, PROMPT)[-1]
    np.testing.assert_allclose(forward(tiny, PROMPT), wanted, atol=1e-3)
    assert 0.1 < wanted.std() < 10


def test_gguf_and_safetensors_of_the_same_weights(small_folder: Path, tmp_path: Path) -> None:
    path = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    found = [forward(load(str(p)), PROMPT) for p in (path, small_folder)]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 64)],
)
def test_rope_scaling(scaling: RopeScaling) -> None:
    from llmprof.engines.torch.llama import rope_frequencies

    found = rope_frequencies(64, 10000.0, scaling, None).numpy()
    plain = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    for f, p in zip(found, plain, strict=True):
        if scaling.kind == "linear":
            assert f == pytest.approx(p / 4)
            continue
        wavelength = 2 * np.pi / p
        if wavelength < 64 / 4:
            assert f == pytest.approx(p)
        elif wavelength > 64 / 1:
            assert f == pytest.approx(p / 8)
        else:
            blend = (64 / wavelength - 1) / (4 - 1)
            assert f == pytest.approx((1 - blend) * p / 8 + blend * p)


def test_rope_factors_of_a_gguf_file(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, small_models.SHAPE.head_dim // 2)
    weights = small_models.weights()
    path = small_models.write_gguf(tmp_path / "m.gguf", weights, rope_factors=factors)
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    wanted = reference_llama.logits(small_models.SHAPE, weights, PROMPT, plain / factors)
    np.testing.assert_allclose(forward(load(str(path)), PROMPT), wanted[-1], atol=1e-4)


def test_tied_embedding(tmp_path: Path) -> None:
    tied = replace(small_models.SHAPE, tie_word_embeddings=True)
    weights = small_models.weights(tied)
    path = small_models.write_gguf(tmp_path / "m.gguf", weights, tied)
    engine = load(str(path))
    wanted = reference_llama.logits(tied, weights, PROMPT)[-1]
    np.testing.assert_allclose(forward(engine, PROMPT), wanted, atol=1e-4)
    assert engine.describe().weight_bytes_per_step == 4 * tied.parameters


def test_steps_equal_one_forward_over_everything(tiny: TorchEngine) -> None:
    found = decode(tiny, [PROMPT], 10)[0]
    for length in (1, 5, 10):
        assert forward(tiny, PROMPT + found[:length]).argmax() == found[length]


def test_a_batch_equals_its_rows(tiny: TorchEngine) -> None:
    rows = [PROMPT, [7, 7, 100, 200, 4000, 9]]
    assert decode(load(batch=2), rows, 10) == [decode(tiny, [row], 10)[0] for row in rows]


def test_reset_forgets(tiny: TorchEngine) -> None:
    first = decode(tiny, [PROMPT], 12)
    decode(tiny, [[9] * 30], 5)
    assert decode(tiny, [PROMPT], 12) == first


def test_seed_makes_the_weights() -> None:
    engine = TorchEngine()
    engine.load(LoadRequest("tiny", CPU, 1, 64, seed=2), lambda text, share: None)
    assert decode(engine, [PROMPT], 8) != decode(load(), [PROMPT], 8)
    assert decode(load(), [PROMPT], 8) == decode(load(), [PROMPT], 8)


def test_free_running_gives_the_same_tokens(tiny: TorchEngine) -> None:
    engine = load(sync="0")
    assert not engine.describe().synchronous
    engine.prefill([PROMPT])
    assert engine.decode_step() is None
    assert decode(engine, [PROMPT], 9) == decode(tiny, [PROMPT], 9)
    assert engine.finish_round() == []


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_close(dtype: str, tiny: TorchEngine) -> None:
    engine = load(dtype=dtype)
    info = engine.describe()
    assert (info.dtype, info.bits_per_weight, info.kv_bytes_per_token) == (dtype, 16, 1024)
    loop = engine._ready()
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        found = loop.model.forward(ids, loop.model.positions[:6], 6, None)[0].float().numpy()
    wanted = forward(tiny, PROMPT)
    assert np.abs(found - wanted).max() < 0.2 * wanted.std()


def test_describe(tiny: TorchEngine, small_folder: Path) -> None:
    info, config = tiny.describe(), PRESETS["tiny"]
    assert info.versions == {"torch": torch.__version__}
    assert (info.model, info.model_format, info.device) == ("tiny", "random fp32", "cpu")
    assert info.parameters == config.parameters
    assert info.weight_bytes_per_step == 4 * (config.parameters - 4096 * 256)
    assert info.kv_bytes_per_token == 2 * 4 * 2 * 32 * 4
    assert (info.weights_id, info.cuda_graph, info.op_tracer) == (None, None, "torch")
    assert (info.context_limit, info.vocab_size) == (4096, 4096)
    assert info.projections is not None
    assert info.projections["self_attn.qkv_proj"] == [256 + 2 * 64, 256, 4 * 384 * 256]
    sizes = [size for _, _, size in info.projections.values()]
    norms = 4 * 256 * (2 * 4 + 1)
    assert 4 * sum(sizes[:-1]) + sizes[-1] + norms == info.weight_bytes_per_step
    stored = load(str(small_folder)).describe()
    assert stored.model_format == "safetensors fp32 as fp32"
    assert stored.weights_id is not None


def test_progress_reaches_one() -> None:
    heard: list[float | None] = []
    TorchEngine().load(LoadRequest("tiny", CPU, 1, 16), lambda text, share: heard.append(share))
    assert heard[0] == 0.0
    assert heard[-1] == 1.0


def test_operators_lie_inside_their_steps(tiny: TorchEngine) -> None:
    decode(tiny, [PROMPT], 3)
    tiny.reset()
    tiny.start_op_trace()
    tiny.prefill([PROMPT])
    stamps = [time.monotonic_ns()]
    for _ in range(3):
        tiny.decode_step()
        stamps.append(time.monotonic_ns())
    found = tiny.stop_op_trace()
    slack = 20_000
    assert found[-1][2] <= stamps[-1] + slack
    assert {thread for _, _, _, thread in found} == {threading.get_native_id()}
    layers = PRESETS["tiny"].num_hidden_layers
    for begin, end in pairwise(stamps):
        inside = [name for name, a, b, _ in found if a >= begin - slack and b <= end + slack]
        assert inside.count("aten::linear") == 4 * layers + 1
        assert inside.count("aten::mm") == 4 * layers + 1  # nested in linear
    assert tiny.stop_op_trace() == []


# what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "tpu"}, "expected cpu, cuda"),
        ({"dtype": "int8"}, "choose from fp32"),
        ({"cuda_graph": "1"}, "needs device=cuda"),
        ({"threads": "0"}, "≥ 1"),
        ({"sync": "maybe"}, "expected 1 or 0"),
        ({"dtyp": "fp32"}, "did you mean dtype"),
    ],
)
def test_bad_options(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(UsageError, match="sees no CUDA GPU"):
        load(device="cuda")


def test_context_too_small() -> None:
    with pytest.raises(UsageError, match=r"5000 positions.*4096"):
        load(positions=5000)


def test_a_model_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmprof.engines.pytorch import memory as torch_memory

    monkeypatch.setattr(torch_memory, "host_free_bytes", lambda: 16 << 30)
    with pytest.raises(OutOfMemory, match=r"need \d{6} MiB, 16384 MiB are free on cpu"):
        load("llama2-70b")


def test_an_allocation_that_fails() -> None:
    from llmprof.engines.pytorch.memory import memory_errors

    with (
        pytest.raises(OutOfMemory, match="the prompt did not fit on cpu"),
        memory_errors("torch", "the prompt", torch.device("cpu")),
    ):
        torch.empty(1 << 60)
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        memory_errors("torch", "the prompt", torch.device("cpu")),
    ):
        _ = torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 2], [3, 4]], "loaded for batch 1"),
        ([[]], "at least 1"),
        ([[4096]], "token id 4096 is outside the vocabulary of 4096"),
        ([[-1]], "token id -1"),
        ([[5] * 65], "KV cache of 64"),
    ],
)
def test_bad_prompts(tiny: TorchEngine, rows: list[list[int]], said: str) -> None:
    tiny.reset()
    with pytest.raises(UsageError, match=said):
        tiny.prefill(rows)


def test_a_full_cache(tiny: TorchEngine) -> None:
    tiny.reset()
    tiny.prefill([[5] * 63])
    tiny.decode_step()
    with pytest.raises(UsageError, match="64 positions is full"):
        tiny.decode_step()


def test_a_missing_model() -> None:
    with pytest.raises(ModelError, match="no such file"):
        load("/no/such/model.gguf")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackage, match=r"pip install .*\[torch\]"):
        load()


def test_the_module_imports_no_torch() -> None:
    code = "import sys, llmprof.engines.torch.engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# with a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sync", ["1", "0"])
@pytest.mark.parametrize("batch", [1, 3])
def test_graphs_give_the_tokens_of_eager_steps(sync: str, batch: int) -> None:
    # From one bucket of positions into the next, and again after a reset.
    rows = [[11 + row, *PROMPT * 42] for row in range(batch)]
    options = {"device": "cuda", "dtype": "fp32", "sync": sync}
    eager = load(batch=batch, positions=300, **options)
    graphs = load(batch=batch, positions=300, cuda_graph="1", **options)
    wanted = decode(eager, rows, 20)
    assert decode(graphs, rows, 20) == wanted
    assert decode(graphs, rows, 20) == wanted
    assert graphs.describe().cuda_graph


@pytest.mark.gpu
@needs_gpu
def test_gpu_agrees_with_the_reference(small_folder: Path) -> None:
    engine = load(str(small_folder), device="cuda", dtype="fp32")
    found = decode(engine, [PROMPT], 8)[0]
    whole = reference_llama.logits(small_models.SHAPE, small_models.weights(), PROMPT + found)
    assert found == whole[len(PROMPT) - 1 : -1].argmax(1).tolist()


@pytest.mark.gpu
@needs_gpu
def test_a_cache_that_does_not_fit_the_gpu() -> None:
    with pytest.raises(OutOfMemory, match="MiB are free on cuda:0"):
        load("llama2-7b", device="cuda", batch=4096, positions=4096)
