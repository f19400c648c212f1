"""vLLM in this process: its scheduler, its model runner, one iteration a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.driven import ClosedByDrive, Drive
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.engines.vllm.drive import VllmDrive
from llmprof.engines.vllm.opening import Asked, ModelFolder, import_vllm, open_engine
from llmprof.errors import MissingPackage, UsageError
from llmprof.models.huggingface.config import weights_id
from llmprof.models.huggingface.files import all_bf16, weight_files
from llmprof.models.locate import ModelRef, resolve
from llmprof.models.presets import LlamaConfig
from llmprof.models.weights import held_id
from llmprof.records import EngineInfo

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_GRAPHS = ("auto", "none", "piecewise", "full", "full_decode_only", "full_and_piecewise")


class VllmEngine(ClosedByDrive[Drive]):
    """Options: ``eager=0|1``, ``graphs=auto|none|piecewise|full|full_decode_only|
    full_and_piecewise``, ``dtype=fp16|bf16|fp32``, ``tp=N``, ``gpu_memory=0.05 … 0.95`` (share of
    the GPU; by default what weights and this run's KV cache need), ``attention=NAME`` (vLLM's name
    of a backend).
    """

    name = "vllm"

    def __init__(self) -> None:
        super().__init__()
        self._folder: ModelFolder | None = None
        self.llm: Any = None
        """The loaded ``LLMEngine``; ``None`` before ``load`` and after ``close``."""

    def load(self, request: LoadRequest, progress: Progress) -> None:
        asked = _choose(request)
        ref = resolve(request.model)
        vllm = import_vllm()
        import torch

        if not torch.cuda.is_available():
            raise UsageError(f"vllm: torch {torch.__version__} sees no CUDA GPU")
        if asked.tensor_parallel > torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"vllm:tp={asked.tensor_parallel}: there are {count} CUDA GPUs")
        self._folder = folder = ModelFolder(ref)
        _check_context(ref, folder, request)
        progress("starting vLLM", None)
        self.llm = engine = open_engine(vllm, folder, asked, request, torch.cuda.mem_get_info())

        def params(tokens: int) -> Any:
            return vllm.SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                min_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=_delta(vllm),
            )

        self._drive = VllmDrive(engine, params, request.max_positions)
        self._batch, self._positions = request.batch, request.max_positions
        self._vocab = int(engine.model_config.get_vocab_size())
        # One token and one step: a kernel that is missing fails here and not in a round.
        self._drive.prefill([[1 % self._vocab]] * request.batch)
        self._drive.step()
        self._drive.reset()
        versions = {"vllm": str(vllm.__version__), "torch": str(torch.__version__)}
        self._info = _describe(ref, folder, engine, asked, request, versions)

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt(self.name, prompt_ids, self._batch, self._vocab, self._positions)
        return self._ready().prefill(prompt_ids)

    def decode_step(self) -> Sequence[int]:
        return self._ready().step()

    def close(self) -> None:
        super().close()
        self.llm = None
        if self._folder is not None:
            self._folder.close()


def _choose(request: LoadRequest) -> Asked:
    given = Options("vllm", request.options)
    eager = given.flag("eager", False)
    graphs = given.text("graphs", "auto", _GRAPHS)
    dtype = given.text("dtype", "fp16", tuple(_DTYPES))
    tp = given.integer("tp", 1, 1) or 1
    memory = given.text("gpu_memory", "")
    attention = given.text("attention", "")
    given.done()
    if eager and graphs not in ("auto", "none"):
        raise UsageError(f"vllm:eager=1,graphs={graphs}: eager steps have no CUDA graphs")
    try:
        share = float(memory) if memory else None
    except ValueError:
        share = 0.0
    if share is not None and not 0.05 <= share <= 0.95:
        raise UsageError(f"vllm:gpu_memory={memory}: expected a share from 0.05 to 0.95")
    chosen = "" if graphs == "auto" or eager else graphs
    return Asked(eager, chosen, _DTYPES[dtype], tp, share, attention)


def _check_context(ref: ModelRef, folder: ModelFolder, request: LoadRequest) -> None:
    limit = folder.settings.get("max_position_embeddings")
    if isinstance(limit, int) and request.max_positions + 1 > limit:
        raise UsageError(
            f"vllm: {request.max_positions} positions and one to look ahead asked for, but the"
            f" context of {ref.name} is {limit}; shorten --prompt-len or --decode-len"
        )


def _delta(vllm: Any) -> Any:
    from importlib import import_module

    try:
        return import_module("vllm.sampling_params").RequestOutputKind.DELTA
    except (ImportError, AttributeError) as why:
        version = getattr(vllm, "__version__", "unknown")
        raise MissingPackage(f"vllm {version} has no RequestOutputKind.DELTA ({why})") from None


def _describe(
    ref: ModelRef,
    folder: ModelFolder,
    engine: Any,
    asked: Asked,
    request: LoadRequest,
    versions: dict[str, str],
) -> EngineInfo:
    quantised = folder.settings.get("quantization_config")
    shape = folder.shape()
    size = 4 if asked.dtype == "float32" else 2
    mode = _graph_mode(engine)
    notes = [
        f"CUDA graphs: {mode or 'unknown, this version does not say'}",
        f"attention: {_attention(engine) or 'unknown, this version does not say'}",
        "prefix caching off, asynchronous scheduling off: one step() is one step",
    ]
    if folder.random:
        notes.append(
            "weights: vLLM's dummy format, all near zero: speed compares, tokens mean nothing"
        )
    if asked.tensor_parallel > 1:
        notes.append(f"tensor parallel over {asked.tensor_parallel} GPUs, each rank a process")
    plain = shape is not None and not quantised
    if not plain:
        why = "quantised" if quantised else "not a Llama"
        notes.append(f"bytes a step reads: not modelled ({why})")
    word = next(k for k, v in _DTYPES.items() if v == asked.dtype)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    return EngineInfo(
        versions=versions,
        model=ref.name,
        model_format=f"random {word}" if folder.random else f"safetensors {method or 'as ' + word}",
        architecture=str(folder.settings.get("model_type", "")),
        parameters=shape.parameters if shape else None,
        bits_per_weight=8.0 * size if plain else None,
        weight_bytes_per_step=_step_bytes(shape, size) if plain else None,
        kv_bytes_per_token=shape.kv_bytes_per_token(size) if shape else None,
        context_limit=folder.settings.get("max_position_embeddings"),
        vocab_size=int(engine.model_config.get_vocab_size()),
        device="cuda:0",
        dtype=word,
        drive="generator",
        cuda_graph=None if mode is None else mode != "NONE",
        warmup_min_steps=8,
        options=dict(request.options),
        notes=notes,
        weights_id=_weights_id(folder, asked.dtype, bool(quantised)),
    )


def _step_bytes(shape: LlamaConfig | None, size: int) -> int | None:
    return None if shape is None else shape.step_parameters * size


def _weights_id(folder: ModelFolder, dtype: str, quantised: bool) -> str | None:
    if folder.random:
        return None
    files, _ = weight_files(folder.path)
    exact = quantised or all_bf16(files)
    return held_id(weights_id(folder.settings, files), dtype, exact)


def _graph_mode(engine: Any) -> str | None:
    """``CUDAGraphMode`` that vLLM settled on (vllm/config/compilation.py)."""
    try:
        return str(engine.vllm_config.compilation_config.cudagraph_mode.name)
    except AttributeError:
        return None


def _attention(engine: Any) -> str | None:
    """Name of the first layer group's backend (vllm/v1/worker/gpu_model_runner.py)."""
    try:
        runner = engine.model_executor.driver_worker.worker.model_runner
        return str(runner.attn_groups[0][0].backend.get_name())
    except (AttributeError, IndexError, TypeError):
        return None
