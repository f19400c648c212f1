"""GGUF files that are not the plain Llama of the other tests: split, with tensors or keys that
change what is computed, of architectures whose sizes do not follow from a Llama's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models

from llmprof.errors import ModelError
from llmprof.models.discover import found_models
from llmprof.models.gguf.header import read_header
from llmprof.models.gguf.reader import GgufWeights, gguf_config
from llmprof.models.gguf.sizes import (
    kv_values_per_token,
    parameters,
    step_projections,
    step_tensors,
)
from llmprof.models.locate import resolve
from llmprof.models.presets import RopeScaling
from llmprof.records import Unavailable

pytest.importorskip("gguf")
SHAPE = small_models.SHAPE


def write(folder: Path, name: str = "model", **more: object) -> Path:
    return small_models.write_gguf(folder / f"{name}.gguf", small_models.weights(), **more)


# split models -------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["tensors in part 1", "no tensor in part 1"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    write(tmp_path, "big", split_max_tensors=8, small_first_shard=request.param)
    found = sorted(tmp_path.glob("big-*.gguf"))
    assert len(found) == (4 if request.param else 3)
    return found


def test_a_split_model_is_one_model(parts: list[Path], tmp_path: Path) -> None:
    header, ref = read_header(parts[0]), resolve(str(parts[0]))
    assert (ref.name, ref.vocab_size) == ("big", 300)
    assert parameters(header) == SHAPE.parameters
    read = step_tensors(header)
    assert not isinstance(read, Unavailable)
    assert sum(t.n_bytes for t in read) == 4 * SHAPE.step_parameters
    split, whole = GgufWeights(parts[0]), GgufWeights(write(tmp_path, "whole"))
    for name in SHAPE.tensor_shapes():
        assert np.array_equal(split.values(name), whole.values(name))


def test_a_later_part_names_the_first(parts: list[Path]) -> None:
    with pytest.raises(ModelError, match=rf"part 2 of {len(parts)}.*give part 1: big-00001-of-"):
        resolve(str(parts[1]))


def test_a_part_that_is_missing_or_another_model_s(parts: list[Path], tmp_path: Path) -> None:
    taken = parts[-1].read_bytes()
    parts[-1].write_bytes(parts[0].read_bytes())
    with pytest.raises(ModelError, match=rf"not part {len(parts)} of .*another part's number"):
        resolve(str(parts[0]))
    parts[-1].unlink()
    with pytest.raises(ModelError, match=rf"part {len(parts)} of {len(parts)} is missing: big-"):
        resolve(str(parts[0]))
    parts[-1].write_bytes(taken)
    renamed = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelError, match="must be named NAME-00001-of-0000"):
        resolve(str(renamed))


def test_the_weights_id_covers_every_part(parts: list[Path]) -> None:
    before = read_header(parts[0]).weights_id
    data = bytearray(parts[-1].read_bytes())
    data[-5] ^= 1
    parts[-1].write_bytes(data)
    assert read_header(parts[0]).weights_id != before


def test_only_first_parts_are_offered(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    offered = [name for name, what in found_models() if what == "GGUF file"]
    assert offered == [parts[0].name]


def test_a_blob_is_called_as_its_metadata_says(tmp_path: Path) -> None:
    """Ollama and the hub keep files under their digests."""
    path = write(tmp_path, architecture="llama")
    digest = f"sha256-{'0123456789abcdef' * 4}"
    blob = path.rename(tmp_path / digest)
    assert resolve(str(blob)).name == digest
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Tiny Llama")
    writer.add_context_length(512)
    writer.add_tensor("token_embd.weight", np.zeros((300, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert resolve(str(path)).name == "model"
    assert resolve(str(path.rename(blob))).name == "Tiny Llama"


# what would be computed otherwise -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q.bias",
        "blk.1.attn_output.bias",
        "blk.0.attn_q.scale",
        "blk.0.ffn_down.input_scale",
        "blk.1.attn_k_norm.weight",
        "blk.2.attn_norm.weight",
        "output.bias",
        "rope_factors_long.weight",
    ],
)
def test_a_tensor_that_would_not_be_used_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, more={name: np.full(64, 0.3)})
    with pytest.raises(ModelError, match=f"tensor {name} is nothing that this engine computes"):
        GgufWeights(path)


def test_stored_rotary_frequencies_are_harmless(tmp_path: Path) -> None:
    GgufWeights(write(tmp_path, more={"blk.0.attn_rot_embd.weight": np.ones(8)})).close()


LINEAR = RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("metadata", "scaling"),
    [
        ({}, None),
        ({"rope.scaling.factor": 4.0}, LINEAR),
        ({"rope.scale_linear": 4.0}, LINEAR),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, LINEAR),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, None),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, None),
        ({"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.0}, LINEAR),
    ],
)
def test_rope_scaling_is_llama_cpp_s(
    tmp_path: Path, metadata: dict[str, object], scaling: RopeScaling | None
) -> None:
    """Each of these decodes as llama.cpp 0.3.36 does, 25 of 25 tokens, when both load it."""
    assert gguf_config(read_header(write(tmp_path, metadata=metadata))).rope_scaling == scaling


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not implemented"),
        ({"rope.scaling.type": "dynamic"}, "rope scaling 'dynamic' is not implemented"),
        ({"rope.scaling.attn_factor": 2.0}, "attn_factor"),
        ({"rope.scaling.factor": -1.0}, "factor of -1"),
        ({"attention.causal": False}, "not causal"),
    ],
)
def test_variants_that_are_not_implemented(
    tmp_path: Path, metadata: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        gguf_config(read_header(write(tmp_path, metadata=metadata)))


def test_torch_and_llama_cpp_agree_on_a_factor_that_does_not_count(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llama_cpp")
    from llmprof.engines.base import LoadRequest
    from llmprof.engines.llamacpp.engine import LlamaCppEngine
    from llmprof.engines.torch.engine import TorchEngine

    path = write(tmp_path, metadata={"rope.scaling.type": "none", "rope.scaling.factor": 8.0})
    ids, texts = [5, 17, 29, 101, 50, 3, 77, 41], []
    for engine, drive in ((TorchEngine(), {}), (LlamaCppEngine(), {"drive": "forward"})):
        options = {"threads": "1", **drive}  # else they spin on a busy machine
        engine.load(LoadRequest(str(path), options, max_positions=64), lambda text, share: None)
        tokens = [engine.prefill([ids])[0]]
        tokens += [row[0] for row in (engine.decode_step() for _ in range(20)) if row]
        texts.append(tokens)
        engine.close()
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_equal_weights_under_another_rope_are_another_model(tmp_path: Path) -> None:
    ids = {
        read_header(write(tmp_path, f"m{base}", metadata={"rope.scaling.factor": base})).weights_id
        for base in (1.0, 2.0)
    }
    assert len(ids) == 2


# sizes --------------------------------------------------------------------------------------


def sizes(path: Path) -> tuple[int | None, int | None]:
    """(bytes a step, KV values a token), ``None`` for a reason."""
    header = read_header(path)
    read, values = step_tensors(header), kv_values_per_token(header)
    return (
        None if isinstance(read, Unavailable) else sum(t.n_bytes for t in read),
        None if isinstance(values, Unavailable) else values,
    )


STEP = 4 * SHAPE.step_parameters
KV = SHAPE.kv_bytes_per_token(1)


def test_layers_without_attention_have_no_kv(tmp_path: Path) -> None:
    tensors = {
        name: value
        for name, value in small_models.weights().items()
        if not (name.startswith("model.layers.0.self_attn"))
    }
    tensors["blk.0.shortconv.conv.weight"] = np.ones((64, 3), np.float32)
    path = small_models.write_gguf(
        tmp_path / "hybrid.gguf",
        tensors,
        architecture="lfm2",
        metadata={"attention.head_count_kv": [0, 2]},
    )
    assert sizes(path)[1] == KV // 2


@pytest.mark.parametrize(
    ("architecture", "metadata", "more"),
    [
        ("gemma3", {}, {}),
        ("some-new-one", {}, {}),
        ("llama", {"attention.sliding_window": 64}, {}),
        ("qwen3", {"attention.shared_kv_layers": 1}, {}),
    ],
)
def test_kv_bytes_are_not_guessed(
    tmp_path: Path, architecture: str, metadata: dict[str, object], more: dict[str, np.ndarray]
) -> None:
    path = write(tmp_path, architecture=architecture, metadata=metadata, more=more)
    header = read_header(path)
    found = kv_values_per_token(header)
    assert isinstance(found, Unavailable)
    assert architecture in found.reason


def test_a_fused_projection_of_q_k_and_v(tmp_path: Path) -> None:
    tensors = small_models.weights()
    more = {}
    for layer in range(2):
        own = [tensors.pop(f"model.layers.{layer}.self_attn.{n}_proj.weight") for n in "qkv"]
        more[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(own)
    path = small_models.write_gguf(tmp_path / "fused.gguf", tensors, architecture="gpt2", more=more)
    assert sizes(path) == (STEP, KV)


@pytest.mark.parametrize(
    "table", ["position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"]
)
def test_of_a_table_a_step_reads_one_row(tmp_path: Path, table: str) -> None:
    path = write(tmp_path, more={table: np.zeros((512, 64))})
    assert sizes(path) == (STEP, KV)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v.patch_embd.weight", "how tensor v.patch_embd.weight is read"),
        ("enc.blk.0.attn_q.weight", "how tensor enc.blk.0.attn_q.weight is read"),
        ("blk.1.nextn.eh_proj.weight", "nextn"),
        ("blk.0.ffn_up_exps.weight", "experts"),
    ],
)
def test_bytes_a_step_are_not_guessed(tmp_path: Path, name: str, said: str) -> None:
    found = step_tensors(read_header(write(tmp_path, more={name: np.zeros((64, 64))})))
    assert isinstance(found, Unavailable)
    assert said in found.reason


def test_projections_of_a_layer_and_the_head(tmp_path: Path) -> None:
    found = step_projections(read_header(write(tmp_path)))
    assert found is not None
    assert (found["attn_k"], found["ffn_down"]) == ([32, 64, 8192], [64, 96, 24576])
    assert found["output"] == [300, 64, 76800]
    per_layer = sum(size for *_, size in found.values()) - 76800
    norms = 4 * 64 * (2 * SHAPE.num_hidden_layers + 1)
    assert per_layer * SHAPE.num_hidden_layers + 76800 + norms == STEP
