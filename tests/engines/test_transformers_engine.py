"""The transformers engine: every drive against transformers' own ``generate``, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_models

from llmprof.engines.base import Engine, LoadRequest, OpTracedEngine
from llmprof.engines.torch.engine import TorchEngine
from llmprof.engines.transformers.engine import TransformersEngine
from llmprof.errors import MissingPackage, ModelError, UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")

PROMPTS = [[3, 41, 59, 26, 5, 35], [7, 8, 9, 10, 11, 12]]
STEPS = 9
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "vocab_size": 97,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.write_hf(tmp_path_factory.mktemp("hf") / "small", small_models.weights())


def load(model: Path | str, batch: int = 1, positions: int = 40, **options: str) -> Any:
    engine = TransformersEngine()
    request = LoadRequest(str(model), {"device": "cpu", **options}, batch, positions, seed=1)
    engine.load(request, lambda text, share: None)
    return engine


def decode(engine: Any, rows: list[list[int]], steps: int = STEPS) -> list[list[int]]:
    found = [engine.prefill(rows), *(engine.decode_step() for _ in range(steps))]
    engine.reset()
    return [list(column) for column in zip(*found, strict=True)]


def reference(folder: Path, rows: list[list[int]]) -> list[list[int]]:
    """What the package's plain ``generate`` makes of the prompts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(rows)
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=STEPS + 1,
        min_new_tokens=STEPS + 1,
    )
    tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("drive", ["generate", "forward"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens_are_those_of_generate(folder: Path, drive: str, cache: str, attention: str) -> None:
    engine = load(folder, 2, drive=drive, cache=cache, attention=attention)
    wanted = reference(folder, PROMPTS)
    assert decode(engine, PROMPTS) == wanted
    # A round that ends early leaves nothing behind for the next one.
    engine.prefill(PROMPTS)
    engine.decode_step()
    engine.reset()
    assert decode(engine, PROMPTS) == wanted
    engine.close()


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="compiling for a CPU takes a minute; seen on a GPU"
)
@pytest.mark.parametrize(
    ("drive", "mode"),
    [("forward", "default"), ("forward", "reduce-overhead"), ("generate", "reduce-overhead")],
)
def test_compiled_drives_give_the_same_tokens(folder: Path, drive: str, mode: str) -> None:
    plain = load(folder, device="cuda", dtype="fp32", drive="forward")
    engine = load(folder, device="cuda", dtype="fp32", drive=drive, compile=mode)
    assert decode(engine, PROMPTS[:1]) == decode(plain, PROMPTS[:1])
    assert engine.describe().cuda_graph is (mode == "reduce-overhead")


def test_threads_are_those_of_the_machine_unless_the_user_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("llmprof.engines.pytorch.devices.default_threads", lambda: 3)
    try:
        assert load(folder).describe().threads == 3
        assert load(folder, threads="2").describe().threads == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        torch.set_num_threads(1)
        assert load(folder).describe().threads == 1  # what torch took from the environment
    finally:
        torch.set_num_threads(before)


def test_it_fills_the_protocols(folder: Path) -> None:
    engine = load(folder)
    assert isinstance(engine, Engine) and isinstance(engine, OpTracedEngine)
    engine.prefill(PROMPTS[:1])
    engine.start_op_trace()
    engine.decode_step()
    names = {name for name, *_ in engine.stop_op_trace()}
    assert "aten::linear" in names


def test_the_end_token_is_ignored(tmp_path: Path) -> None:
    """Every token ends the text by this config; decoding goes on all the same."""
    path = small_models.write_hf(tmp_path / "m", small_models.weights())
    document = json.loads((path / "config.json").read_text())
    document["eos_token_id"] = list(range(document["vocab_size"]))
    (path / "config.json").write_text(json.dumps(document))
    # What the folder says of sampling does not count either.
    (path / "generation_config.json").write_text('{"do_sample": true, "repetition_penalty": 5.0}')
    assert decode(load(path, 2), PROMPTS) == decode(load(path, 2, drive="forward"), PROMPTS)


def test_a_gguf_file_and_its_folder_are_one_model(folder: Path, tmp_path: Path) -> None:
    path = small_models.write_gguf(tmp_path / "small.gguf", small_models.weights())
    engine = load(path)
    assert decode(engine, PROMPTS[:1]) == reference(folder, PROMPTS[:1])
    other = TorchEngine()
    other.load(LoadRequest(str(path), {"device": "cpu"}, 1, 40), lambda text, share: None)
    found, theirs = engine.describe(), other.describe()
    assert decode(other, PROMPTS[:1]) == decode(engine, PROMPTS[:1])
    assert found.weights_id == theirs.weights_id is not None
    assert (found.parameters, found.weight_bytes_per_step, found.kv_bytes_per_token) == (
        theirs.parameters,
        theirs.weight_bytes_per_step,
        theirs.kv_bytes_per_token,
    )


def test_any_architecture_from_its_config_alone(tmp_path: Path) -> None:
    file = tmp_path / "tiny-gpt2" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(GPT2))
    engine = load(file, 2)
    tokens = decode(engine, PROMPTS)
    assert tokens == decode(load(file, 2, drive="forward"), PROMPTS)
    info = engine.describe()
    assert (info.model, info.architecture, info.model_format) == (
        "tiny-gpt2",
        "gpt2",
        "random float32",
    )
    # The token table is the output head too and is read whole; of the position table one row is.
    assert info.weight_bytes_per_step == 4 * (info.parameters - 64 * 32)
    assert info.kv_bytes_per_token == 2 * 2 * 32 * 4


def test_what_a_step_reads_is_unknown_where_it_depends(tmp_path: Path) -> None:
    document = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "vocab_size": 97,
        "max_position_embeddings": 64,
        "sliding_window": None,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    info = load(file, drive="forward").describe()
    assert info.weight_bytes_per_step is None
    assert any("mixture of experts" in note for note in info.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "dynamic", "compile": "default"}, "needs cache=static"),
        ({"compile": "default"}, "generate compiles on a GPU only"),
        ({"drive": "forward", "compile": "reduce-overhead"}, "needs device=cuda"),
        ({"attenton": "sdpa"}, "did you mean attention"),
        ({"dtype": "fp8"}, "choose from fp32, bf16, fp16"),
        ({"device": "cuda:0"}, "sees no CUDA GPU"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: dict[str, str], words: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("what a machine without a GPU refuses")
    with pytest.raises(UsageError, match=words):
        load(folder, **options)


def test_flash_attention_that_is_not_installed(folder: Path) -> None:
    with pytest.raises((MissingPackage, UsageError, ModelError), match=r"(?i)flash"):
        load(folder, attention="flash")


def _changed(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    document = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**document, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "code of its own"),
        ({"num_hidden_layers": 1}, "has no use for tensor model.layers.1"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
        ({"intermediate_size": 24}, "shape of|size mismatch"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "accelerate|optimum|gptq"),
    ],
)
def test_folders_that_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((ModelError, MissingPackage), match=words) as refused:
        load(_changed(folder, tmp_path / "m", **changes))
    assert "\n" not in str(refused.value)


def test_pickle_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    target = _changed(folder, tmp_path / "m")
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        load(target)


def test_a_context_that_is_too_long(folder: Path) -> None:
    with pytest.raises(UsageError, match="shorten --prompt-len"):
        load(folder, positions=10**6)


def test_the_torch_engine_takes_a_llama_config_and_says_what_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GPT2))
    engine = TorchEngine()
    with pytest.raises(ModelError):
        engine.load(LoadRequest(str(file), {"device": "cpu"}), lambda text, share: None)
