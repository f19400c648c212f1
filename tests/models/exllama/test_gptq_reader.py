"""torch over a GPTQ folder computes with the weights that the ExLlama kernels hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_models

from llmprof.errors import ModelError
from llmprof.models import gptq
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.huggingface.gptq import is_gptq
from llmprof.models.huggingface.reader import SafetensorsWeights
from llmprof.models.prepare import prepare
from llmprof.models.presets import LlamaConfig

pytest.importorskip("torch", reason="the package torch is not installed")
pytest.importorskip("gguf", reason="the package gguf is not installed")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
SMALL = LlamaConfig(96, 160, 2, 6, 2, 16, 300, 1e-5, 10000.0, 512)
KEY = "model.layers.1.mlp.down_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = small_models.weights(SMALL)
    gguf = small_models.write_gguf(tmp_path / "s.gguf", weights, SMALL)
    prepare(str(gguf), "exllamav2", "gptq", 32, tmp_path / "q", lambda what, share: None)
    return tmp_path / "q"


def load(folder: Path) -> dict[str, np.ndarray]:
    return safetensors_numpy.load_file(str(folder / "model.safetensors"))


def store(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors_numpy.save_file(tensors, str(folder / "model.safetensors"))


def test_weights_are_those_of_the_packed_file(folder: Path) -> None:
    source = SafetensorsWeights(folder)
    packed = load(folder)
    for name in SMALL.tensor_shapes():
        found = source.read(name).numpy()
        key = name.removesuffix(".weight")
        if f"{key}.qweight" in packed:
            parts = (packed[f"{key}.{part}"] for part in ("qweight", "qzeros", "scales"))
            np.testing.assert_array_equal(found, gptq.dequantise(gptq.Quantised(*parts)))
        else:
            np.testing.assert_array_equal(found, packed[name])
    assert source.format == "safetensors gptq"
    assert source.weights_id == inspect_folder(str(folder), "exllamav2").weights_id
    assert any("no GPTQ calibration" in note for note in source.notes)
    source.close()


def test_torch_runs_it(llmprof, folder: Path, tmp_path: Path) -> None:
    done = llmprof(
        "--headless", "--json", "--engine", "torch:device=cpu", "--model", folder,
        "--prompt-len", "8", "--decode-len", "8", "--rounds", "2", "-o", tmp_path / "r.sqlite",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)["engines"][0]["info"]
    assert info["weights_id"].endswith("-rtn-32")
    assert info["model_format"] == "safetensors gptq as fp32"
    assert "GPTQ weights are dequantised on load: a step reads fp32" in info["notes"]


@pytest.mark.parametrize(
    ("order", "words"), [("zero", None), ("rows", None), ("mixed", "act-order"), ("short", "act")]
)
def test_only_rows_in_order(folder: Path, order: str, words: str | None) -> None:
    groups = {
        "zero": np.zeros(160, np.int32),
        "rows": np.arange(160, dtype=np.int32) // 32,
        "mixed": np.arange(160, dtype=np.int32) % 5,
        "short": np.ones(8, np.int32),
    }
    store(folder, {**load(folder), f"{KEY}.g_idx": groups[order]})
    source = SafetensorsWeights(folder)
    if words is None:
        assert source.read(f"{KEY}.weight").shape == (96, 160)
    else:
        with pytest.raises(ModelError, match=words):
            source.read(f"{KEY}.weight")
    source.close()


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("qweight", None, "qweight is in none"),
        ("qweight", np.zeros((20, 95), np.int32), "shape .20, 95., config.json says .20, 96."),
        ("qweight", np.zeros((20, 96), np.float32), "F32, expected I32"),
        ("qzeros", np.zeros((4, 12), np.int32), "shape .4, 12., config.json says .5, 12."),
        ("scales", np.zeros(96, np.float16), r"shape .96., config.json says .any, 96."),
        ("scales", np.zeros((7, 96), np.float16), "7 groups do not fit 160 rows"),
    ],
)
def test_a_bad_part_is_named(folder: Path, part: str, value, words: str) -> None:
    tensors = load(folder)
    if value is None:
        del tensors[f"{KEY}.{part}"]
    else:
        tensors[f"{KEY}.{part}"] = value
    store(folder, tensors)
    with pytest.raises(ModelError, match=words):
        SafetensorsWeights(folder)


@pytest.mark.parametrize(
    "change", [{"bits": 8}, {"desc_act": True}, {"quant_method": "awq"}, {"checkpoint_format": "x"}]
)
def test_other_quantisations_are_refused(folder: Path, change: dict) -> None:
    file = folder / "config.json"
    document = json.loads(file.read_text())
    assert is_gptq(document)
    document["quantization_config"].update(change)
    assert not is_gptq(document)
    file.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="quantization_config"):
        SafetensorsWeights(folder)
