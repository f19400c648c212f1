"""Hugging Face folders whose config.json or files say something else than they seem to. The values
are those of transformers 5.24, by decoding the same folders with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import exllama_reference
import numpy as np
import pytest
import small_models
from safetensors.numpy import save_file

from llmprof.errors import ModelError
from llmprof.models import gptq
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.huggingface.config import gptq_config
from llmprof.models.huggingface.files import weight_files
from llmprof.models.huggingface.reader import SafetensorsWeights
from llmprof.models.locate import resolve
from llmprof.models.prepare import prepare
from llmprof.models.presets import EMBEDDING, HEAD, LlamaConfig, RopeScaling
from llmprof.models.tokenizer import Tokenizer, load_tokenizer

pytest.importorskip("torch")
BIASES = {
    f"model.layers.{layer}.self_attn.{name}_proj.bias": width
    for layer in range(2)
    for name, width in (("q", 64), ("k", 32), ("v", 32))
}


def write(folder: Path, more: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """``None`` in ``config`` takes a key away."""
    small_models.write_hf(folder, {**small_models.weights(), **(more or {})})
    document = {**small_models.hf_config(), **config}
    document = {key: value for key, value in document.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


# tensors that are not used ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *list(BIASES.items())[:3],
        ("model.layers.1.self_attn.k_norm.weight", 16),
        ("model.layers.0.mlp.down_proj.bias", 64),
        ("model.layers.2.input_layernorm.weight", 64),
        ("lm_head.bias", 300),
        ("score.weight", 64),
    ],
)
def test_a_tensor_that_would_not_be_used_is_refused_by_name(
    tmp_path: Path, name: str, size: int
) -> None:
    folder = write(tmp_path / "m", {name: np.full(size, 0.1, np.float32)})
    with pytest.raises(ModelError, match=f"tensor {name} is nothing that this engine computes"):
        SafetensorsWeights(folder)
    with pytest.raises(ModelError, match=f"tensor {name} is nothing"):
        prepare(str(folder), "exllamav2", "fp16", None, tmp_path / "made", lambda *a: None)


def test_harmless_tensors(tmp_path: Path) -> None:
    more = {name: np.zeros(size, np.float32) for name, size in BIASES.items()}
    more["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    SafetensorsWeights(write(tmp_path / "m", more)).close()


# which files --------------------------------------------------------------------------------


def shard(folder: Path, name: str, seed: int = 9) -> None:
    save_file(small_models.weights(seed=seed), str(folder / name))


def test_a_whole_file_is_loaded_before_shards(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    wanted = SafetensorsWeights(folder)
    shard(folder, "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    found = SafetensorsWeights(folder)
    assert (found.read(HEAD) == wanted.read(HEAD)).all()
    assert found.weights_id == wanted.weights_id
    assert "model-00001-of-00002.safetensors" in found.notes[0]


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    wanted = SafetensorsWeights(folder).weights_id
    save_file({"lora_A": np.ones(4, np.float32)}, str(folder / "adapter_model.safetensors"))
    found = SafetensorsWeights(folder)
    assert found.weights_id == wanted
    assert found.notes == ["adapter_model.safetensors is an adapter: not applied"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="but an adapter"):
        weight_files(folder)


def test_two_files_with_one_tensor_and_nothing_that_chooses(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shard(folder, "b.safetensors")
    with pytest.raises(ModelError, match=r"b.safetensors: tensor .* is in .*a.safetensors as well"):
        SafetensorsWeights(folder)
    with pytest.raises(ModelError, match="as well; leave the files of one model"):
        document = json.loads((folder / "config.json").read_text())
        document["architectures"] = ["LlamaForCausalLM"]
        (folder / "config.json").write_text(json.dumps(document))
        inspect_folder(str(folder), "exllamav2")


# config.json --------------------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("config", "theta", "scaling"),
    [
        ({"rope_scaling": LINEAR}, 1e4, RopeScaling("linear", 4.0)),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
            1e4,
            RopeScaling("linear", 4.0),
        ),
        # rope_scaling wins as a whole: the other object's base is lost with it.
        (
            {
                "rope_scaling": LINEAR,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
                "rope_theta": None,
            },
            1e4,
            RopeScaling("linear", 4.0),
        ),
        (
            {"rope_scaling": {}, "rope_parameters": {**LINEAR, "rope_theta": 500.0}},
            500.0,
            RopeScaling("linear", 4.0),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0, None),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, 1e4, None),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}},
            1e4,
            None,
        ),
        ({"rope_theta": None}, 1e4, None),
        ({"rope_scaling": LLAMA3}, 1e4, RopeScaling("llama3", 8.0, 1.0, 4.0, 512)),
        (
            {
                "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64},
                "original_max_position_embeddings": 32,
            },
            1e4,
            RopeScaling("llama3", 8.0, 1.0, 4.0, 32),
        ),
    ],
)
def test_rope_is_that_of_transformers(
    config: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    document = {**small_models.hf_config(), **config}
    found = LlamaConfig.from_hf({k: v for k, v in document.items() if v is not None})
    assert (found.rope_theta, found.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": None, "architectures": ["Qwen2ForCausalLM"]}, "has no model_type"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}}, "partly rotated"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        SafetensorsWeights(write(tmp_path / "m", **config))


def test_a_tied_head_that_differs_is_a_head_of_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tie_word_embeddings=True)
    source = SafetensorsWeights(folder)
    assert not source.config.tie_word_embeddings
    assert (source.read(HEAD).numpy() == small_models.weights()[HEAD]).all()
    assert "differs from the embedding table" in source.notes[0]
    table = small_models.weights()[EMBEDDING]
    equal = SafetensorsWeights(write(tmp_path / "n", {HEAD: table}, tie_word_embeddings=True))
    assert equal.config.tie_word_embeddings
    assert not equal.notes


def test_exllama_engines_get_the_same_rope_or_none(tmp_path: Path) -> None:
    """V2 does not know rope_parameters, V3 takes rope_theta beside it first."""
    tensors = {n: v.astype(np.float16) for n, v in small_models.weights(SHAPE).items()}
    inside = {"rope_type": "default", "rope_theta": 500000.0}
    for config, refused in (
        ({"rope_theta": 500000.0}, ()),
        ({"rope_parameters": inside, "rope_theta": 500000.0}, ()),
        ({"rope_parameters": inside}, ("exllamav2",)),
        ({"rope_parameters": inside, "rope_theta": 10000.0}, ("exllamav2", "exllamav3")),
        ({"rope_parameters": {**inside, **LINEAR}}, ("exllamav2",)),
    ):
        document = small_models.hf_config(SHAPE) | {"architectures": ["LlamaForCausalLM"]}
        document.pop("rope_theta")
        small_models.write_hf(tmp_path / "m", tensors)
        (tmp_path / "m" / "config.json").write_text(json.dumps(document | config))
        for engine in ("exllamav2", "exllamav3"):
            if engine in refused:
                with pytest.raises(ModelError, match=f"{engine} would read another RoPE"):
                    inspect_folder(str(tmp_path / "m"), engine)  # type: ignore[arg-type]
            else:
                inspect_folder(str(tmp_path / "m"), engine)  # type: ignore[arg-type]


# GPTQ ---------------------------------------------------------------------------------------

SHAPE = LlamaConfig(128, 128, 1, 4, 4, 32, 96, 1e-5, 10000.0, 512)


def packed(folder: Path, stored_zero: int, **more: Any) -> Path:
    """A symmetric model whose zeros of 8 are stored as ``stored_zero``."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in small_models.weights(SHAPE).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value.astype(np.float16)
            continue
        key, groups = name.removesuffix(".weight"), value.shape[1] // 32
        rows = value.T.reshape(groups, 32, -1)
        scale = np.abs(rows).max(1) / 7
        codes = np.clip(np.rint(rows / scale[:, None]) + 8, 0, 15).astype(np.uint32)
        words = codes.reshape(-1, 8, value.shape[0]) << (4 * np.arange(8, dtype=np.uint32))[:, None]
        tensors[f"{key}.qweight"] = np.bitwise_or.reduce(words, axis=1).view(np.int32)
        word = np.uint32(stored_zero * 0x11111111)
        tensors[f"{key}.qzeros"] = np.full((groups, len(value) // 8), word).view(np.int32)
        tensors[f"{key}.scales"] = scale.astype(np.float16)
    small_models.write_hf(folder, tensors)
    document = small_models.hf_config(SHAPE) | {"architectures": ["LlamaForCausalLM"]}
    quantised = gptq_config(32) | {"sym": True} | more
    (folder / "config.json").write_text(json.dumps(document | {"quantization_config": quantised}))
    return folder


def test_zeros_of_version_2_under_the_label_of_version_1(tmp_path: Path) -> None:
    one, two = packed(tmp_path / "one", 7), packed(tmp_path / "two", 8)
    right, found = SafetensorsWeights(one), SafetensorsWeights(two)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (found.read(name) == right.read(name)).all()
    assert "version 2" in found.notes[0]
    assert not right.notes
    tensors = exllama_reference.read_file(one / "model.safetensors")
    slow = exllama_reference.gptq_weight(tensors, name.removesuffix(".weight")).T
    np.testing.assert_allclose(right.read(name).numpy(), slow, rtol=1e-6)
    inspect_folder(str(one), "exllamav2")
    with pytest.raises(ModelError, match="all stored as 8"):
        inspect_folder(str(two), "exllamav2")
    # exllamav2 reads version 2 where it is told.
    inspect_folder(str(packed(tmp_path / "said", 8, checkpoint_format="gptq_v2")), "exllamav2")


def test_a_model_that_is_not_symmetric_is_left_alone(tmp_path: Path) -> None:
    weight = small_models.weights(SHAPE)["model.layers.0.mlp.up_proj.weight"]
    stored = gptq.round_to_nearest(weight, 32).qzeros
    assert len(np.unique(stored)) > 4
    folder = packed(tmp_path / "m", 8)
    tensors = exllama_reference.read_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qzeros"] = stored
    save_file(tensors, str(folder / "model.safetensors"))
    assert not SafetensorsWeights(folder).notes


@pytest.mark.parametrize(
    ("quantised", "said"),
    [({"bits": 8}, "gptq of 8 bits"), ({"quant_method": "awq"}, "awq of 4 bits")],
)
def test_labels_that_contradict_the_tensors(
    tmp_path: Path, quantised: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        inspect_folder(str(packed(tmp_path / "m", 7, **quantised)), "exllamav2")


# ids, names, tokenizers ---------------------------------------------------------------------


def test_the_weights_id_is_of_weights_and_of_what_is_computed(tmp_path: Path) -> None:
    base = SafetensorsWeights(write(tmp_path / "a")).weights_id
    same = write(tmp_path / "b", torch_dtype="float16", use_cache=False, _name_or_path="x")
    assert SafetensorsWeights(same).weights_id == base
    other = write(tmp_path / "c", rms_norm_eps=0.5)
    assert SafetensorsWeights(other).weights_id != base
    tensors = small_models.weights()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1  # one value of one tensor
    changed = write(tmp_path / "d", tensors)
    assert SafetensorsWeights(changed).weights_id != base


def test_bfloat16_holds_other_weights(tmp_path: Path) -> None:
    from llmprof.engines.base import LoadRequest
    from llmprof.engines.torch.engine import TorchEngine

    folder, found = write(tmp_path / "a"), {}
    for dtype in ("fp32", "fp16", "bf16"):
        engine = TorchEngine()
        options = {"dtype": dtype, "device": "cpu"}
        engine.load(LoadRequest(str(folder), options, max_positions=32), lambda text, share: None)
        found[dtype] = engine.describe().weights_id
    assert found["fp32"] == found["fp16"]
    assert found["bf16"] == f"{found['fp32']}-bf16"


def cached(root: Path) -> Path:
    """A folder of the hub's cache: the snapshot's files are links into blobs."""
    repository = root / "models--acme--tiny-llama"
    snapshot = repository / "snapshots" / ("0123456789abcdef" * 3)[:40]
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(write(root / "plain").iterdir()):
        file.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_a_snapshot_is_called_after_its_repository(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    link = tmp_path / "my-link"
    link.symlink_to(snapshot)
    for place in (snapshot, link, snapshot.parent.parent, snapshot / "config.json"):
        assert resolve(str(place)).name == "acme/tiny-llama", place
    assert resolve(str(snapshot.parent.parent)).path == str(snapshot)
    assert resolve(str(write(tmp_path / "own"))).name == "own"


def test_a_tokenizer_s_own_padding_cutting_and_dropout_do_not_count(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = write(tmp_path / "m")
    vocab = {"a": 5, "b": 6, "c": 7, "ab": 8, "abc": 9, "?": 0}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, [("a", "b"), ("ab", "c")], unk_token="?", dropout=1.0)
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.enable_padding(length=24, pad_id=1, pad_token="?")
    inner.enable_truncation(max_length=2)
    inner.save(str(folder / "tokenizer.json"))
    found = load_tokenizer(resolve(str(folder)))
    assert isinstance(found, Tokenizer)
    assert found.encode("abc ab abc c") == [9, 8, 9, 7]
