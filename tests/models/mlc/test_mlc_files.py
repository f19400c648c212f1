"""Weight folders, metadata and libraries are untrusted: what is wrong is said in one line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlc_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprof.engines.mlc.loading import stored_values
from llmprof.engines.mlc.tvm import open_device
from llmprof.errors import MissingPackage, ModelError, UsageError
from llmprof.models.locate import resolve
from llmprof.models.mlc.library import Library, inspect_library
from llmprof.models.mlc.metadata import MlcMetadata, MlcParameter, parse_metadata
from llmprof.models.mlc.random import RandomParameters
from llmprof.models.mlc.weights import open_weights
from llmprof.models.presets import PRESETS

TENSORS = {
    "model.embed_tokens.weight": np.arange(24, dtype=np.float16).reshape(6, 4),
    "model.norm.weight": np.ones(4, np.float16),
    "lm_head.weight": np.full((6, 4), 3, np.float16),
}
DOCUMENT: dict[str, Any] = {
    "model_type": "llama",
    "quantization": "q0f16",
    "context_window_size": 64,
    "prefill_chunk_size": 16,
    "tensor_parallel_shards": 1,
    "max_batch_size": 2,
    "kv_cache": {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 2,
    },
    "memory_usage": {"decode": 100, "prefill": 300},
    "params": [
        {"name": "model.embed_tokens.weight", "shape": ["vocab_size", 4], "dtype": "float16"},
        {"name": "model.norm.weight", "shape": [4], "dtype": "float16"},
        {"name": "lm_head.weight", "shape": ["vocab_size", 4], "dtype": "float16"},
    ],
}


def metadata(**change: Any) -> MlcMetadata:
    return parse_metadata(json.dumps({**DOCUMENT, **change}), "lib.so")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mlc_files.write_folder(tmp_path / "weights", TENSORS, None)


def test_values_come_back(folder: Path) -> None:
    weights = open_weights(folder)
    weights.check_fits(metadata(), 6, "lib.so")
    for parameter in metadata().parameters:
        np.testing.assert_array_equal(stored_values(weights, parameter), TENSORS[parameter.name])
    other = mlc_files.write_folder(
        folder.parent / "other", {**TENSORS, "lm_head.weight": np.zeros((6, 4), np.float16)}, None
    )
    assert weights.weights_id != open_weights(other).weights_id
    assert resolve(str(folder)).kind == "mlc"


def test_a_library_for_several_gpus_cuts_the_weights_at_load(folder: Path) -> None:
    """Its metadata has the shapes of one GPU's part, and whole ones where it cuts."""
    cut = {"func_name": "_shard", "in_shape": ["vocab_size", 4], "out_shape": [2, 3, 4]}
    params = [dict(p) for p in DOCUMENT["params"]]
    params[2] |= {"shape": ["vocab_size", 2], "preprocs": [{**cut, "out_dtype": "float16"}]}
    two = metadata(params=params, tensor_parallel_shards=2)
    assert two.parameters[2].sizes(6) == (6, 2)
    open_weights(folder).check_fits(two, 6, "lib.so")
    with pytest.raises(ModelError, match=r"lm_head.weight has shape \[6, 4\].*\[6, 2\]"):
        open_weights(folder).check_fits(metadata(params=params), 6, "lib.so")


def test_tvms_own_loader_takes_what_is_written(folder: Path) -> None:
    """The one that MLC LLM's engine calls (cpp/serve/function_table.cc)."""
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    cpu = tvm.runtime.device("cpu")
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(folder), cpu.dlpack_device_type(), 0)
    try:
        found = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(list(TENSORS))
        for value, wanted in zip(found, TENSORS.values(), strict=True):
            np.testing.assert_array_equal(value.numpy(), wanted)
    finally:
        tvm.get_global_func("vm.builtin.tensor_cache.clear")()


