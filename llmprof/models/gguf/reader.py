"""Llama weights out of a GGUF file, dequantised by the ``gguf`` package."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.errors import MissingPackage, ModelError
from llmprof.models.gguf.header import GgufHeader, read_header
from llmprof.models.gguf.sizes import ROPE_FACTORS
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
_ROTATION = "attn_rot_embd.weight"
"""Rotary frequencies that old converters stored in each layer; they follow from the metadata."""


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
    eps = header.number("llama.attention.layer_norm_rms_epsilon")
    if eps is None:
        raise ModelError(f"{where}: metadata has no llama.attention.layer_norm_rms_epsilon")
    if header.metadata.get("llama.attention.causal") is False:
        raise ModelError(f"{where}: attention that is not causal, which is not implemented")
    theta = header.number("llama.rope.freq_base")
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=need("feed_forward_length"),
        num_hidden_layers=need("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        rms_norm_eps=eps,
        rope_theta=10000.0 if theta is None else theta,
        max_position_embeddings=need("context_length"),
        tie_word_embeddings="output.weight" not in header.tensors,
        rope_scaling=_scaling(header, where),
    )


def _scaling(header: GgufHeader, where: str) -> RopeScaling | None:
    """As llama.cpp reads it (``load_hparams`` in llama-model.cpp): without a type it is linear, an
    explicit ``none`` makes the factor count for nothing, a factor of 0 is none."""
    kind = header.text("llama.rope.scaling.type") or "linear"
    for key in ("attn_factor", "yarn_log_multiplier"):
        if header.number(f"llama.rope.scaling.{key}") not in (None, 0, 1):
            raise ModelError(f"{where}: llama.rope.scaling.{key}, which is not implemented")
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelError(f"{where}: rope scaling {one_line(kind, 40)!r} is not implemented")
    factor = header.number("llama.rope.scaling.factor")
    if factor is None:  # the name before there was a type
        factor = header.number("llama.rope.scale_linear")
    if not factor or factor == 1.0:
        return None
    if not 0 < factor < float("inf"):
        raise ModelError(f"{where}: a rope scaling factor of {factor}")
    return RopeScaling("linear", factor)


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
        wanted = {gguf_name(name): shape for name, shape in self.config.tensor_shapes().items()}
        for name, shape in wanted.items():
            self._check(name, shape)
        self._refuse_unused(wanted)
        files = {tensor.path for tensor in self._header.tensors.values()}
        self._data = {file: numpy.memmap(file, dtype=numpy.uint8, mode="r") for file in files}
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
        raw = self._data[tensor.path][tensor.start : tensor.start + tensor.n_bytes]
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

    def _refuse_unused(self, used: Container[str]) -> None:
        """A tensor that is left out (a bias, a scale, a norm of q) would give other tokens."""
        for name in self._header.tensors:
            if name in used or name == ROPE_FACTORS or name.endswith(_ROTATION):
                continue
            raise ModelError(
                f"{self._shown}: tensor {one_line(name, 80)} is nothing that this engine computes"
                " with; the engine llamacpp may"
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._header.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self._shown}: tensor {name} is missing")
        if tensor.shape != shape:
            raise ModelError(
                f"{self._shown}: tensor {name} has shape {list(tensor.shape)},"
                f" the metadata says {list(shape)}"
            )
