"""The torch engine: a plain Llama, eager or in CUDA graphs. torch is imported by ``load``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.distribution import how_to_install
from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.errors import MissingPackage, UsageError
from llmprof.machine import default_threads
from llmprof.models.gguf.reader import GgufWeights
from llmprof.models.huggingface.reader import SafetensorsWeights
from llmprof.models.locate import ModelRef, read_json, resolve
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.models.weights import WeightSource, held_id
from llmprof.records import EngineInfo

if TYPE_CHECKING:
    from llmprof.engines.pytorch.ops import OpTrace
    from llmprof.engines.torch.loops import EagerLoop

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class _Choices:
    """The user's options, defaults filled in."""

    device: Any
    """``torch.device``."""
    dtype: str
    cuda_graph: bool
    threads: int | None
    synchronous: bool


class TorchEngine:
    """Options: ``device=cpu|cuda|cuda:N``, ``dtype=fp32|bf16|fp16``, ``cuda_graph=0|1``,
    ``threads=N``, ``sync=1|0``. ``threads`` on a CPU defaults to ``machine.default_threads``.

    ``sync=0`` lets the host run ahead: the next token is fed back on the device, ``decode_step``
    returns ``None`` and ``finish_round`` waits and returns all tokens.
    """

    def __init__(self) -> None:
        self._loop: EagerLoop | None = None
        self._info = EngineInfo()
        self._batch = 1
        self._limit = 0
        self._vocab = 0
        self._kept: list[Any] = []
        self._trace: OpTrace | None = None

    def load(self, request: LoadRequest, progress: Progress) -> None:
        try:
            import torch
        except ImportError as why:
            raise MissingPackage(
                f"engine 'torch' needs torch ({why}); install it with: {how_to_install('torch')}"
            ) from None
        from llmprof.engines.pytorch.memory import check_fits, memory_errors, needed_bytes

        chosen = _choose(request.options, torch)
        ref = resolve(request.model)
        source = _open(ref)
        config = _shape(ref) if source is None else source.config
        if request.max_positions > config.max_position_embeddings:
            raise UsageError(
                f"torch: {request.max_positions} positions asked for, but the context of {ref.name}"
                f" is {config.max_position_embeddings}; shorten --prompt-len or --decode-len"
            )
        if (threads := _threads(chosen)) is not None:
            torch.set_num_threads(threads)
        dtype = getattr(torch, _DTYPES[chosen.dtype])
        need = needed_bytes(config, dtype.itemsize, request.batch, request.max_positions)
        check_fits("torch", need, chosen.device)
        self._torch = torch
        self._memory_errors = memory_errors
        self._device = chosen.device
        self._synchronous = chosen.synchronous
        self._batch, self._vocab = request.batch, config.vocab_size
        self._limit = request.max_positions
        try:
            with memory_errors("torch", "the model", chosen.device), torch.inference_mode():
                self._loop = _build(config, source, chosen, request, progress)
        finally:
            if source is not None:
                source.close()
        self._info = _describe(ref, config, source, chosen, request)

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt("torch", prompt_ids, self._batch, self._vocab, self._limit)
        loop = self._ready()
        self._kept.clear()
        with self._memory_errors("torch", "the prompt", self._device), self._torch.inference_mode():
            ids = self._torch.tensor(prompt_ids, dtype=self._torch.long).to(self._device)
            first: list[int] = loop.prefill(ids).tolist()
        return first

    def decode_step(self) -> Sequence[int] | None:
        with self._torch.inference_mode():
            token = self._ready().step()
            if self._synchronous:
                row: list[int] = token.tolist()
                return row
            # A graph's next step writes the same buffer.
            self._kept.append(token.clone() if self._info.cuda_graph else token)
        return None

    def finish_round(self) -> Sequence[Sequence[int]]:
        """The tokens of every free-running step since ``prefill``; waits for the device."""
        if not self._kept:
            return []
        rows: list[list[int]] = self._torch.stack(self._kept).tolist()
        self._kept.clear()
        return rows

    def reset(self) -> None:
        self._kept.clear()
        self._ready().reset()

    def close(self) -> None:
        if self._loop is None:
            return
        self._loop = None
        self._kept.clear()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def describe(self) -> EngineInfo:
        return self._info

    def start_op_trace(self) -> None:
        from llmprof.engines.pytorch.ops import OpTrace

        self._trace = OpTrace()
        self._trace.start()

    def stop_op_trace(self) -> Sequence[tuple[str, int, int, int]]:
        trace, self._trace = self._trace, None
        return trace.stop() if trace else []

    def _ready(self) -> EagerLoop:
        if self._loop is None:
            raise RuntimeError("torch: no model loaded")
        return self._loop