def test_what_tvm_itself_writes(tmp_path: Path) -> None:
    """Its shards, and float32 kept as the upper half of its words."""
    tvmjs = pytest.importorskip("tvm.contrib.tvmjs", reason="apache-tvm is not installed")
    source = np.random.default_rng(0)
    values = {"a": source.standard_normal((3, 5)).astype(np.float32), "b": np.arange(7, dtype="i4")}
    tvmjs.dump_tensor_cache(values, str(tmp_path / "halved"), show_progress=False)
    weights = open_weights(tmp_path / "halved")
    assert weights.stored["a"].encoding == "f32-to-bf16"
    halved = stored_values(weights, MlcParameter("a", (3, 5), "float32"))
    np.testing.assert_allclose(halved, values["a"], rtol=2**-8)
    found = stored_values(weights, MlcParameter("b", (7,), "int32"))
    np.testing.assert_array_equal(found, values["b"])


def test_tvm_reads_what_is_written(folder: Path) -> None:
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm.contrib import tvmjs

    found, _ = tvmjs.load_tensor_cache(str(folder), tvm.runtime.device("cpu"))
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


def test_the_older_name_is_read(folder: Path) -> None:
    (folder / "tensor-cache.json").rename(folder / "ndarray-cache.json")
    assert open_weights(folder).cache_file == "ndarray-cache.json"


def shard(document: Any) -> Any:
    return document["records"][0]


def record(document: Any) -> Any:
    return shard(document)["records"][0]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda d: d.clear(), "no list of records"),
        (lambda d: shard(d).update(dataPath="../x.bin"), "no plain file name"),
        (lambda d: shard(d).update(dataPath="/etc/passwd"), "no plain file name"),
        (lambda d: shard(d).update(dataPath=7), "no plain file name"),
        (lambda d: shard(d).update(dataPath="gone.bin"), "No such file"),
        (lambda d: shard(d).update(format="npz"), "not raw-shard"),
        (lambda d: shard(d).update(nbytes=5), "5 expected"),
        (lambda d: shard(d).update(records=None), "has no records"),
        (lambda d: record(d).update(byteOffset=-2), "its shape and type take 48"),
        (lambda d: record(d).update(byteOffset=90), "its shard has 104 bytes"),
        (lambda d: record(d).update(nbytes=1 << 60), "its shape and type take 48"),
        (lambda d: record(d).update(shape=[1 << 50, 1 << 50]), "its shape and type take"),
        (lambda d: record(d).update(shape=[-6, -4]), "has the shape"),
        (lambda d: record(d).update(shape=[True]), "has the shape"),
        (lambda d: record(d).update(dtype="object"), "which is not known"),
        (lambda d: record(d).update(format="zip"), "which is not known"),
        (lambda d: record(d).update(name="model.norm.weight"), "is there twice"),
        (lambda d: record(d).pop("name"), "has no name"),
        (lambda d: shard(d).update(records=[]), "holds no parameter"),
        (lambda d: d.update(records=["x"]), "no object"),
    ],
)
def test_damaged_cache_files(folder: Path, change: Any, wanted: str) -> None:
    mlc_files.edit_cache(folder, change)
    with pytest.raises(ModelError, match=wanted) as caught:
        open_weights(folder)
    assert "\n" not in str(caught.value)


def test_no_cache_file_and_no_json(folder: Path) -> None:
    (folder / "tensor-cache.json").write_text("[")
    with pytest.raises(ModelError, match="not valid JSON"):
        open_weights(folder)
    (folder / "tensor-cache.json").unlink()
    with pytest.raises(ModelError, match="neither tensor-cache"):
        open_weights(folder)


def test_a_shard_that_was_cut(folder: Path) -> None:
    shard_file = folder / "params_shard_0.bin"
    shard_file.write_bytes(shard_file.read_bytes()[:-1])
    with pytest.raises(ModelError, match="103 bytes, 104 expected"):
        open_weights(folder)


