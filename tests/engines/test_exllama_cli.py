"""The ExLlama engines through the real command, where neither their packages nor a GPU exist."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest

from llmprof.models.exllama.shapes import FORMATS
from llmprof.models.presets import LlamaConfig
from llmprof.models.synth import SynthRequest, synthesise

SMALL = LlamaConfig(256, 256, 1, 2, 2, 128, 64, 1e-5, 10000.0, 512)
ENGINES = {"exllama": "0.1.0", "exllamav2": "0.3.2", "exllamav3": "1.6.5"}
absent = pytest.mark.skipif(
    any(util.find_spec(name) for name in ENGINES), reason="an ExLlama package is installed here"
)


def model(tmp_path: Path, engine: str) -> str:
    target = tmp_path / engine
    synthesise(SynthRequest(SMALL, engine, FORMATS[engine][0]), target, lambda what, share: None)
    return str(target)


def failure(llmprof, engine: str, path: str, *more: str) -> str:
    done = llmprof("--headless", "--engine", engine, "--model", path, "--prompt-len", "8", *more)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return " ".join(done.stderr.split())


@absent
@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_package_says_what_to_install(llmprof, tmp_path: Path, engine: str) -> None:
    text = failure(llmprof, engine, model(tmp_path, engine))
    assert f"pip install {engine}=={ENGINES[engine]}" in text


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("exllamav2:sync=0", "drive=forward"),
        ("exllamav2:cache=q5", "choose from fp16, q8, q6, q4"),
        ("exllamav2:atention=flash", "did you mean attention?"),
        ("exllamav2:drive=own", "generator, forward"),
    ],
)
def test_bad_options(llmprof, tmp_path: Path, engine: str, words: str) -> None:
    assert words in failure(llmprof, engine, model(tmp_path, "exllamav2"))


def test_the_wrong_format(llmprof, tmp_path: Path) -> None:
    text = failure(llmprof, "exllamav3", model(tmp_path, "exllama"))
    assert "exllamav3 does not load gptq, it loads exl3 and fp16" in text


def test_a_preset_says_how_to_make_a_folder(llmprof) -> None:
    assert "llmprof model synth" in failure(llmprof, "exllamav2", "tiny")


def test_a_truncated_model(llmprof, tmp_path: Path) -> None:
    path = model(tmp_path, "exllamav2")
    file = Path(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    assert "truncated" in failure(llmprof, "exllamav2", path)


def test_a_context_that_is_too_small(llmprof, tmp_path: Path) -> None:
    text = failure(llmprof, "exllamav2", model(tmp_path, "exllamav2"), "--decode-len", "600")
    assert "context" in text
