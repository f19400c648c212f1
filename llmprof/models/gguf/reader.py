"""Llama weights out of a GGUF file, dequantised by the ``gguf`` package."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, ModelError
from llmprof.models.gguf.header import GgufHeader, TensorInfo, read_header
from llmprof.models.presets import EMBEDDING, FINAL_NORM, HEAD, LlamaConfig, RopeScaling
from llmprof.plaintext import one_line

_TOP = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"


def gguf_name(hf_name: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` → ``blk.3.attn_q.weight``."""
    if hf_name in _TOP:
        return _TOP[hf_name]
    _, _, layer, rest = hf_name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest]}"


def quantisation(header: GgufHeader) -> str:
    """The type of most of the file's bytes: ``Q4_1``; norms and the like do not count."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        sizes[tensor.type_name] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else "empty"


def step_tensors(header: GgufHeader) -> list[TensorInfo]:
    """Tensors that a decode step reads whole: all but an embedding table that is not tied."""
    tied = "output.weight" not in header.tensors
    return [
        tensor
        for name, tensor in header.tensors.items()
        if name != ROPE_FACTORS and (tied or name != "token_embd.weight")
    ]


def gguf_config(header: GgufHeader) -> LlamaConfig:
    """The Llama shape that the metadata describes.

    Raises:
        ModelError: another architecture, a missing key, or a variant that is not implemented.
    """
    where = one_line(header.path)
    if header.architecture != "llama":
        raise ModelError(
            f"{where}: architecture {one_line(header.architecture, 40) or 'missing'!r};"
            " this engine loads llama, llama.cpp (engine llamacpp) may load it"
        )

    def need(key: str) -> int:
        value = header.integer(f"llama.{key}")
        if value is None:
            raise ModelError(f"{where}: metadata has no llama.{key} (or it is not an integer)")
        return value

    if header.integer("llama.expert_count"):
        raise ModelError(f"{where}: a mixture of experts, which this engine does not implement")
    hidden, heads = need("embedding_length"), need("attention.head_count")
    head_dim = header.integer("llama.attention.key_length") or hidden // max(1, heads)
    rotated = header.integer("llama.rope.dimension_count") or head_dim
    if rotated != head_dim or header.integer("llama.attention.value_length") not in (
        None,
        head_dim,
    ):
        raise ModelError(f"{where}: partly rotated or uneven heads, which are not implemented")
    vocab = header.vocab_size
    if vocab is None:
        raise ModelError(f"{where}: tensor token_embd.weight is missing")
    kv_heads = header.integer("llama.attention.head_count_kv")
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=need("feed_forward_length"),
        num_hidden_layers=need("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        rms_norm_eps=header.number("llama.attention.layer_norm_rms_epsilon") or 1e-5,
        rope_theta=header.number("llama.rope.freq_base") or 10000.0,
        max_position_embeddings=need("context_length"),
        tie_word_embeddings="output.weight" not in header.tensors,
        rope_scaling=_scaling(header, where),
    )


def _scaling(header: GgufHeader, where: str) -> RopeScaling | None:
    kind = header.text("llama.rope.scaling.type") or "none"
    # Before scaling.type there was scale_linear alone.
    factor = header.number("llama.rope.scaling.factor") or header.number("llama.rope.scale_linear")
    if kind == "linear" or (kind == "none" and factor and factor != 1.0):
        return RopeScaling("linear", factor) if factor and factor > 0 else None
    if kind != "none":
        raise ModelError(f"{where}: rope scaling {one_line(kind, 40)!r} is not implemented")
    return None


class GgufWeights:
    """A ``WeightSource`` over one GGUF file.

    llama.cpp's converter reorders the rows of q and k so that RoPE turns neighbours
    (``LlamaModel.permute`` in convert_hf_to_gguf.py); ``read`` undoes that.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check.

        Raises:
            ModelError: corrupt, not a Llama, a tensor missing, misshapen or of an unknown type.
            MissingPackage: no ``gguf`` package.
        """
        try:
            import gguf
            import numpy
        except ImportError:
            raise MissingPackage(
                f"GGUF weights need the package gguf; install it with: {how_to_install('torch')}"
            ) from None
        self._gguf = gguf
        self._numpy = numpy
        self._header = read_header(path)
        self._shown = one_line(self._header.path)
        self.config = gguf_config(self._header)
        self.format = f"gguf {quantisation(self._header)}"
        self.weights_id = self._header.weights_id
        self.notes: list[str] = []
        for name, shape in self.config.tensor_shapes().items():
            self._check(gguf_name(name), shape)
        for name in self._header.tensors:
            if name.endswith(".bias"):
                raise ModelError(
                    f"{self._shown}: tensor {one_line(name, 80)}: biases are not implemented"
                )
        self._data = numpy.memmap(path, dtype=numpy.uint8, mode="r")
        self.rope_factors: Any | None = None
        if ROPE_FACTORS in self._header.tensors:
            self._check(ROPE_FACTORS, (self.config.head_dim // 2,))
            self.rope_factors = self._dequantise(ROPE_FACTORS)

    def read(self, name: str) -> Any:
        import torch

        return torch.from_numpy(self.values(name))

    def values(self, name: str) -> Any:
        """The same as a numpy array, float32; needs no torch."""
        values = self._dequantise(gguf_name(name))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.shape[0] // self.config.head_dim
            pairs = values.reshape(heads, self.config.head_dim // 2, 2, -1)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        # A copy: the map is read-only, and torch's tensor must outlive it.
        return self._numpy.array(values, dtype=self._numpy.float32, order="C")

    def close(self) -> None:
        del self._data

    def _dequantise(self, name: str) -> Any:
        tensor = self._header.tensors[name]
        raw = self._data[tensor.start : tensor.start + tensor.n_bytes]
        kind = self._gguf.GGMLQuantizationType[tensor.type_name]
        rows = tensor.count // tensor.shape[-1]
        try:
            values = self._gguf.quants.dequantize(raw.reshape(rows, -1), kind)
        except (NotImplementedError, KeyError):
            raise ModelError(
                f"{self._shown}: the installed gguf package cannot dequantise {tensor.type_name};"
                " use the engine llamacpp for this file"
            ) from None
        return values.reshape(tensor.shape)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._header.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self._shown}: tensor {name} is missing")
        if tensor.shape != shape:
            raise ModelError(
                f"{self._shown}: tensor {name} has shape {list(tensor.shape)},"
                f" the metadata says {list(shape)}"
            )
