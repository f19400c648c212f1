"""``llmprof model synth``: random models, whole or not at all."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import exllama_reference as reference
import numpy as np
import pytest

from llmprof.cli.model_command import add_arguments, model
from llmprof.errors import UsageError
from llmprof.models import synth
from llmprof.models.exllama.files import inspect_folder
from llmprof.models.presets import PRESETS, LlamaConfig

CONFIG = LlamaConfig(128, 256, 2, 4, 2, 32, 96, 1e-5, 10000.0, 512)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return model(parser.parse_args(arguments))


def quiet(what: str, share: float) -> None: ...


@pytest.mark.parametrize(
    ("engine", "extra"),
    [
        ("exllama", ()),
        ("exllamav2", ("--bits", "mix", "--head-bits", "6")),
        ("exllamav2", ("--format", "fp16")),
        ("exllamav2", ("--format", "gptq", "--group-size", "64")),
        ("exllamav3", ("--bits", "3", "--head-bits", "6")),
    ],
)
def test_the_command_makes_what_the_engine_accepts(tmp_path: Path, capsys, engine, extra) -> None:
    target = tmp_path / "m"
    assert run("synth", "tiny-128", "--engine", engine, "-o", str(target), *extra) == 0
    assert "random" in capsys.readouterr().out
    found = inspect_folder(str(target), engine)
    assert found.random
    assert found.config == PRESETS["tiny-128"]
    assert [path.name for path in sorted(target.iterdir())] == ["config.json", "model.safetensors"]


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        request = synth.SynthRequest(CONFIG, "exllamav2", "exl2", seed=seed)
        synth.synthesise(request, tmp_path / name, quiet)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_weights_keep_activations_near_one(tmp_path: Path) -> None:
    """Through the decoded weights of a whole small model, in the order of a Llama's blocks."""
    request = synth.SynthRequest(CONFIG, "exllamav2", "exl2", bits=None)
    synth.synthesise(request, tmp_path / "m", quiet)
    tensors = reference.read_file(tmp_path / "m" / "model.safetensors")
    x = tensors["model.embed_tokens.weight"][5].astype(float)

    def normed(row: np.ndarray) -> np.ndarray:
        return row / np.sqrt((row**2).mean())

    for layer in range(2):
        key = f"model.layers.{layer}."
        value = normed(x) @ reference.exl2_weight(tensors, f"{key}self_attn.v_proj")
        heads = np.repeat(value.reshape(2, 32), 2, axis=0).reshape(-1)
        x = x + heads @ reference.exl2_weight(tensors, f"{key}self_attn.o_proj")
        gate = normed(x) @ reference.exl2_weight(tensors, f"{key}mlp.gate_proj")
        up = normed(x) @ reference.exl2_weight(tensors, f"{key}mlp.up_proj")
        x = x + gate / (1 + np.exp(-gate)) * up @ reference.exl2_weight(
            tensors, f"{key}mlp.down_proj"
        )
        assert 0.2 < np.sqrt((x**2).mean()) < 5
    logits = tensors["lm_head.weight"].astype(float) @ normed(x)
    assert 0.5 < logits.std() < 2


def test_a_shape_from_a_config_file(tmp_path: Path) -> None:
    synth.synthesise(synth.SynthRequest(CONFIG, "exllamav2", "exl2"), tmp_path / "m", quiet)
    assert synth.find_config(None, str(tmp_path / "m" / "config.json")) == CONFIG


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama2-8b", "--engine", "exllamav2"], "llama2-13b"),
        (["tiny", "--engine", "exllamav2"], "tiny-128"),
        (["tiny-128", "--engine", "exllama", "--format", "exl2"], "does not load exl2"),
        (["tiny-128", "--engine", "exllamav2", "--bits", "7"], "--bits 7"),
        (["tiny-128", "--engine", "exllamav3", "--bits", "mix"], "--bits mix"),
        (["tiny-128", "--engine", "exllamav3", "--bits", "x"], "--bits x"),
        (["tiny-128", "--engine", "exllama", "--bits", "3"], "gptq has 4"),
        (["tiny-128", "--engine", "exllama", "--head-bits", "6"], "--head-bits 6"),
        (["tiny-128", "--engine", "exllama", "--group-size", "48"], "48"),
        (["--engine", "exllama"], "--config"),
    ],
)
def test_bad_requests_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("synth", *arguments, "-o", str(tmp_path / "m"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    with pytest.raises(UsageError, match="not overwritten"):
        run("synth", "tiny-128", "--engine", "exllama", "-o", str(target))
    assert not list(target.iterdir())


def test_a_full_disk_is_seen_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10 << 20))
    with pytest.raises(UsageError, match=r"0\.01 GB are free"):
        run("synth", "tiny-128", "--engine", "exllama", "-o", str(tmp_path / "m"))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        request = synth.SynthRequest(CONFIG, "exllamav2", "fp16")
        synth.synthesise(request, tmp_path / "m", interrupt)
    assert not list(tmp_path.iterdir())


def test_the_config_says_that_weights_are_random(tmp_path: Path) -> None:
    synth.synthesise(synth.SynthRequest(CONFIG, "exllamav2", "exl2", seed=9), tmp_path / "m", quiet)
    data = json.loads((tmp_path / "m" / "config.json").read_text())
    assert data["llmprof"] == {"random": True, "seed": 9}
    assert data["architectures"] == ["LlamaForCausalLM"]
