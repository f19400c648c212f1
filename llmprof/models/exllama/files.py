"""An ExLlama model folder, judged by its headers alone. Standard library only.

The engines themselves answer a wrong file with a KeyError, an assert or a crash of the process.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.exllama.readings import (
    check_labels,
    check_rope,
    check_zeros,
    refuse_unused,
)
from llmprof.models.exllama.shapes import FORMATS, EngineName, FormatName, misfit, projections
from llmprof.models.huggingface.config import OURS, our_notes, weights_id
from llmprof.models.huggingface.files import is_adapter, read_tensors
from llmprof.models.locate import read_json
from llmprof.models.presets import EMBEDDING, FINAL_NORM, HEAD, LlamaConfig
from llmprof.models.safetensors.header import StoredTensor
from llmprof.plaintext import one_line

_MARKS: dict[str, FormatName] = {
    ".qweight": "gptq",
    ".q_weight": "exl2",
    ".trellis": "exl3",
    ".weight": "fp16",
}
_HALVES = ("F16", "BF16", "F32")
"""All engines convert these to fp16."""


@dataclass(frozen=True)
class ExLlamaFiles:
    """A folder that ``engine`` should load."""

    folder: Path
    files: tuple[Path, ...]
    config: LlamaConfig
    raw: Mapping[str, Any]
    """``config.json``."""
    format: FormatName
    tensors: Mapping[str, StoredTensor]
    group_size: int | None
    """GPTQ: rows a scale; 0 where a column has one scale."""
    act_order: bool
    """GPTQ: the file brings the group of each row (``g_idx``)."""

    @property
    def file_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def embedding_bytes(self) -> int:
        return self.tensors[EMBEDDING].n_bytes

    @property
    def tied(self) -> bool:
        """The output head is the embedding table."""
        return not any(name.startswith("lm_head.") for name in self.tensors)

    @property
    def step_bytes(self) -> int:
        """Packed weights that a decode step reads: all but an embedding table that is not tied."""
        table = 0 if self.tied else self.embedding_bytes
        skipped = sum(t.n_bytes for n, t in self.tensors.items() if n.endswith("inv_freq"))
        return self.file_bytes - table - skipped

    @property
    def bits_per_weight(self) -> float:
        """``step_bytes`` over the weights that a step reads."""
        shape = replace(self.config, tie_word_embeddings=self.tied)
        return 8 * self.step_bytes / shape.step_parameters

    @property
    def projections(self) -> dict[str, list[int]]:
        """Matrices of the first layer in its order, then the head: [outputs, inputs, bytes]."""
        head = (self.config.hidden_size, self.config.vocab_size)
        found = {}
        for name, (k, n) in {**projections(self.config), "lm_head": head}.items():
            key = f"model.layers.0.{name}."
            if name == "lm_head":
                key = "model.embed_tokens." if self.tied else "lm_head."
            size = sum(t.n_bytes for stored, t in self.tensors.items() if stored.startswith(key))
            found[name] = [n, k, size]
        return found

    @property
    def random(self) -> bool:
        return bool(self._ours.get("random"))

    @property
    def weights_id(self) -> str | None:
        """Equal for engines that hold the same real weights; ``None`` for random ones."""
        if self.random:
            return None
        return weights_id(self.raw, self.files)

    @property
    def format_text(self) -> str:
        text = f"{self.format} {self.bits_per_weight:.2f} bits"
        if self.format == "gptq":
            text = f"gptq 4 bits, group {self.group_size or 'of a whole column'}"
        elif self.format == "fp16":
            text = "safetensors fp16"
        return f"random {text}" if self.random else text

    @property
    def notes(self) -> list[str]:
        found = []
        if self.act_order:
            found.append("act-order: the rows of each input are permuted at every step")
        return found + our_notes(self.raw)

    @property
    def _ours(self) -> Mapping[str, Any]:
        value = self.raw.get(OURS)
        return value if isinstance(value, dict) else {}


def inspect_folder(path: str, engine: EngineName) -> ExLlamaFiles:
    """Read the headers of a folder and check everything that ``engine`` relies on.

    Raises:
        ModelError: no folder, another format, a tensor missing or misshapen, a shape that the
            engine's kernels cannot hold, or a damaged file.
    """
    folder = Path(path).expanduser()
    shown = one_line(str(folder))
    if not folder.is_dir():
        raise ModelError(
            f"{engine}: {shown} is no folder; it loads {' or '.join(FORMATS[engine])} folders,"
            f" make one with: llmprof model synth PRESET --engine {engine} -o DIR"
        )
    raw = read_json(folder / "config.json")
    architectures = raw.get("architectures")
    if architectures != ["LlamaForCausalLM"]:
        raise ModelError(
            f"{shown}/config.json: architectures is {one_line(repr(architectures), 60)};"
            f" llmprof drives {engine} with LlamaForCausalLM"
        )
    config = LlamaConfig.from_hf({k: v for k, v in raw.items() if k != "quantization_config"})
    files = tuple(f for f in sorted(folder.glob("*.safetensors")) if not is_adapter(f))
    if not files:
        raise ModelError(f"{shown}: no *.safetensors")
    if engine == "exllama":
        _check_v1_files(shown, files, raw)
    # Each of these packages takes all files, and of two tensors of a name whichever comes last.
    tensors = read_tensors(files)
    kind = _format(shown, tensors)
    check_labels(shown, raw, kind, engine)
    check_rope(shown, raw, config, engine)
    group_size = _group_size(shown, config, tensors) if kind == "gptq" else None
    reason = misfit(config, engine, kind, 128 if group_size is None else group_size)
    if reason:
        raise ModelError(f"{shown}: {reason}")
    found = ExLlamaFiles(
        folder, files, config, raw, kind, tensors, group_size, _act_order(shown, kind, tensors)
    )
    _check_tensors(found, shown, engine)
    return found


def _check_v1_files(shown: str, files: tuple[Path, ...], raw: Mapping[str, Any]) -> None:
    if len(files) > 1:
        raise ModelError(
            f"{shown}: {len(files)} safetensors files; ExLlama v1 loads a model of one file"
        )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not isinstance(raw.get(key), int):
            raise ModelError(f"{shown}/config.json: ExLlama v1 needs an integer {key}")
    if "initializer_range" not in raw or "rms_norm_eps" not in raw:
        raise ModelError(
            f"{shown}/config.json: ExLlama v1 needs initializer_range and rms_norm_eps"
        )


def _format(shown: str, tensors: Mapping[str, StoredTensor]) -> FormatName:
    """Of the first layer's q projection, which stands for all."""
    key = "model.layers.0.self_attn.q_proj"
    for mark, kind in _MARKS.items():
        if key + mark in tensors:
            return kind
    raise ModelError(
        f"{shown}: no {key}.qweight (GPTQ), .q_weight (EXL2), .trellis (EXL3) or .weight (fp16)"
    )


