"""What a compiled MLC library says about itself: its ``_metadata``. Standard library only.

The document is written by MLC LLM's interface/compile.py and compiler_pass/
{dispatch_kv_cache_creation,estimate_memory_usage}.py. It comes from a file: everything is checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.presets import LlamaConfig
from llmprof.plaintext import one_line

VOCABULARY = "vocab_size"
"""The one dimension that a library leaves open."""
ELEMENT_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int32": 4,
    "uint32": 4,
    "int16": 2,
    "uint16": 2,
    "int8": 1,
    "uint8": 1,
}
_MAX_DIMENSION = 1 << 40
_GROUP_QUANTISED = re.compile(r"q([348])f(16|32)_[012]")
_PLAIN = re.compile(r"q0(f16|f32|bf16)")
_FIRST_LAYER = re.compile(r"(.*\.)?(layers|h|blocks)\.0\.")
_ANY_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings)\.")
_ROWS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings|embed_tokens_per_layer)\.")
"""Tables of which a step reads a row for each sequence, and that are no output head."""
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output)\.")


@dataclass(frozen=True)
class MlcParameter:
    """A weight that the library expects, in its order."""

    name: str
    shape: tuple[int | str, ...]
    """``"vocab_size"`` where the library takes any vocabulary."""
    dtype: str
    whole_shape: tuple[int | str, ...] | None = None
    """In the weight files, where a library for several GPUs cuts it at load."""

    def sizes(self, vocab_size: int) -> tuple[int, ...]:
        return _sizes(self.shape, vocab_size)

    def stored_sizes(self, vocab_size: int) -> tuple[int, ...]:
        return _sizes(self.shape if self.whole_shape is None else self.whole_shape, vocab_size)

    def n_bytes(self, vocab_size: int) -> int:
        return math.prod(self.sizes(vocab_size)) * ELEMENT_BYTES[self.dtype]


def _sizes(shape: tuple[int | str, ...], vocab_size: int) -> tuple[int, ...]:
    return tuple(vocab_size if isinstance(s, str) else s for s in shape)


@dataclass(frozen=True)
class MlcMetadata:
    """One compiled library. Sizes of a library for several GPUs are those of one of them."""

    model_type: str
    quantization: str
    context_window_size: int | None
    prefill_chunk_size: int
    max_batch_size: int
    tensor_parallel_shards: int
    pipeline_parallel_stages: int
    sliding_window_size: int | None
    seqlen_padding_factor: int
    kv_state_kind: str
    active_vocab_size: int | None
    kv_layers: int
    kv_heads: int
    head_dim: int
    parameters: tuple[MlcParameter, ...]
    workspace_bytes: int
    """Largest temporary memory of a function."""

    @property
    def open_vocabulary(self) -> bool:
        """Must somebody else say how large the vocabulary is?"""
        return any(isinstance(s, str) for p in self.parameters for s in p.shape)

    def parameter_bytes(self, vocab_size: int) -> int:
        return sum(p.n_bytes(vocab_size) for p in self.parameters)

    def check_shape(self, shape: LlamaConfig, name: str, shown: str) -> None:
        """Raise ``ModelError`` unless the library's KV cache is that of ``shape``."""
        have = (self.kv_layers, self.kv_heads * self.tensor_parallel_shards, self.head_dim)
        want = (shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim)
        if have != want:
            words = "{} layers, {} KV heads of {}"
            raise ModelError(
                f"{shown} is compiled for {words.format(*have)}; {name} has {words.format(*want)}"
            )

    @property
    def dtype(self) -> str | None:
        """Of the activations: that of the norms, which no scheme quantises."""
        found = (p.dtype for p in self.parameters if "norm" in p.name and "float" in p.dtype)
        return next(found, None)

    @property
    def kv_bytes_per_token(self) -> int | None:
        """K and V of all layers for one position, at the type of the activations, bytes; ``None``
        where not every layer keeps every position."""
        windowed = self.sliding_window_size is not None
        if self.kv_state_kind != "kv_cache" or windowed or self.dtype is None:
            return None
        return 2 * self.kv_layers * self.kv_heads * self.head_dim * ELEMENT_BYTES[self.dtype]

    def weight_count(self, vocab_size: int) -> int | None:
        """Weights before packing; ``None`` for schemes whose packing is not known here."""
        return self._count(self.parameters, vocab_size)

    def step_bytes(self, vocab_size: int) -> tuple[int | None, float | None, str]:
        """Bytes of weights that a decode step reads, bits a weight, and the reason for a ``None``.

        All but the embedding table, of which a step takes a row a sequence; a table that is the
        output head too is read whole.
        """
        if any(len(p.shape) > 2 for p in self.parameters):
            return None, None, "mixture of experts: bytes a step depend on the routing"
        tables = [p for p in self.parameters if _EMBEDDINGS.search(p.name)]
        if not tables:
            return None, None, "no parameter is known as the embedding table: bytes a step unknown"
        tied = not any(_HEADS.search(p.name) for p in self.parameters)
        read = [
            p for p in self.parameters if (tied or p not in tables) and not _ROWS.search(p.name)
        ]
        size = sum(p.n_bytes(vocab_size) for p in read)
        count = self._count(read, vocab_size)
        if count is None:
            return size, None, f"quantisation {self.quantization}: bits a weight not known"
        return size, 8 * size / count, ""

    def projections(self, vocab_size: int) -> dict[str, list[int]] | None:
        """Matrices of the first layer in the library's order, then the head: [outputs, inputs,
        bytes]; ``None`` for schemes whose packing is not known here."""
        mark = _GROUP_QUANTISED.fullmatch(self.quantization)
        if mark is None and not _PLAIN.fullmatch(self.quantization):
            return None
        layer: dict[str, list[int]] = {}
        head: dict[str, list[int]] = {}
        table: dict[str, list[int]] = {}
        for p in self.parameters:
            key, _, part = p.name.rpartition(".")
            if len(p.shape) != 2 or part not in ("weight", "q_weight", "q_scale"):
                continue
            first = _FIRST_LAYER.match(key)
            if _ROWS.search(p.name) or (first is None and _ANY_LAYER.search(key)):
                continue
            found = head if _HEADS.search(p.name) else table
            name, place = (key[first.end() :], layer) if first else (key, found)
            entry = place.setdefault(name, [0, 0, 0])
            entry[2] += p.n_bytes(vocab_size)
            if part != "q_scale":
                outputs, inputs = p.sizes(vocab_size)
                words = ELEMENT_BYTES[p.dtype] * 8 // int(mark[1]) if mark else 1
                entry[:2] = [outputs, inputs * (words if part == "q_weight" else 1)]
        return {**layer, **(head or table)} if layer else None

    def _count(self, parameters: Any, vocab_size: int) -> int | None:
        mark = _GROUP_QUANTISED.fullmatch(self.quantization)
        if mark is None and not _PLAIN.fullmatch(self.quantization):
            return None
        total = 0
        for p in parameters:
            count = math.prod(p.sizes(vocab_size))
            if p.name.endswith("q_scale"):
                continue
            if p.name.endswith("q_weight") and mark is not None:
                # Codes of a word: 10 of 3 bits, 8 of 4, 4 of 8 (quantization/group_quantization.py)
                count *= ELEMENT_BYTES[p.dtype] * 8 // int(mark[1])
            total += count
        return total