def _choose(options: dict[str, str], torch: Any) -> _Choices:
    given = Options("torch", options)
    has_cuda = torch.cuda.is_available()
    name = given.text("device", "cuda" if has_cuda else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"torch:device={name}: expected cpu, cuda or cuda:N")
    on_cuda = name != "cpu"
    if on_cuda and not has_cuda:
        raise UsageError(f"torch:device={name}: torch {torch.__version__} sees no CUDA GPU")
    device = torch.device("cuda:0" if name == "cuda" else name)
    if on_cuda and device.index >= torch.cuda.device_count():
        raise UsageError(f"torch:device={name}: there are {torch.cuda.device_count()} CUDA GPUs")
    dtype = given.text("dtype", "fp16" if on_cuda else "fp32", tuple(_DTYPES))
    cuda_graph = given.flag("cuda_graph", False)
    if cuda_graph and not on_cuda:
        raise UsageError("torch:cuda_graph=1 needs device=cuda")
    threads = given.integer("threads", None, 1)
    synchronous = given.flag("sync", True)
    given.done()
    if on_cuda:
        # Streams, graphs and the memory pool are those of the current device.
        torch.cuda.set_device(device)
    return _Choices(device, dtype, cuda_graph, threads, synchronous)


def _threads(chosen: _Choices) -> int | None:
    """The user's, or ``machine.default_threads``; ``None`` where the user's environment says."""
    if chosen.threads is not None or os.environ.get("OMP_NUM_THREADS"):
        return chosen.threads
    return default_threads() if chosen.device.type == "cpu" else None


def _open(ref: ModelRef) -> WeightSource | None:
    """The model's files, checked; ``None`` for a preset."""
    if ref.kind in ("preset", "config") or ref.path is None:
        return None
    return GgufWeights(ref.path) if ref.kind == "gguf" else SafetensorsWeights(ref.path)


def _shape(ref: ModelRef) -> LlamaConfig:
    """Of a preset or of a ``config.json``: both get random weights."""
    if ref.kind == "config":
        return LlamaConfig.from_hf(read_json(Path(str(ref.path))))
    return PRESETS[str(ref.preset)]


def _build(
    config: LlamaConfig,
    source: WeightSource | None,
    chosen: _Choices,
    request: LoadRequest,
    progress: Progress,
) -> EagerLoop:
    import torch

    from llmprof.engines.torch.llama import TorchLlama, random_weights, stored_weights
    from llmprof.engines.torch.loops import EagerLoop, GraphLoop, cache_positions

    dtype = getattr(torch, _DTYPES[chosen.dtype])
    if source is None:
        what = "making random weights"
        read = random_weights(config, request.seed, chosen.device, dtype)
    else:
        what, read = "loading weights", stored_weights(source, chosen.device, dtype)
    progress(what, 0.0)
    model = TorchLlama(
        config,
        read,
        batch=request.batch,
        positions=cache_positions(request.max_positions, chosen.cuda_graph),
        device=chosen.device,
        dtype=dtype,
        rope_factors=None if source is None else source.rope_factors,
        told=lambda share: progress(what, share),
    )
    if chosen.device.type == "cuda":
        torch.cuda.synchronize(chosen.device)
    if chosen.cuda_graph:
        return GraphLoop(model, request.max_positions, request.batch)
    return EagerLoop(model, request.max_positions)


def _describe(
    ref: ModelRef,
    config: LlamaConfig,
    source: WeightSource | None,
    chosen: _Choices,
    request: LoadRequest,
) -> EngineInfo:
    import torch

    on_cuda = chosen.device.type == "cuda"
    size = getattr(torch, _DTYPES[chosen.dtype]).itemsize
    versions = {"torch": torch.__version__}
    if on_cuda:
        versions["cuda"] = str(torch.version.cuda)
    model_format, notes = f"random {chosen.dtype}", list(source.notes if source else ())
    if source is not None:
        model_format = f"{source.format} as {chosen.dtype}"
        packing = {"gguf": "GGUF", "safetensors gptq": "GPTQ"}
        for start, word in packing.items():
            if source.format.startswith(start):
                notes.append(f"{word} weights are dequantised on load: a step reads {chosen.dtype}")
    if chosen.cuda_graph:
        notes.append(
            "one CUDA graph for each 256 KV positions; attention reads to the bucket's end"
        )
    return EngineInfo(
        versions=versions,
        model=ref.name,
        model_format=model_format,
        parameters=config.parameters,
        bits_per_weight=8.0 * size,
        weight_bytes_per_step=config.step_parameters * size,
        kv_bytes_per_token=config.kv_bytes_per_token(size),
        context_limit=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        device=str(chosen.device),
        dtype=chosen.dtype,
        drive="forward",
        cuda_graph=chosen.cuda_graph if on_cuda else None,
        synchronous=chosen.synchronous,
        warmup_min_steps=8 if on_cuda else 2,
        threads=None if on_cuda else torch.get_num_threads(),
        options=dict(request.options),
        notes=notes,
        weights_id=held_id(source.weights_id, chosen.dtype, source.format.lower().endswith("bf16"))
        if source
        else None,
        projections=_projections(config, size),
        op_tracer=None if on_cuda else "torch",
    )


def _projections(config: LlamaConfig, size: int) -> dict[str, list[int]]:
    """As ``llama.Layer`` holds them: q, k, v in one matrix, gate and up in one."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    both = 2 * config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.qkv_proj": (query + both, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "lm_head": (config.vocab_size, hidden),
    }
    return {name: [n, k, n * k * size] for name, (n, k) in shapes.items()}
