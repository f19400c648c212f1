"""Real weights into what the ExLlama engines and transformers load. Uses numpy, and
torch through the weight readers.

fp16 for ExLlamaV2 and V3; 4-bit GPTQ by round-to-nearest for ExLlama v1 and v2. Round-to-nearest is
no GPTQ calibration: the format and the speed are those of GPTQ, the quality is lower. A hidden size
that V3 cannot hold is padded with zeros (``zero_padding``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmprof.errors import MissingPackage, ModelError, UsageError
from llmprof.models import gptq
from llmprof.models.exllama.shapes import (
    GROUP_SIZES,
    V3_MULTIPLE,
    EngineName,
    FormatName,
    best_group_size,
    misfit,
)
from llmprof.models.gguf.header import read_header
from llmprof.models.gguf.reader import GgufWeights
from llmprof.models.huggingface.config import OURS, config_json, gptq_config
from llmprof.models.huggingface.reader import SafetensorsWeights
from llmprof.models.locate import ModelRef, read_json, resolve
from llmprof.models.new_folder import new_folder, write_json
from llmprof.models.presets import EMBEDDING, HEAD, LlamaConfig
from llmprof.models.safetensors.writer import PlannedTensor, write_safetensors
from llmprof.models.tokenizer import load_tokenizer
from llmprof.models.weights import WeightSource
from llmprof.models.zero_padding import ZeroPadding, zero_padding
from llmprof.records import Unavailable

Told = Callable[[str, float], None]
Target = EngineName | Literal["transformers"]
Kind = FormatName | Literal["fp32"]
Read = Callable[[str], NDArray[np.float32]]
"""HF name → that weight as it is written, before its rounding."""
_USUAL: dict[str, Kind] = {"exllama": "gptq", "transformers": "fp32"}
RTN_NOTE = "round-to-nearest, no GPTQ calibration: the speed is GPTQ's, the quality is not"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    n_bytes: int
    format: Kind
    group_size: int | None
    """GPTQ rows a scale."""
    tokenizer: str | None
    """Why there is none; ``None`` where there is."""
    padding: str | None
    """What was padded with zeros, and why; ``None`` where nothing was."""


def prepare(
    source_path: str,
    engine: Target,
    kind: Kind | None,
    group_size: int | None,
    target: Path,
    told: Told,
) -> Prepared:
    """Convert a GGUF file, an HF folder or ``smollm2``.

    Args:
        kind: ``fp16``, ``gptq``, or ``fp32`` for transformers; ``None``: GPTQ for v1, fp32 for
            transformers (what a file holds is then written as it is), else fp16.
        group_size: of GPTQ; ``None``: 128, or less where the shape asks for it.

    Raises:
        UsageError: a shape that the engine cannot hold, ``target`` exists, disk too small.
        ModelError: the source cannot be read.
        MissingPackage: a reader's package is not installed.
    """
    kind = kind or _USUAL.get(engine, "fp16")
    if engine == "transformers":
        if kind not in ("fp16", "fp32"):
            raise UsageError(f"llmprof prepares fp32 and fp16 for transformers, not {kind}")
    elif kind not in ("fp16", "gptq"):
        raise UsageError(
            f"llmprof prepares fp16 and gptq; {kind} needs the converter of {engine} itself"
        )
    ref = resolve(source_path)
    if ref.path is None:
        raise UsageError(f"{ref.name} has random weights; make it with: llmprof model synth")
    if ref.kind != "gguf" and find_spec("torch") is None:
        raise MissingPackage(
            "safetensors are read with torch, which is not in llmprof's environment;"
            " give a GGUF file, or: pip install torch"
        )
    source: WeightSource = (
        GgufWeights(ref.path) if ref.kind == "gguf" else SafetensorsWeights(ref.path)
    )
    try:
        padding = zero_padding(source.config, V3_MULTIPLE) if engine == "exllamav3" else None
        config = padding.outer if padding else source.config
        size = _group_size(config, engine, kind, group_size)
        _check(config, source, engine, kind, size)
        read = _reader(source, padding)
        tensors = list(_planned(config, read, kind, size, engine != "transformers"))
        document = _document(ref, config, source, kind, size)
        if engine == "transformers":
            document["tie_word_embeddings"] = config.tie_word_embeddings
            document["torch_dtype"] = "float32" if kind == "fp32" else "float16"
        if padding:
            document[OURS]["padding"] = padding.text
        total = sum(tensor.n_bytes for tensor in tensors)
        with new_folder(target, total) as folder:
            write_json(folder / "config.json", document)
            write_safetensors(
                folder / "model.safetensors",
                tensors,
                lambda written: told("converting weights", written / total),
            )
            missing = _tokenizer(ref, folder)
    finally:
        source.close()
    why = f"{padding.text}; {engine} needs multiples of {V3_MULTIPLE}" if padding else None
    return Prepared(total, kind, size if kind == "gptq" else None, missing, why)


def _group_size(config: LlamaConfig, engine: Target, kind: Kind, asked: int | None) -> int:
    if kind != "gptq":
        if asked is not None:
            raise UsageError("--group-size is for --format gptq")
        return GROUP_SIZES[0]
    if asked is not None and asked not in GROUP_SIZES:
        raise UsageError(f"--group-size {asked}: choose from {', '.join(map(str, GROUP_SIZES))}")
    return asked or best_group_size(config) or GROUP_SIZES[0]


def _check(
    config: LlamaConfig, source: WeightSource, engine: Target, kind: Kind, size: int
) -> None:
    if engine != "transformers" and kind != "fp32":
        reason = misfit(config, engine, kind, size)
        if reason:
            raise UsageError(reason)
    if source.rope_factors is not None:
        raise ModelError(
            "the GGUF file has rope_freqs.weight, which config.json cannot hold;"
            " prepare from the Hugging Face folder"
        )


def _planned(
    config: LlamaConfig, read: Read, kind: Kind, group_size: int, own_head: bool
) -> Iterator[PlannedTensor]:
    """Every tensor of the folder.

    Args:
        own_head: write ``lm_head.weight`` also where it is tied; ExLlama v1 and v2 look for it.
    """
    shapes = config.tensor_shapes()
    for name, shape in shapes.items():
        if kind == "gptq" and name.endswith("_proj.weight"):
            yield from _quantised(read, name, shape, group_size)
        else:
            yield _copied(read, name, name, shape, kind)
    if own_head and HEAD not in shapes:
        yield _copied(read, HEAD, EMBEDDING, shapes[EMBEDDING], kind)


def _copied(
    read: Read, name: str, read_as: str, shape: tuple[int, ...], kind: Kind
) -> PlannedTensor:
    if kind == "fp32":
        return PlannedTensor(name, "F32", shape, lambda: [read(read_as).astype(np.float32)])

    def make() -> list[NDArray[np.float16]]:
        with np.errstate(over="ignore"):  # looked for right below
            values = read(read_as).astype(np.float16)
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {read_as} has a value that fp16 cannot hold")
        return [values]

    return PlannedTensor(name, "F16", shape, make)


def _quantised(
    read: Read, name: str, shape: tuple[int, ...], group_size: int
) -> Iterator[PlannedTensor]:
    """``qweight``, then ``qzeros`` and ``scales`` of the same quantisation."""
    key = name.removesuffix(".weight")
    n, k = shape
    groups = k // group_size
    # The file holds the large part first; the small ones wait for their turn.
    small: dict[str, NDArray[Any]] = {}

    def weight() -> list[Any]:
        values = read(name)
        if not np.isfinite(values).all():
            raise ModelError(f"tensor {name} has a value that is not finite")
        packed = gptq.round_to_nearest(values, group_size)
        small.update(qzeros=packed.qzeros, scales=packed.scales)
        return [packed.qweight]

    yield PlannedTensor(f"{key}.qweight", "I32", (k // 8, n), weight)
    yield PlannedTensor(f"{key}.qzeros", "I32", (groups, n // 8), lambda: [small.pop("qzeros")])
    yield PlannedTensor(f"{key}.scales", "F16", (groups, n), lambda: [small.pop("scales")])


def _reader(source: WeightSource, padding: ZeroPadding | None) -> Read:
    def read(name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32]
        if isinstance(source, GgufWeights):
            values = source.values(name)
        else:
            values = source.read(name).float().numpy()
        return padding.apply(name, values) if padding else values

    return read


def _document(
    ref: ModelRef, config: LlamaConfig, source: WeightSource, kind: Kind, group_size: int
) -> dict[str, Any]:
    ours = {"source": source.format, "weights_id": source.weights_id}
    if kind == "gptq":
        ours["weights_id"] = f"{source.weights_id}-rtn-{group_size}"
        ours["quantisation"] = RTN_NOTE
    return config_json(
        config,
        token_ids=_token_ids(ref, config.vocab_size),
        quantization=gptq_config(group_size) if kind == "gptq" else None,
        ours=ours,
    )


def _token_ids(ref: ModelRef, vocab_size: int) -> dict[str, int]:
    """bos, eos and pad of the source, where it names them and they are in the vocabulary."""
    path = str(ref.path)
    if ref.kind == "gguf":
        header = read_header(path)
        found = {
            "bos_token_id": header.integer("tokenizer.ggml.bos_token_id"),
            "eos_token_id": header.integer("tokenizer.ggml.eos_token_id"),
            "pad_token_id": header.integer("tokenizer.ggml.padding_token_id"),
        }
    else:
        data = read_json(Path(path) / "config.json")
        found = {key: _first(data.get(key)) for key in _IDS}
    return {
        key: value for key, value in found.items() if value is not None and _ok(value, vocab_size)
    }


def _first(value: object) -> int | None:
    """Llama 3 lists several end tokens; the engines want one."""
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ok(token: int, vocab_size: int) -> bool:
    return 0 <= token < vocab_size


def _tokenizer(ref: ModelRef, folder: Path) -> str | None:
    if ref.kind == "hf":
        for name in _TOKENIZER_FILES:
            file = Path(str(ref.path)) / name
            if file.is_file():
                shutil.copyfile(file, folder / name)
        exists = (folder / "tokenizer.json").is_file()
        return None if exists else "the source folder has no tokenizer.json"
    loaded = load_tokenizer(ref)
    if isinstance(loaded, Unavailable):
        return loaded.reason
    loaded.save(folder / "tokenizer.json")
    return None