def parse_metadata(text: str, shown: str) -> MlcMetadata:
    """Check and keep what is used of a library's ``_metadata``.

    Raises:
        ModelError: not JSON, an entry missing or of an odd value; ``shown`` names the library.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{shown}: its _metadata is not valid JSON") from None
    if not isinstance(document, dict):
        raise ModelError(f"{shown}: its _metadata is no JSON object")
    look = _Look(document, shown)
    kind = look.text("kv_state_kind", "kv_cache")
    kv = _Look(look.table("kv_cache") if kind in ("kv_cache", "hybrid") else {}, shown)
    usage = look.table("memory_usage") if "memory_usage" in document else {}
    parameters = document.get("params")
    if not isinstance(parameters, list) or not parameters:
        raise ModelError(f"{shown}: its _metadata lists no params")
    shards = look.count("tensor_parallel_shards", 1)
    found = tuple(_parameter(entry, shards > 1, shown) for entry in parameters)
    if len({p.name for p in found}) != len(found):
        raise ModelError(f"{shown}: its _metadata names a parameter twice")
    cached = kind in ("kv_cache", "hybrid")
    return MlcMetadata(
        model_type=look.text("model_type"),
        quantization=look.text("quantization"),
        context_window_size=look.optional("context_window_size"),
        prefill_chunk_size=look.count("prefill_chunk_size"),
        max_batch_size=look.count("max_batch_size", 1),
        tensor_parallel_shards=shards,
        pipeline_parallel_stages=look.count("pipeline_parallel_stages", 1),
        sliding_window_size=look.optional("sliding_window_size"),
        seqlen_padding_factor=look.count("seqlen_padding_factor", 1),
        kv_state_kind=kind,
        active_vocab_size=look.optional("active_vocab_size"),
        kv_layers=kv.count("num_hidden_layers") if cached else 0,
        kv_heads=kv.count("num_key_value_heads") if cached else 0,
        head_dim=kv.count("head_dim") if cached else 0,
        parameters=found,
        workspace_bytes=max((v for v in usage.values() if type(v) is int and v >= 0), default=0),
    )


class _Look:
    def __init__(self, document: Mapping[str, Any], shown: str) -> None:
        self._document = document
        self._shown = shown

    def count(self, key: str, default: int | None = None) -> int:
        value = self._document.get(key, default)
        if type(value) is not int or not 0 < value < _MAX_DIMENSION:
            raise self._wrong(key, value)
        return value

    def optional(self, key: str) -> int | None:
        """``None`` where it is missing, null or -1, which is how MLC says "not set"."""
        value = self._document.get(key)
        if value is None or value == -1:
            return None
        return self.count(key)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._document.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value)
        return one_line(value, 80)

    def table(self, key: str) -> dict[str, Any]:
        value = self._document.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, value)
        return value

    def _wrong(self, key: str, value: object) -> ModelError:
        has = "is missing" if value is None else f"is {one_line(repr(value), 60)}"
        return ModelError(
            f"{self._shown}: {key} {has} in its _metadata; compile it with a current mlc_llm"
        )


def _parameter(entry: Any, cut: bool, shown: str) -> MlcParameter:
    if not isinstance(entry, dict):
        raise ModelError(f"{shown}: params of its _metadata holds something else than objects")
    name, shape, dtype = (entry.get(key) for key in ("name", "shape", "dtype"))
    if not isinstance(name, str) or not name:
        raise ModelError(f"{shown}: its _metadata has a parameter without a name")
    where = f"{shown}: parameter {one_line(name, 80)} of its _metadata"
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise ModelError(f"{where} has dtype {one_line(repr(dtype), 40)}, which is not known")
    whole = None
    if cut and entry.get("preprocs"):
        # cpp/multi_gpu/multi_gpu_loader.cc cuts the stored one (support/tensor_parallel.py).
        steps = entry["preprocs"]
        if not isinstance(steps, list) or not isinstance(steps[0], dict):
            raise ModelError(f"{where} has odd preprocs")
        whole = _shape(steps[0].get("in_shape"), where)
    return MlcParameter(name, _shape(shape, where), dtype, whole)


def _shape(shape: Any, where: str) -> tuple[int | str, ...]:
    if not isinstance(shape, list):
        raise ModelError(f"{where} has no shape")
    sizes: list[int | str] = []
    for size in shape:
        if size == VOCABULARY or size == -1:  # older MLC wrote -1 for it
            sizes.append(VOCABULARY)
        elif type(size) is int and 0 < size < _MAX_DIMENSION:
            sizes.append(size)
        else:
            raise ModelError(f"{where} has the size {one_line(repr(size), 40)}")
    return tuple(sizes)