def _act_order(shown: str, kind: FormatName, tensors: Mapping[str, StoredTensor]) -> bool:
    """Is there a ``g_idx`` other than all zero? Both engines then permute the rows of the input."""
    if kind != "gptq":
        return False
    found = False
    for name, tensor in tensors.items():
        if not name.endswith(".g_idx"):
            continue
        zeros = tensors.get(name.removesuffix("g_idx") + "qzeros")
        limit = zeros.shape[0] if zeros and zeros.shape else 0
        if tensor.dtype != "I32" or len(tensor.shape) != 1:
            raise ModelError(f"{shown}: tensor {one_line(name, 80)} is no list of int32")
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            groups = array("i", file.read(tensor.n_bytes))
        if groups and not 0 <= min(groups) <= max(groups) < limit:
            # The engines use them as indices, unchecked.
            raise ModelError(
                f"{shown}: tensor {one_line(name, 80)} names a group that is not there"
            )
        found = found or any(groups)
    return found


def _group_size(shown: str, config: LlamaConfig, tensors: Mapping[str, StoredTensor]) -> int:
    """Of the projection with the most inputs; 0 where its columns have one scale."""
    name, (k, _) = max(projections(config).items(), key=lambda item: item[1][0])
    zeros = tensors.get(f"model.layers.0.{name}.qzeros")
    if zeros is None or len(zeros.shape) != 2 or not zeros.shape[0]:
        raise ModelError(f"{shown}: tensor model.layers.0.{name}.qzeros is missing or no matrix")
    groups = zeros.shape[0]
    if k % groups:
        raise ModelError(f"{shown}: {groups} groups do not divide the {k} inputs of {name}")
    return 0 if groups == 1 else k // groups


