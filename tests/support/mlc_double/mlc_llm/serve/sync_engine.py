"""``SyncMLCEngine`` as serve/sync_engine.py declares it, over a Python sketch of cpp/serve.

The rules that matter to whoever drives it, with where they come from:

* one action a ``step()``: prefill while requests wait, else decode (engine.cc, ``Step``)
* a prefill takes what fits the chunk, and only where a page a sequence is left and 8 more tokens a
  sequence would fit (batch_prefill_base.cc, ``CanPrefill``, ``HasPrefillSpace``)
* before a decode, sequences are preempted until 10 pages are free for each that is left, for text
  that a grammar might dictate (batch_jumpforward.cc, ``CheckMemForJumpForward``); decode itself
  wants one (batch_decode.cc; action_commons.cc, ``PreemptLastRunningRequestStateEntry``)
* prompt and token counts reach the metrics when a request finishes (metrics.h)
* ``reset`` aborts: the callback hears the reason ``abort`` (engine.cc, ``AbortRequestImpl``)
"""

import json
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm.contrib import tvmjs
from tvm.runtime.vm import VirtualMachine

from mlc_llm.serve import data
from mlc_llm.serve.config import EngineConfig

PAGE = 16
_CONFIG_KEYS = [
    *("model_type", "quantization", "model_config", "vocab_size", "context_window_size"),
    *("sliding_window_size", "prefill_chunk_size", "attention_sink_size"),
    *("tensor_parallel_shards", "conv_template"),
]
"""Without a default in protocol/mlc_chat_config.py."""


class _Request:
    def __init__(self, name: str, prompt: list[int], settings: dict) -> None:
        self.name, self.prompt, self.settings = name, prompt, settings
        self.committed: list[int] = []
        self.inputs = list(prompt)
        """Not in the KV cache yet."""
        self.length = 0
        """Positions in the KV cache."""
        self.sent = 0
        self.sequence = -1


class _Machine:
    """Tokens from a real library."""

    def __init__(self, folder: Path, lib: str, device: object, batch: int, total: int) -> None:
        module = tvm.runtime.load_module(lib)
        self.vm = VirtualMachine(module, device)
        self.device = device
        self.metadata = json.loads(self.vm["_metadata"]())
        arrays, _ = tvmjs.load_tensor_cache(str(folder), device)
        self.parameters = tvm_ffi.convert([arrays[p["name"]] for p in self.metadata["params"]])
        self.shape = tvm_ffi.Shape
        sizes = ([batch], [total], [self.metadata["prefill_chunk_size"]], [PAGE], [0])
        self.kv = self.vm["create_tir_paged_kv_cache"](*map(self.shape, sizes))

    def state(self, name: str, *arguments: object) -> object:
        return tvm.get_global_func(f"vm.builtin.kv_state_{name}")(self.kv, *arguments)

    def next_tokens(self, pieces: list[tuple[int, list[int]]]) -> list[int]:
        """Greedy token after each sequence's piece."""
        ids = np.array([token for _, piece in pieces for token in piece], np.int32)
        embedded = self.vm["embed"](tvm.runtime.tensor(ids, self.device), self.parameters)
        width = embedded.shape[-1]
        lengths = [len(piece) for _, piece in pieces]
        reshape = tvm.get_global_func("vm.builtin.reshape")
        embedded = reshape(embedded, self.shape([1, len(ids), width]))
        self.state("begin_forward", self.shape([s for s, _ in pieces]), self.shape(lengths))
        last = tvm.runtime.tensor(np.cumsum(lengths).astype(np.int32) - 1, self.device)
        result = self.vm["batch_prefill"](embedded, last, self.kv, self.parameters)
        self.state("end_forward")
        logits = result[0].numpy().reshape(len(pieces), -1)
        return [int(token) for token in logits.argmax(-1)]


