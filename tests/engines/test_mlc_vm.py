"""The vm drive on libraries that TVM's own compiler made for this CPU: logits against a numpy
reference, the same greedy tokens as the torch engine through the real command, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlc_files
import numpy as np
import pytest
import reference_llama
import small_models
from mlc_files import decode, load

from llmprof.engines.base import Engine
from llmprof.engines.mlc import engine as mlc_engine
from llmprof.errors import ModelError, OutOfMemory, UsageError

pytest.importorskip("tvm", reason="apache-tvm is not installed")
mlc_tiny = pytest.importorskip("mlc_tiny", reason="apache-tvm has no compiler here")

CONFIG = mlc_tiny.CONFIG
PROMPT = [3, 141, 59, 26, 5, 35, 8, 97, 93]
Made = dict[str, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The library, an MLC folder and a Hugging Face folder of the same fp32 weights."""
    root = tmp_path_factory.mktemp("mlc")
    library = mlc_tiny.compile_library(mlc_tiny.Build(), root / "tiny.so")
    tensors = small_models.weights(CONFIG)
    hf = small_models.write_hf(root / "hf", tensors)
    config = {**small_models.hf_config(CONFIG), "llmprof": {"weights_id": mlc_files.WEIGHTS_ID}}
    (hf / "config.json").write_text(json.dumps(config))
    fused = mlc_tiny.weights_from_hf(tensors, CONFIG, "float32")
    return {"lib": library, "mlc": mlc_files.write_folder(root / "mlc", fused), "hf": hf}


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return reference_llama.logits(CONFIG, small_models.weights(CONFIG), PROMPT)


def test_logits_are_those_of_the_reference(made: Made, reference: np.ndarray) -> None:
    engine = load(made["mlc"], lib=str(made["lib"]))
    assert isinstance(engine, Engine)
    for length in (1, 2, len(PROMPT)):
        found = engine.drive.logits([PROMPT[:length]])[0]
        np.testing.assert_allclose(found, reference[length - 1], atol=2e-3)


def test_decode_continues_as_the_reference(made: Made) -> None:
    weights, ids = small_models.weights(CONFIG), list(PROMPT)
    for _ in range(5):
        ids.append(int(reference_llama.logits(CONFIG, weights, ids)[-1].argmax()))
    engine = load(made["mlc"], lib=str(made["lib"]))
    wanted = ids[len(PROMPT) :]
    assert decode(engine, [PROMPT], 4) == [wanted]
    assert decode(engine, [PROMPT], 4) == [wanted], "the second round must not see the first"


def test_prompts_longer_than_a_chunk(made: Made) -> None:
    """150 positions in chunks of 64, and more pages than one."""
    row = [int(i) for i in np.random.default_rng(3).integers(3, 500, 150)]
    wanted = reference_llama.logits(CONFIG, small_models.weights(CONFIG), row)[-1]
    engine = load(made["mlc"], lib=str(made["lib"]), positions=200)
    assert list(engine.prefill([row])) == [int(wanted.argmax())]


def test_a_batch_decodes_as_its_sequences_alone(made: Made) -> None:
    """Prompts of 40 in chunks of 64: the second call holds the rest of one and all of another."""
    source = np.random.default_rng(5)
    rows = [[int(i) for i in source.integers(3, 500, 40)] for _ in range(3)]
    options = {"lib": str(made["lib"])}
    together = decode(load(made["mlc"], batch=3, **options), rows, 20)
    alone = [decode(load(made["mlc"], **options), [row], 20)[0] for row in rows]
    assert together == alone
    assert len({tuple(row) for row in together}) == 3


def test_it_describes_itself_from_the_metadata(made: Made) -> None:
    info = load(made["mlc"], lib=str(made["lib"]), drive="vm").describe()
    tensors = small_models.weights(CONFIG)
    count = sum(t.size for t in tensors.values())
    table = tensors["model.embed_tokens.weight"].size
    assert info.parameters == count
    assert info.weight_bytes_per_step == 4 * (count - table)
    assert info.bits_per_weight == 32
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4
    assert (info.context_limit, info.vocab_size) == (512, 512)
    assert (info.drive, info.device, info.dtype) == ("vm", "cpu", "fp32")
    assert info.cuda_graph is None
    assert info.model_format == "mlc q0f32"
    assert info.weights_id == mlc_files.WEIGHTS_ID
    assert set(info.versions) == {"tvm", "tvm_ffi"}


