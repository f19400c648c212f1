"""A double of vLLM 0.24.0 for tests without a GPU: the names, arguments and step by step behaviour
that the engine relies on, after vllm/v1/engine/llm_engine.py and vllm/v1/core/sched/scheduler.py.

Its "model" continues a sequence with (sum of the ids so far) mod vocabulary.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from vllm.sampling_params import RequestOutputKind, SamplingParams

__version__ = "0.24.0"
__all__ = ["EngineArgs", "LLMEngine", "SamplingParams"]


@dataclass
class EngineArgs:
    """The fields of vllm/engine/arg_utils.py that are given; any other is a TypeError, as there."""

    model: str
    load_format: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    stream_interval: int = 1
    disable_log_stats: bool = False
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    compilation_config: dict | None = None
    attention_backend: str | None = None


@dataclass
class _Request:
    external: str
    prompt: list[int]
    params: SamplingParams
    computed: int = 0
    tokens: list[int] = field(default_factory=list)


class LLMEngine:
    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            raise RuntimeError("the double runs in process only")
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            raise RuntimeError("the hub would be called")
        if os.environ.get("VLLM_DOUBLE_FAILS"):
            raise ValueError(os.environ["VLLM_DOUBLE_FAILS"])
        return cls(args)

    def __init__(self, args: EngineArgs) -> None:
        self.args = args
        config = json.loads((Path(args.model) / "config.json").read_text())
        self._vocab = config["vocab_size"]
        self.model_config = SimpleNamespace(get_vocab_size=lambda: self._vocab)
        mode = (args.compilation_config or {}).get("cudagraph_mode", "FULL_AND_PIECEWISE")
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(
                cudagraph_mode=SimpleNamespace(name="NONE" if args.enforce_eager else mode)
            )
        )
        backend = SimpleNamespace(get_name=lambda: args.attention_backend or "FLASH_ATTN")
        runner = SimpleNamespace(attn_groups=[[SimpleNamespace(backend=backend)]])
        worker = SimpleNamespace(model_runner=runner)
        self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=worker))
        self.engine_core = SimpleNamespace(shutdown=lambda: None)
        self._running: list[_Request] = []
        self.steps = 0

    def add_request(self, request_id: str, prompt: dict, params: SamplingParams) -> str:
        if not isinstance(request_id, str):
            raise TypeError("request_id must be a string")
        ids = list(prompt["prompt_token_ids"])
        if len(ids) + 1 > self.args.max_model_len:
            raise ValueError("the prompt is longer than the maximum model length")
        self._running.append(_Request(request_id, ids, params))
        return f"{request_id}-0123abcd"

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        self._running = [r for r in self._running if r.external not in request_ids]

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> list[SimpleNamespace]:
        """Running requests, then waiting prompts, cut into chunks, within the token budget."""
        self.steps += 1
        budget = self.args.max_num_batched_tokens
        outputs = []
        for request in list(self._running[: self.args.max_num_seqs]):
            known = len(request.prompt) + len(request.tokens)
            chunk = min(known - request.computed, budget)
            if not chunk:
                continue
            budget -= chunk
            request.computed += chunk
            if request.computed < known:
                continue  # a chunk of a prompt gives no token
            token = (sum(request.prompt) + sum(request.tokens)) % self._vocab
            request.tokens.append(token)
            full = len(request.prompt) + len(request.tokens) >= self.args.max_model_len
            done = full or len(request.tokens) >= request.params.max_tokens
            if done:
                self._running.remove(request)
            delta = request.params.output_kind is RequestOutputKind.DELTA
            outputs.append(
                SimpleNamespace(
                    request_id=request.external,
                    finished=done,
                    outputs=[SimpleNamespace(token_ids=[token] if delta else list(request.tokens))],
                )
            )
        return outputs