class SyncMLCEngine:
    def __init__(
        self,
        model,
        device="auto",
        *,
        model_lib=None,
        mode="local",
        engine_config=None,
        enable_tracing=False,
        request_stream_callback=None,
    ) -> None:
        config = EngineConfig() if engine_config is None else engine_config
        if config.kv_cache_page_size != PAGE:
            raise ValueError("KV cache only supports page size 16")
        assert isinstance(device, tvm.runtime.Device)
        folder = Path(model)
        chat = json.loads((folder / "mlc-chat-config.json").read_text())
        missing = [key for key in _CONFIG_KEYS if key not in chat]
        if missing:
            raise ValueError(f"mlc-chat-config.json: {missing} missing")
        if not Path(model_lib).is_file():
            raise FileNotFoundError(f"The `model_lib` you passed in is not a file: {model_lib}.\n")
        if not (folder / "tokenizer.json").is_file():
            raise RuntimeError(f"Cannot find any tokenizer under: {folder}")
        for key in ("vocab_size", "prefill_chunk_size"):
            if key not in chat["model_config"]:
                raise RuntimeError(f"key `{key}` not found in the JSON object")
        if config.prefill_mode != "chunked" or config.prefix_cache_mode != "disable":
            raise NotImplementedError("the double has chunked prefill without prefix cache only")
        # cpp/serve/config.cc, EstimateMemoryUsageOnMode
        module = tvm.runtime.load_module(str(model_lib))
        compiled = json.loads(VirtualMachine(module, device)["_metadata"]())
        single = min(
            compiled["context_window_size"],
            config.max_single_sequence_length or chat["context_window_size"],
        )
        batch = config.max_num_sequence or {"local": 4, "interactive": 1}.get(mode, 4)
        total = config.max_total_sequence_length or single
        chunk = config.prefill_chunk_size or min(
            chat["prefill_chunk_size"], compiled["prefill_chunk_size"]
        )
        if mode != "server":
            chunk = min(chunk, total, single)
        self._batch, self._total, self._chunk, self._single = batch, total, chunk, single
        self._machine = _Machine(folder, str(model_lib), device, batch, total)
        self._callback = request_stream_callback
        self._pages = -(-total // PAGE) + 1
        self.preemptions = 0
        self._forget()

    def _forget(self) -> None:
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._next_sequence = 0
        self._sums = dict.fromkeys(("prompt_tokens_sum", "prefill_tokens_sum"), 0)

    def create_request(self, request_id, inputs, generation_config) -> _Request:
        inputs = inputs if isinstance(inputs, list) else [inputs]
        settings = json.loads(generation_config.model_dump_json(by_alias=True))
        assert settings["temperature"] == 0 and settings["n"] == 1
        return _Request(request_id, [t for part in inputs for t in part.token_ids], settings)

    def add_request(self, request: _Request) -> None:
        if any(r.name == request.name for r in self._waiting + self._running):
            raise RuntimeError(f"request {request.name} is there already")
        if len(request.prompt) >= self._single:
            self._stream([(request, [], "length")])
            return
        self._waiting.append(request)

    def abort_request(self, request_id: str) -> None:
        for queue in (self._waiting, self._running):
            for request in [r for r in queue if r.name == request_id]:
                queue.remove(request)
                self._remove(request)
                self._stream([(request, [], "abort")])

    def reset(self) -> None:
        for name in [r.name for r in self._waiting + self._running]:
            self.abort_request(name)
        self._machine.state("clear")
        self._forget()

    def step(self) -> None:
        assert self._callback is not None
        done = self._prefill()
        if not done:
            self._make_room()
            done = self._decode()
        if done:
            self._finish_step(done)

    def _available(self) -> int:
        return self._pages - sum(-(-r.length // PAGE) for r in self._alive())

    def _alive(self) -> list[_Request]:
        partly = [r for r in self._waiting if r.length]
        return self._running + partly

    def _prefill(self) -> list[_Request]:
        if len(self._running) > self._available():
            return []
        chosen: list[tuple[_Request, int]] = []
        taken = 0
        pages = len(self._running)
        now = sum(r.length for r in self._alive())
        for request in self._waiting:
            room = self._chunk - taken
            count = min(len(request.inputs), room)
            if not count:
                break
            new = pages + -(-count // PAGE)
            after = len(self._running) + len(chosen) + 1
            fits = (
                after <= min(self._batch, self._chunk)
                and new + after <= self._available()
                and now + taken + count + 8 * after <= self._total
            )
            if not fits:
                break
            chosen.append((request, count))
            taken, pages = taken + count, new
            if count < len(request.inputs):
                break
        if not chosen:
            return []
        pieces = []
        for request, count in chosen:
            if request.sequence < 0:
                request.sequence = self._next_sequence
                self._next_sequence += 1
                self._machine.state("add_sequence", request.sequence)
            pieces.append((request.sequence, request.inputs[:count]))
            request.inputs = request.inputs[count:]
            request.length += count
        tokens = self._machine.next_tokens(pieces)
        for (request, _), token in zip(chosen, tokens, strict=True):
            if not request.inputs:
                request.committed.append(token)
                self._waiting.remove(request)
                self._running.append(request)
        return [request for request, _ in chosen]

    def _make_room(self) -> None:
        while 10 * len(self._running) > self._available():
            self._preempt(self._running.pop())

    def _decode(self) -> list[_Request]:
        if not self._running:
            return []
        pieces = [(r.sequence, [r.committed[-1]]) for r in self._running]
        tokens = self._machine.next_tokens(pieces)
        for request, token in zip(self._running, tokens, strict=True):
            request.length += 1
            request.committed.append(token)
        return list(self._running)

    def _preempt(self, request: _Request) -> None:
        self.preemptions += 1
        self._remove(request)
        request.inputs = request.prompt + request.committed
        request.length, request.sequence = 0, -1
        self._waiting.insert(0, request)

    def _remove(self, request: _Request) -> None:
        if request.sequence >= 0:
            self._machine.state("remove_sequence", request.sequence)

    def _finish_step(self, requests: list[_Request]) -> None:
        outputs = []
        for request in requests:
            new = request.committed[request.sent :]
            request.sent = len(request.committed)
            limit, reason = request.settings["max_tokens"], None
            length = len(request.prompt) + len(request.committed)
            if not request.settings["debug_config"]["ignore_eos"]:
                raise NotImplementedError("the double has no end tokens")
            if 0 <= limit <= len(request.committed) or length >= self._single:
                reason = "length"
            if new or reason:
                outputs.append((request, new, reason))
        finished = [request for request, _, reason in outputs if reason]
        for request in finished:
            self._running.remove(request)
            self._remove(request)
            self._sums["prompt_tokens_sum"] += len(request.prompt)
        self._stream(outputs, finished)

    def _stream(self, outputs, finished=()) -> None:
        made = [
            data.RequestStreamOutput(
                request.name, data.SingleRequestStreamOutput(new, None, reason, None, "")
            )
            for request, new, reason in outputs
        ]
        for request in finished:
            usage = json.dumps({"prompt_tokens": len(request.prompt)})
            made.append(
                data.RequestStreamOutput(
                    request.name, data.SingleRequestStreamOutput([], None, None, usage, "")
                )
            )
        if made:
            self._callback(made)