def test_the_same_tokens_as_torch_through_the_command(made: Made, llmprof: Any) -> None:
    done = llmprof(
        *("--engine", f"mlc:lib={made['lib']},drive=vm,model={made['mlc']}"),
        *("--engine", f"torch:model={made['hf']},device=cpu"),
        *("--prompt-len", "20", "--decode-len", "24", "--rounds", "2", "--traced-steps", "4"),
        *("--headless", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    agreement = report["agreement"][0]
    assert agreement["common_prefix"] == 25, agreement
    assert agreement["agreement"] == 1.0
    assert [engine["name"] for engine in report["engines"]] == ["mlc", "torch"]
    assert [engine["state"] for engine in report["engines"]] == ["finished", "finished"]


def test_random_weights_on_the_device(made: Made, llmprof: Any, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(" ".join(map(str, PROMPT)))
    done = llmprof(
        *("--engine", f"mlc:lib={made['lib']},weights=random", "--prompt-ids", "ids.txt"),
        *("--decode-len", "4", "--rounds", "2", "--traced-steps", "2", "--headless", "--json"),
    )
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)["engines"][0]["info"]
    assert info["model_format"] == "random mlc q0f32"
    assert info["weights_id"] is None


def test_the_vocabulary_of_random_weights_is_the_library_s(made: Made) -> None:
    engine = load("random", lib=str(made["lib"]))
    with pytest.raises(UsageError, match="outside the vocabulary of 512"):
        engine.prefill([[512]])
    assert load("random", lib=str(made["lib"]), vocab="700").describe().vocab_size == 700


def test_phases_are_nvtx_ranges(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    nvtx = pytest.importorskip("nvtx", reason="nvtx is not installed")
    events: list[str] = []

    class Domain:
        def get_event_attributes(self, message: str) -> str:
            return message

        def push_range(self, name: str) -> None:
            events.append(name)

        def pop_range(self) -> None:
            events.append("end")

    monkeypatch.setattr(nvtx, "get_domain", lambda name: Domain())
    plain = decode(load(made["mlc"], lib=str(made["lib"])), [PROMPT], 6)
    engine = load(made["mlc"], lib=str(made["lib"]), phases="1")
    events.clear()
    assert decode(engine, [PROMPT], 6) == plain
    assert events == ["embed", "end", "forward", "end", "logits", "end", "sample", "end"] * 6


def test_limits(made: Made) -> None:
    options = {"lib": str(made["lib"])}
    for wanted, more in (
        ("context of 512", {"positions": 600}),
        ("at most 4", {"batch": 5}),
        ("too small: batch 2 with 64 positions each needs 128", {"batch": 2, "kv_tokens": "112"}),
        ("no paged|tir KV cache", {"kv": "flashinfer"}),
        ("choose from auto, cpu, cuda", {"device": "tpu"}),
        ("did you mean phases", {"phase": "1"}),
        ("compiled for another device than CUDA", {"device": "cuda"}),
        (r"is compiled for 1 GPU; .* tensor_parallel_shards=2", {"tp": "2"}),
    ):
        with pytest.raises(UsageError, match=wanted):
            load(made["mlc"], **options, **more)  # type: ignore[arg-type]


def test_a_library_for_several_gpus_wants_them_all() -> None:
    def seen(count: int) -> Any:
        return SimpleNamespace(device=lambda kind, n: SimpleNamespace(exist=n < count))

    check = mlc_engine._check_split
    check(2, 2, "lib.so", seen(2), "cuda", 0)
    check(None, 2, "lib.so", seen(4), "cuda", 0)
    with pytest.raises(UsageError, match="compiled for 4 GPUs, TVM sees 2"):
        check(4, 4, "lib.so", seen(2), "cuda", 0)
    with pytest.raises(UsageError, match=r"compiled for 2 GPUs; .* tensor_parallel_shards=4"):
        check(4, 2, "lib.so", seen(4), "cuda", 0)
    with pytest.raises(UsageError, match="takes GPU 0 to 1"):
        check(2, 2, "lib.so", seen(4), "cuda", 1)
    assert mlc_engine._devices("cuda:0", 2) == "cuda:0,1"
    assert mlc_engine._devices("cuda:1", 1) == "cuda:1"


def test_a_kv_cache_that_does_not_fit(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen beforehand; or where the estimate is too low, in what TVM says."""
    options = {"lib": str(made["lib"])}
    with pytest.raises(OutOfMemory, match=r"need \d+ MiB, \d+ MiB are free on cpu"):
        load(made["mlc"], kv_tokens="400000000", **options)

    def refuse(opening: Any) -> None:
        raise RuntimeError("InternalError: std::bad_alloc")

    monkeypatch.setattr("llmprof.engines.mlc.loading.open_vm", refuse)
    with pytest.raises(OutOfMemory, match=r"did not fit on cpu; \d+ MiB are free"):
        load(made["mlc"], **options)


def test_a_model_without_a_library(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no library beside the weights; name one"):
        load(made["mlc"])
    folder = tmp_path / "dist" / "tiny-MLC"
    folder.parent.mkdir()
    folder.symlink_to(made["mlc"])
    with pytest.raises(UsageError, match=r"mlc:lib=FILE\.so"):
        load("tiny", weights="random")
    with pytest.raises(ModelError, match="loads a folder of MLC weights"):
        load(made["hf"], lib=str(made["lib"]))


def test_the_library_beside_the_weights_is_found(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "dist" / "tiny-MLC"
    mlc_files.write_folder(
        (folder.parent.mkdir(), folder)[1],
        mlc_tiny.weights_from_hf(small_models.weights(CONFIG), CONFIG, "float32"),
    )
    libs = folder.parent / "libs"
    libs.mkdir()
    (libs / "tiny-cpu.so").symlink_to(made["lib"])
    (libs / "other-cpu.so").symlink_to(made["lib"])
    assert load(folder).describe().model == "tiny-MLC"