def test_weights_of_another_model(folder: Path) -> None:
    weights = open_weights(folder)
    params = DOCUMENT["params"]
    for change, wanted in (
        ([*params, {"name": "x", "shape": [1], "dtype": "int32"}], r"x is missing.*3 stored, 4"),
        (params[:2], "3 parameters, lib.so expects 2"),
        ([{**params[0], "shape": ["vocab_size", 5]}, *params[1:]], r"\[6, 4\], lib.so .*\[6, 5\]"),
        ([{**params[0], "dtype": "bfloat16"}, *params[1:]], "is float16, lib.so expects bfloat16"),
    ):
        with pytest.raises(ModelError, match=wanted):
            weights.check_fits(metadata(params=change), 6, "lib.so")


def test_metadata_sizes() -> None:
    found = metadata()
    assert found.open_vocabulary
    assert found.parameter_bytes(6) == (24 + 4 + 24) * 2
    assert found.step_bytes(6) == ((4 + 24) * 2, 16.0, "")
    assert found.kv_bytes_per_token == 2 * 1 * 2 * 2 * 2
    assert found.workspace_bytes == 300
    assert metadata(sliding_window_size=64).kv_bytes_per_token is None
    tied = metadata(params=DOCUMENT["params"][:2])
    assert tied.step_bytes(6)[0] == (24 + 4) * 2
    assert metadata().projections(6) is None  # no layer
    rows = {"name": "transformer.wpe.weight", "shape": [64, 4], "dtype": "float16"}
    assert metadata(params=[*DOCUMENT["params"], rows]).step_bytes(6)[0] == (4 + 24) * 2
    experts = [*DOCUMENT["params"], {"name": "e", "shape": [8, 4, 4], "dtype": "float16"}]
    assert metadata(params=experts).step_bytes(6)[0] is None
    packed = [
        {"name": "a.q_weight", "shape": [4, 2], "dtype": "uint32"},
        {"name": "a.q_scale", "shape": [4, 1], "dtype": "float16"},
    ]
    assert metadata(params=packed, quantization="q4f16_1").weight_count(6) == 4 * 16
    assert metadata(params=packed, quantization="q4f16_awq").weight_count(6) is None


