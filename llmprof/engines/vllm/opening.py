"""From the user's options to a running ``LLMEngine``; nothing is fetched from a hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmprof.engines.base import LoadRequest
from llmprof.errors import EngineFailure, MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.models.huggingface.config import config_json
from llmprof.models.huggingface.files import read_tensors, refuse_unused, weight_files
from llmprof.models.locate import ModelRef, read_json
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line

_BLOCK = 16
"""KV positions a block, vLLM's default on CUDA."""
_SLACK_BLOCKS = 64
"""Beside what the sequences need: one block is never given out, and a step may look ahead."""
_SETTINGS = {
    # One process: its kernels, launches and host stacks are those of the worker.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Asked:
    """The user's options, defaults filled in."""

    eager: bool
    graphs: str
    """A ``CUDAGraphMode`` in lower case; empty: vLLM's own choice."""
    dtype: str
    tensor_parallel: int
    gpu_memory: float | None
    attention: str


def import_vllm() -> Any:
    """The package, told to stay in this process and offline.

    Raises:
        MissingPackage: it does not import.
    """
    os.environ.update(_SETTINGS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm
    except Exception as why:  # noqa: BLE001 - also a torch of another version, a missing library
        raise MissingPackage(
            f"engine 'vllm' needs vLLM ({type(why).__name__}: {one_line(str(why), 160)}); it pins"
            " its torch, so give it an environment of its own: --engine vllm@/path/to/its/python"
        ) from None
    return vllm


class ModelFolder:
    """The folder that vLLM reads: the user's, or a passing one with a ``config.json`` alone."""

    def __init__(self, ref: ModelRef) -> None:
        self.random = ref.kind in ("preset", "config")
        self._made: OwnFolder | None = None
        if ref.kind == "hf":
            self.path = Path(str(ref.path))
            if read_json(self.path / "config.json").get("auto_map"):
                raise ModelError(
                    f"model {ref.name}: it needs code of its own (auto_map), which is never run"
                )
        elif self.random:
            self._made = OwnFolder("llmprof-vllm-")
            self.path = self._made.path
            document = (
                read_json(Path(str(ref.path)))
                if ref.kind == "config"
                else config_json(PRESETS[str(ref.preset)], token_ids={}, quantization=None, ours={})
            )
            (self.path / "config.json").write_text(json.dumps(document), encoding="utf-8")
        else:
            raise ModelError(
                f"vllm loads Hugging Face folders; {ref.name} is none: make one with"
                " llmprof model prepare --engine transformers"
            )
        self.settings = read_json(self.path / "config.json")
        if not self.random and "quantization_config" not in self.settings:
            shape = self.shape()
            if shape is not None:
                # models/llama.py of vLLM passes over a bias that it has no parameter for.
                files, _ = weight_files(self.path)
                refuse_unused(one_line(str(self.path)), "vLLM", shape, read_tensors(files))

    def shape(self) -> LlamaConfig | None:
        """Where the model is a Llama in every respect that sizes depend on."""
        settings = {k: v for k, v in self.settings.items() if k != "quantization_config"}
        try:
            return LlamaConfig.from_hf(settings)
        except ModelError:
            return None

    def close(self) -> None:
        if self._made is not None:
            self._made.cleanup()


def open_engine(
    vllm: Any, folder: ModelFolder, asked: Asked, request: LoadRequest, free: tuple[int, int]
) -> Any:
    """An ``LLMEngine`` that holds the model.

    Args:
        free: free and total bytes of the GPU.

    Raises:
        OutOfMemory: weights or KV cache do not fit.
        EngineFailure: vLLM's start-up failed, with its last output.
    """
    arguments: dict[str, Any] = {
        "model": str(folder.path),
        "load_format": "dummy" if folder.random else "safetensors",
        "dtype": asked.dtype,
        "seed": request.seed,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "max_model_len": request.max_positions + 1,
        "max_num_seqs": request.batch,
        # All prompts of a round in one iteration.
        "max_num_batched_tokens": max(2048, request.batch * (request.max_positions + 1)),
        "enable_prefix_caching": False,
        # With it a step would return the tokens of the one before.
        "async_scheduling": False,
        "stream_interval": 1,
        "disable_log_stats": True,
        "tensor_parallel_size": asked.tensor_parallel,
        "enforce_eager": asked.eager,
        **_memory(folder, asked, request, free),
    }
    if asked.graphs:
        arguments["compilation_config"] = {"cudagraph_mode": asked.graphs.upper()}
    if asked.attention:
        arguments["attention_backend"] = asked.attention.upper()
    try:
        wanted = vllm.EngineArgs(**arguments)
    except TypeError as why:
        version = getattr(vllm, "__version__", "unknown")
        raise EngineFailure(
            f"vllm: version {version} takes other arguments: {one_line(str(why), 200)}"
        ) from None
    except ValueError as why:
        raise UsageError(f"vllm: {one_line(str(why), 240)}") from None
    try:
        return vllm.LLMEngine.from_engine_args(wanted)
    except Exception as why:  # noqa: BLE001 - whatever its start raises, in one line
        raise _explained(why) from None


def _memory(
    folder: ModelFolder, asked: Asked, request: LoadRequest, free: tuple[int, int]
) -> dict[str, Any]:
    """What vLLM may take: by itself 90 % of the GPU, where other engines are resident too."""
    if asked.gpu_memory is not None:
        return {"gpu_memory_utilization": asked.gpu_memory}
    shape = folder.shape()
    if shape is None:
        # Ours to give is what is free now, less a tenth for activations of the others.
        return {"gpu_memory_utilization": round(0.9 * free[0] / max(1, free[1]), 3)}
    blocks = request.batch * -(-(request.max_positions + 1) // _BLOCK) + _SLACK_BLOCKS
    per_token = shape.kv_bytes_per_token(4 if asked.dtype == "float32" else 2)
    return {
        "kv_cache_memory_bytes": blocks * _BLOCK * per_token // asked.tensor_parallel,
        "gpu_memory_utilization": 0.05,
    }


def _explained(why: BaseException) -> Exception:
    """One line of a failed start; what vLLM printed before it is in the engine's log."""
    text = one_line(str(why), 240)
    low = text.lower()
    if "out of memory" in low or "free memory" in low or "no available memory" in low:
        return OutOfMemory(f"vllm: {text}")
    if "not supported" in low and "model" in low:
        return ModelError(f"vllm: {text}")
    return EngineFailure(f"vllm: its start failed: {type(why).__name__}: {text}")
