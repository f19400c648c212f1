"""Models with random weights in the ExLlama engines' own formats. Uses numpy.

Decode speed does not depend on the values of weights. They are only kept sane: each projection maps
unit variance to about unit variance (a fifth of that into the residual stream), norms are 1, so
that no activation leaves the range of fp16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmprof.errors import UsageError
from llmprof.models import gptq
from llmprof.models.exllama import exl2, exl3
from llmprof.models.exllama.shapes import (
    FORMATS,
    GROUP_SIZES,
    EngineName,
    FormatName,
    misfit,
    projections,
)
from llmprof.models.huggingface.config import config_json, gptq_config
from llmprof.models.locate import read_json
from llmprof.models.new_folder import new_folder, write_json
from llmprof.models.presets import EMBEDDING, FINAL_NORM, HEAD, PRESETS, LlamaConfig
from llmprof.models.random_values import RandomSource
from llmprof.models.safetensors.writer import PlannedTensor, write_safetensors

Told = Callable[[str, float], None]
"""``told("writing weights", 0.4)``."""
_RESIDUAL_GAIN = 0.2
_EMBEDDING_STD = 0.5


@dataclass(frozen=True)
class SynthRequest:
    """What to make; ``check`` says what is wrong with it."""

    config: LlamaConfig
    engine: EngineName
    format: FormatName
    bits: int | None = 4
    """``None`` is EXL2's mix of 5, 4 and 3 bits, 4.0 on average."""
    head_bits: int = 16
    group_size: int = 128
    seed: int = 0

    def check(self) -> None:
        """Raise ``UsageError`` for what the engine or the format does not know."""
        reason = misfit(self.config, self.engine, self.format, self.group_size)
        if reason:
            raise UsageError(f"{reason}; all formats take the preset tiny-128")
        known: dict[FormatName, tuple[int | None, ...]] = {
            "gptq": (gptq.BITS,),
            "exl2": (None, *exl2.BITS),
            "exl3": exl3.BITS,
            "fp16": (16,),
        }
        if self.format != "fp16" and self.bits not in known[self.format]:
            choices = ", ".join("mix" if bits is None else str(bits) for bits in known[self.format])
            raise UsageError(f"--bits {self.bits or 'mix'}: {self.format} has {choices}")
        if self.format == "gptq" and self.group_size not in GROUP_SIZES:
            raise UsageError(f"--group-size {self.group_size}: choose from 128, 64, 32")
        heads = known[self.format] if self.format in ("exl2", "exl3") else ()
        if self.head_bits != 16 and self.head_bits not in heads:
            raise UsageError(f"--head-bits {self.head_bits}: {self.format} cannot store that head")
        if self.head_bits != 16 and self.format == "exl2" and self.config.vocab_size % 32:
            raise UsageError("--head-bits: an EXL2 head needs a vocabulary that 32 divides")


def find_config(preset: str | None, config_file: str | None) -> LlamaConfig:
    """The shape of a preset or of somebody's ``config.json``.

    Raises:
        UsageError: neither or both, or an unknown preset.
        ModelError: the file is no Llama configuration.
    """
    if (preset is None) == (config_file is None):
        raise UsageError("name a preset or give --config config.json, one of the two")
    if config_file is not None:
        data = read_json(Path(config_file))
        return LlamaConfig.from_hf({k: v for k, v in data.items() if k != "quantization_config"})
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; presets: {', '.join(sorted(PRESETS))}")
    return PRESETS[str(preset)]


def default_format(engine: EngineName) -> FormatName:
    return FORMATS[engine][0]


def synthesise(request: SynthRequest, target: Path, told: Told) -> int:
    """Write the model; the bytes of its weights.

    Raises:
        UsageError: impossible request, ``target`` exists, or the disk is too small.
    """
    request.check()
    tensors = planned(request)
    total = sum(tensor.n_bytes for tensor in tensors)
    with new_folder(target, total) as folder:
        write_json(folder / "config.json", _document(request))
        write_safetensors(
            folder / "model.safetensors",
            tensors,
            lambda written: told("writing weights", written / total),
        )
    return total


def planned(request: SynthRequest) -> list[PlannedTensor]:
    """Every tensor of the model, made when it is written."""
    config = request.config
    source = RandomSource(request.seed)
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [_halves(EMBEDDING, (vocab, hidden), _EMBEDDING_STD, source)]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        tensors.append(_ones(f"{prefix}input_layernorm.weight", hidden))
        for name, (k, n) in projections(config).items():
            residual = name.endswith(("o_proj", "down_proj"))
            gain = _RESIDUAL_GAIN if residual else 1.0
            tensors += _projection(request, prefix + name, k, n, gain, source)
        tensors.append(_ones(f"{prefix}post_attention_layernorm.weight", hidden))
    tensors.append(_ones(FINAL_NORM, hidden))
    if request.head_bits == 16:
        tensors.append(_halves(HEAD, (vocab, hidden), 1 / math.sqrt(hidden), source))
    else:
        head = replace(request, bits=request.head_bits)
        tensors += _projection(head, "lm_head", hidden, vocab, 1.0, source)
    return tensors


def _projection(
    request: SynthRequest, key: str, k: int, n: int, gain: float, source: RandomSource
) -> list[PlannedTensor]:
    if request.format == "fp16":
        return [_halves(f"{key}.weight", (n, k), gain / math.sqrt(k), source)]
    if request.format == "gptq":
        return gptq.random_tensors(key, k, n, gain, request.group_size, source)
    if request.format == "exl2":
        return exl2.random_tensors(key, k, n, gain, request.bits, source, _input_name(key))
    return exl3.random_tensors(key, k, n, gain, request.bits or 4, source)


def _input_name(key: str) -> str:
    """Equal for projections that read the same activations."""
    layer, _, name = key.rpartition(".")
    shared = {"q_proj": "hidden", "k_proj": "hidden", "v_proj": "hidden"}
    shared |= {"gate_proj": "hidden", "up_proj": "hidden"}
    return f"{layer}.{shared.get(name, name)}"


def _halves(name: str, shape: tuple[int, int], std: float, source: RandomSource) -> PlannedTensor:
    return PlannedTensor(name, "F16", shape, lambda: source.halves(math.prod(shape), std))


def _ones(name: str, size: int) -> PlannedTensor:
    return PlannedTensor(name, "F16", (size,), lambda: [np.ones(size, np.float16)])


def _document(request: SynthRequest) -> dict[str, Any]:
    quantization: dict[str, Any] | None = None
    if request.format == "gptq":
        quantization = gptq_config(request.group_size)
    elif request.format != "fp16":
        quantization = {
            "quant_method": request.format,
            "bits": float(request.bits or 4),
            "head_bits": request.head_bits,
        }
    return config_json(
        request.config,
        token_ids={},
        quantization=quantization,
        ours={"random": True, "seed": request.seed},
    )