def _check_tensors(found: ExLlamaFiles, shown: str, engine: EngineName) -> None:
    config, tensors = found.config, found.tensors
    _expect(shown, tensors, EMBEDDING, (config.vocab_size, config.hidden_size), _HALVES)
    _expect(shown, tensors, FINAL_NORM, (config.hidden_size,), _HALVES)
    shapes = projections(config)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            _expect(shown, tensors, f"{prefix}{norm}.weight", (config.hidden_size,), _HALVES)
        for name, (k, n) in shapes.items():
            _check_projection(found, shown, prefix + name, k, n, found.format)
    _check_head(found, shown, engine)
    refuse_unused(shown, tensors, config.num_hidden_layers)
    if found.format == "gptq":
        check_zeros(shown, found.raw, tensors)


def _check_head(found: ExLlamaFiles, shown: str, engine: EngineName) -> None:
    config = found.config
    if found.tied:
        if engine == "exllama" or not config.tie_word_embeddings:
            raise ModelError(
                f"{shown}: no lm_head tensor; {engine} needs one here"
                " (llmprof model prepare writes it)"
            )
        return
    kind: FormatName = "fp16"
    for mark, candidate in _MARKS.items():
        if f"lm_head{mark}" in found.tensors:
            kind = candidate
            break
    if kind != "fp16" and kind != found.format:
        raise ModelError(f"{shown}: lm_head is {kind}, the layers are {found.format}")
    if engine == "exllama" and kind != "fp16":
        raise ModelError(f"{shown}: lm_head is quantised; ExLlama v1 needs {HEAD} in fp16")
    _check_projection(found, shown, "lm_head", config.hidden_size, config.vocab_size, kind)


def _check_projection(
    found: ExLlamaFiles, shown: str, key: str, k: int, n: int, kind: FormatName
) -> None:
    tensors = found.tensors
    if kind == "fp16":
        _expect(shown, tensors, f"{key}.weight", (n, k), _HALVES)
    elif kind == "gptq":
        groups = k // (found.group_size or k)
        _expect(shown, tensors, f"{key}.qweight", (k // 8, n), ("I32",))
        _expect(shown, tensors, f"{key}.qzeros", (groups, n // 8), ("I32",))
        _expect(shown, tensors, f"{key}.scales", (groups, n), _HALVES)
    elif kind == "exl2":
        columns = -(-n // 32) * 32
        groups = tensors[f"{key}.q_scale"].shape[0] if f"{key}.q_scale" in tensors else 0
        _expect(shown, tensors, f"{key}.q_weight", (None, columns), ("I32",))
        _expect(shown, tensors, f"{key}.q_scale", (groups, columns // 8), ("I32",))
        _expect(shown, tensors, f"{key}.q_scale_max", (groups,), ("F16",))
        _expect(shown, tensors, f"{key}.q_groups", (2 * groups,), ("I16",))
        _expect(shown, tensors, f"{key}.q_invperm", (k,), ("I32", "I16"))
    else:
        rows, columns = (-(-size // 128) * 8 for size in (k, n))
        _expect(shown, tensors, f"{key}.trellis", (rows, columns, None), ("I16",))
        for scale, size in (("suh", rows), ("svh", columns)):
            # Old files pack the signs: su and sv.
            if f"{key}.{scale[:2]}" not in tensors:
                _expect(shown, tensors, f"{key}.{scale}", (size * 16,), ("F16",))


def _expect(
    shown: str,
    tensors: Mapping[str, StoredTensor],
    name: str,
    shape: tuple[int | None, ...],
    dtypes: tuple[str, ...],
) -> None:
    """``None`` in ``shape`` matches any size above 0."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(f"{shown}: tensor {name} is missing")
    fits = len(tensor.shape) == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not math.prod(tensor.shape):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(
            f"{shown}: tensor {name} has shape {list(tensor.shape)}, config.json says [{wanted}]"
        )
    if tensor.dtype not in dtypes:
        raise ModelError(
            f"{shown}: tensor {name} is {tensor.dtype}, expected {' or '.join(dtypes)}"
        )