def test_projections_of_the_first_layer_and_the_head() -> None:
    """What a kernel called NT_matmul7 is for follows from these and the order of a step."""
    names = ("self_attn.qkv_proj", 96, 64), ("self_attn.o_proj", 64, 64), ("mlp.down_proj", 64, 128)
    params = [
        {"name": "model.embed_tokens.weight", "shape": ["vocab_size", 64], "dtype": "float16"}
    ]
    for layer in (0, 1):
        params.append(
            {"name": f"model.layers.{layer}.norm.weight", "shape": [64], "dtype": "float16"}
        )
        for name, n, k in names:
            key = f"model.layers.{layer}.{name}"
            params.append({"name": f"{key}.q_weight", "shape": [n, k // 8], "dtype": "uint32"})
            params.append({"name": f"{key}.q_scale", "shape": [n, k // 32], "dtype": "float16"})
    tied = metadata(params=params, quantization="q4f16_1").projections(300)
    wanted = {name: [n, k, n * k // 2 + n * k // 16] for name, n, k in names}
    assert tied == {**wanted, "model.embed_tokens": [300, 64, 38400]}
    assert list(tied) == [*(name for name, _, _ in names), "model.embed_tokens"]
    params.append({**params[0], "name": "lm_head.weight"})
    own = metadata(params=params, quantization="q4f16_1").projections(300)
    assert own == {**wanted, "lm_head": [300, 64, 38400]}
    assert metadata(params=params, quantization="q4f16_awq").projections(300) is None


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model_type": None}, "model_type is missing"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size is 0"),
        ({"prefill_chunk_size": True}, "prefill_chunk_size is True"),
        ({"context_window_size": "x"}, "context_window_size is 'x'"),
        ({"kv_cache": None}, "kv_cache is missing"),
        ({"params": []}, "lists no params"),
        ({"params": [7]}, "something else than objects"),
        ({"params": [{"name": "a", "shape": [-3], "dtype": "float16"}]}, "has the size -3"),
        ({"params": [{"name": "a", "shape": None, "dtype": "float16"}]}, "has no shape"),
        ({"params": [{"name": "a", "shape": [1], "dtype": "f"}]}, "which is not known"),
        ({"params": 2 * [{"name": "a", "shape": [1], "dtype": "int8"}]}, "a parameter twice"),
    ],
)
def test_bad_metadata(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        metadata(**change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(DOCUMENT)), JSON)
def test_metadata_never_breaks(key: str, value: Any) -> None:
    try:
        metadata(**{key: value})
    except ModelError as why:
        assert "\n" not in str(why)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["dataPath", "format", "nbytes", "records", "name", "shape"]), JSON)
def test_a_cache_file_never_breaks(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    folder = mlc_files.write_folder(tmp_path_factory.mktemp("w") / "x", TENSORS, None)
    mlc_files.edit_cache(folder, lambda d: shard(d).update({key: value}))
    mlc_files.edit_cache(
        folder,
        lambda d: (
            [r.update({key: value}) for r in shard(d)["records"] if type(r) is dict]
            if isinstance(shard(d).get("records"), list)
            else None
        ),
    )
    try:
        open_weights(folder)
    except ModelError as why:
        assert "\n" not in str(why)


def elf(*fatbins: bytes) -> bytes:
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 3, 62) + bytes(44)
    return header + b"__tvm_ffi__library_ctx" + b"".join(fatbins)


def fatbin(kind: int, architecture: int) -> bytes:
    entry = struct.pack("<HHIQIIIIQQQQ", kind, 257, 64, 8, 0, 0, 0, architecture, 0, 0, 0, 0)
    body = entry[:64] + bytes(8)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def inspected(tmp_path: Path, data: bytes) -> Library:
    (tmp_path / "x.so").write_bytes(data)
    return inspect_library(str(tmp_path / "x.so"))


def test_architectures_of_a_library(tmp_path: Path) -> None:
    plain = inspected(tmp_path, elf())
    assert not plain.cuda and plain.machine == "x86-64" and plain.runs_on((9, 0))
    hopper = inspected(tmp_path, elf(fatbin(2, 90)))
    assert hopper.cuda and hopper.binaries == {90}
    assert hopper.runs_on((9, 0)) and not hopper.runs_on((8, 9)) and not hopper.runs_on((10, 0))
    both = inspected(tmp_path, elf(fatbin(2, 80), fatbin(1, 80)))
    assert both.runs_on((8, 6)) and both.runs_on((9, 0)) and not both.runs_on((7, 5))
    flash = inspected(tmp_path, elf() + b"__cudaRegisterFatBinary")
    assert flash.needs_cudart and flash.cuda


def test_no_library(tmp_path: Path) -> None:
    for data, wanted in (
        (b"", "cannot mmap|no shared library"),
        (b"\x7fELF", "no shared library"),
        (elf().replace(b"__tvm", b"__xxx"), "not one that TVM compiled"),
    ):
        with pytest.raises(ModelError, match=wanted):
            inspected(tmp_path, data)
    with pytest.raises(ModelError, match="No such file"):
        inspect_library(str(tmp_path / "gone.so"))


def test_a_library_that_was_cut_off(tmp_path: Path) -> None:
    """Loading it would end the process by SIGBUS. Any real library will do: our interpreter's."""
    import _ctypes

    whole = Path(_ctypes.__file__).read_bytes() + b"__tvm_ffi"
    assert inspected(tmp_path, whole).machine in ("x86-64", "aarch64")
    for kept in (1, 3, 4):
        with pytest.raises(ModelError, match=r"cut off: \d+ bytes, its tables name \d+"):
            inspected(tmp_path, whole[: len(whole) * kept // 5])


@given(st.binary(max_size=200), st.integers(0, 100))
def test_a_library_never_breaks(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("lib")
    whole = elf(fatbin(2, 90), fatbin(1, 80))
    inspected(folder, whole[: len(whole) - cut] + struct.pack("<I", 0xBA55ED50) + junk)


def test_random_parameters_have_their_shapes() -> None:
    kinds = ["uint32", "uint8", "float16", "float32", "bfloat16", "float8_e4m3fn"]
    params = [{"name": f"p{k}", "shape": [3, 5], "dtype": k} for k in kinds]
    found = metadata(params=[*DOCUMENT["params"], *params], quantization="q4f16_1")
    source = RandomParameters(found, 6, 1)
    for parameter in found.parameters:
        values = source.whole(parameter)
        assert values.shape == parameter.sizes(6)
        assert values.nbytes == parameter.n_bytes(6), parameter
    again = RandomParameters(found, 6, 1)
    first = found.parameters[0]
    np.testing.assert_array_equal(again.whole(first), RandomParameters(found, 6, 1).whole(first))


def test_a_preset_of_another_shape() -> None:
    with pytest.raises(ModelError, match="compiled for 1 layers, 2 KV heads of 2; llama2-7b has"):
        metadata().check_shape(PRESETS["llama2-7b"], "llama2-7b", "lib.so")


def test_a_wrong_pair_of_tvm_is_named(tmp_path: Path) -> None:
    """A tvm that does not import with the tvm-ffi beside it, in a process of its own."""
    for name in ("tvm", "tvm_ffi"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "tvm" / "__init__.py").write_text("raise AttributeError('no _ffi_api')")
    for name, version in (("apache_tvm", "0.26.0"), ("apache_tvm_ffi", "0.1.12")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: {version}\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from llmprof.engines.mlc.tvm import open_tvm\n"
        "from llmprof.errors import MissingPackage\n"
        "try: open_tvm(False)\n"
        "except MissingPackage as why: print(why)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "apache-tvm 0.26.0 with apache-tvm-ffi 0.1.12" in done.stdout
    assert "0.26.0 goes with apache-tvm-ffi 0.1.15.post2" in done.stdout


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        (1, r"mlc:device=cuda:9: TVM sees cuda:0 only"),
        (4, r"mlc:device=cuda:9: TVM sees cuda:0 to cuda:3 only"),
        (0, r"TVM sees no cuda:9; .*a library for the CPU is made with"),
    ],
)
def test_a_gpu_that_is_not_there(gpus: int, wanted: str) -> None:
    def device(kind: str, index: int) -> SimpleNamespace:
        return SimpleNamespace(exist=index < gpus)

    library = Library(Path("x.so"), "x86-64", frozenset({90}), frozenset(), False)
    with pytest.raises(UsageError, match=wanted):
        open_device(SimpleNamespace(device=device), library, "cuda", 9)  # type: ignore[arg-type]


def test_flashinfer_without_the_cuda_runtime_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading such a library would end the process."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from llmprof.engines.mlc import tvm as mlc_tvm

    library = inspected(tmp_path, elf() + b"__cudaRegisterFatBinary")
    monkeypatch.setattr(mlc_tvm, "preload_cudart", lambda: None)
    with pytest.raises(MissingPackage, match=r"libcudart\.so\.13.*nvidia-cuda-runtime"):
        mlc_tvm.open_library(library)


def test_a_library_that_tvm_does_not_load_is_said(tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from llmprof.engines.mlc import tvm as mlc_tvm

    with pytest.raises(ModelError, match=r"apache-tvm 0\.26\.0 and apache-tvm-ffi") as caught:
        mlc_tvm.open_library(inspected(tmp_path, elf()))
    assert "\n" not in str(caught.value)
