"""Random weights of every format make a model that listens to its prompt.

One whose weights have a common mean answers every prompt with one token, and then a text that
repeats itself, or two drives that agree, prove nothing.
"""

from __future__ import annotations

from pathlib import Path

import exllama_reference as reference
import numpy as np
import pytest
import reference_llama

from llmprof.models import synth
from llmprof.models.mlc.metadata import MlcMetadata, MlcParameter
from llmprof.models.mlc.random import RandomParameters
from llmprof.models.presets import LlamaConfig

CONFIG = LlamaConfig(128, 256, 2, 4, 2, 32, 96, 1e-5, 10000.0, 512)
PROMPTS = [
    [*(int(i) for i in np.random.default_rng(seed).integers(3, 96, 7)), 50] for seed in (1, 2, 3)
]
"""With one last token, so that what differs at the end is what came before."""


def check(weights: dict[str, np.ndarray]) -> None:
    """The most likely next token after every position of three prompts."""
    logits = [reference_llama.logits(CONFIG, weights, prompt) for prompt in PROMPTS]
    found = [rows.argmax(-1) for rows in logits]
    assert len({tuple(tokens) for tokens in found}) == 3
    assert len(set(np.concatenate(found))) > 10, found
    last = [rows[-1] for rows in logits]
    spread = np.std(last, axis=0).mean() / np.std(last[0])
    assert spread > 0.05, spread


@pytest.mark.parametrize(
    ("engine", "kind", "bits"),
    [
        ("exllamav2", "gptq", 4),
        ("exllamav2", "fp16", 16),
        ("exllamav2", "exl2", None),
        ("exllamav2", "exl2", 2),
        ("exllamav2", "exl2", 3),
        ("exllamav2", "exl2", 6),
        ("exllamav3", "exl3", 2),
        ("exllamav3", "exl3", 4),
    ],
)
def test_exllama_formats(tmp_path: Path, engine: str, kind: str, bits: int | None) -> None:
    request = synth.SynthRequest(CONFIG, engine, kind, bits=bits)  # type: ignore[arg-type]
    synth.synthesise(request, tmp_path / "m", lambda what, share: None)
    tensors = reference.read_file(tmp_path / "m" / "model.safetensors")
    decode = {"gptq": reference.gptq_weight, "exl2": reference.exl2_weight}
    decode["exl3"] = reference.exl3_weight
    weights = {}
    for name in CONFIG.tensor_shapes():
        if name in tensors:
            weights[name] = tensors[name]
        else:
            weights[name] = decode[kind](tensors, name.removesuffix(".weight")).T
    check(weights)


@pytest.mark.parametrize(("bits", "per_word"), [(3, 10), (4, 8), (8, 4)])
def test_mlc_group_quantisation(bits: int, per_word: int) -> None:
    """Decoded as ``quantization/group_quantization.py`` of MLC LLM does it."""
    parameters, shapes = [], CONFIG.tensor_shapes()
    for name, (outputs, *inputs) in shapes.items():
        if not inputs:
            parameters.append(MlcParameter(name, (outputs,), "float16"))
            continue
        key = name.removesuffix("weight")
        group = 40 if bits == 3 else 32
        words, groups = -(-inputs[0] // per_word), -(-inputs[0] // group)
        parameters.append(MlcParameter(f"{key}q_weight", (outputs, words), "uint32"))
        parameters.append(MlcParameter(f"{key}q_scale", (outputs, groups), "float16"))
    library = metadata(f"q{bits}f16_1", parameters)
    source = RandomParameters(library, CONFIG.vocab_size, 5)
    stored = {p.name: source.whole(p) for p in parameters}
    weights = {}
    for name, (_, *inputs) in shapes.items():
        if not inputs:
            weights[name] = stored[name]
            continue
        key = name.removesuffix("weight")
        words, scale = stored[f"{key}q_weight"], stored[f"{key}q_scale"].astype(np.float32)
        shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
        codes = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
        codes = codes.reshape(len(words), -1)[:, : inputs[0]].astype(np.float32)
        centred = codes - ((1 << (bits - 1)) - 1)
        assert abs(centred.mean()) < 5 * centred.std() / np.sqrt(centred.size)
        scales = np.repeat(scale, 40 if bits == 3 else 32, axis=1)[:, : inputs[0]]
        weights[name] = centred * scales
        if "embed" not in name:
            gain = np.sqrt((weights[name] ** 2).mean() * inputs[0])
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert gain == pytest.approx(0.2 if residual else 1.0, rel=0.1)
    check(weights)


@pytest.mark.parametrize("quantization", ["q0f16", "q0bf16"])
def test_mlc_floats(quantization: str) -> None:
    dtype = "float16" if quantization == "q0f16" else "bfloat16"
    parameters = [MlcParameter(n, shape, dtype) for n, shape in CONFIG.tensor_shapes().items()]
    source = RandomParameters(metadata(quantization, parameters), CONFIG.vocab_size, 5)
    weights = {}
    for parameter in parameters:
        values = source.whole(parameter)
        if dtype == "bfloat16":
            values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        weights[parameter.name] = values
    check(weights)


def test_presets_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from llmprof.engines.torch.llama import random_weights

    read = random_weights(CONFIG, 3, torch.device("cpu"), torch.float32)
    check({name: read(name).numpy() for name in CONFIG.tensor_shapes()})


def metadata(quantization: str, parameters: list[MlcParameter]) -> MlcMetadata:
    c = CONFIG
    return MlcMetadata(
        *("llama", quantization, 512, 64, 1, 1, 1, None, 1, "kv_cache", c.vocab_size),
        *(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, tuple(parameters), 0),
    )
