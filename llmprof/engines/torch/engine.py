"""The torch engine: a plain Llama, eager or in CUDA graphs. torch is imported by ``load``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.distribution import how_to_install
from llmprof.engines.base import LoadRequest, Progress, rank_spool, trace_words
from llmprof.engines.prompts import check_prompt
from llmprof.engines.torch.choices import Choices, choose
from llmprof.errors import LlmprofError, LoadAgain, MissingPackage, UsageError
from llmprof.models.gguf.reader import GgufWeights
from llmprof.models.huggingface.reader import SafetensorsWeights
from llmprof.models.locate import ModelRef, read_json, resolve
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.models.weights import WeightSource
from llmprof.records import EngineInfo
from llmprof.records.processes import RankProcess

if TYPE_CHECKING:
    from llmprof.engines.pytorch.ops import OpTrace
    from llmprof.engines.torch.group import RankGroup
    from llmprof.engines.torch.llama import TorchLlama
    from llmprof.engines.torch.loops import EagerLoop
    from llmprof.engines.torch.shards import Shard


_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)
"""gloo: "Timed out waiting 120000ms for recv operation to complete"; c10d: "wait timeout"."""
ANSWER_S = 120.0
"""Ranks answer so soon once their device is idle."""


class TorchEngine:
    """Options: ``device=cpu|cuda|cuda:N``, ``dtype=fp32|bf16|fp16``, ``cuda_graph=0|1``,
    ``threads=N``, ``sync=1|0``, ``tp=N``, ``timeout=S``, ``cudnn_attention=1|0`` (0: SDPA without
    cuDNN). ``threads`` on a CPU defaults to ``machine.default_threads`` for all ranks together.

    ``sync=0`` lets the host run ahead: the next token is fed back on the device, ``decode_step``
    returns ``None`` and ``finish_round`` waits and returns all tokens. ``tp=N`` computes a step on
    N GPUs (or in N processes on a CPU), this process being rank 0.
    """

    def __init__(self) -> None:
        self._loop: EagerLoop | None = None
        self._info = EngineInfo()
        self._batch = 1
        self._limit = 0
        self._vocab = 0
        self._kept: list[Any] = []
        self._trace: OpTrace | None = None
        self._group: RankGroup | None = None
        self._on_board = False
        self._timeout_s = 0
        self._ranks: list[RankProcess] = []
        self._untraced: dict[int, str] = {}
        self._begun: dict[int, str] = {}

    def load(self, request: LoadRequest, progress: Progress) -> None:
        torch = _torch()
        chosen = choose(request.options, torch)
        if chosen.world == 1:
            self._load(request, chosen, None, progress)
            return
        from llmprof.engines.torch.group import LOAD_S, READY_S, RankGroup
        from llmprof.engines.torch.shards import Shard, meet

        _config(request, chosen)  # what is wrong with the request is said before anything starts
        self._group = group = RankGroup(chosen.world)
        # On a CPU a rank that looks at a board all the time would take the cores of the others.
        self._on_board = chosen.device.type == "cuda"
        self._timeout_s = chosen.timeout_s
        try:
            progress(f"starting {chosen.world - 1} more ranks", None)
            group.tell_each({rank: self._asked(request, chosen, rank) for rank in group.pids})
            facts = group.answers(READY_S)
            self._ranks = [
                RankProcess(0, os.getpid(), str(chosen.device)),
                *(RankProcess(r, pid, str(facts[r]["device"])) for r, pid in group.pids.items()),
            ]
            self._untraced = {r: f["untraced"] for r, f in facts.items() if "untraced" in f}
            meet(chosen, 0, group.rendezvous)
            self._load(request, chosen, Shard(0, chosen.world), progress)
            progress("waiting for the other ranks", None)
            group.answers(LOAD_S)
        except RuntimeError as why:
            reason = self._reason(why)
            self.close()
            raise reason from None
        except BaseException:
            self.close()  # no rank is left behind
            raise

    def load_rank(
        self, request: LoadRequest, rank: int, rendezvous: str, ready: Callable[[str], None]
    ) -> None:
        """As a rank behind 0. ``ready`` is told the device before the ranks meet."""
        chosen = choose(request.options, _torch(), rank)
        from llmprof.engines.torch.shards import Shard, meet

        _config(request, chosen)
        ready(str(chosen.device))
        meet(chosen, rank, rendezvous)
        self._load(request, chosen, Shard(rank, chosen.world), lambda what, share: None)

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt("torch", prompt_ids, self._batch, self._vocab, self._limit)
        self._ready()
        with self._whole_group():
            if self._group is not None:
                self._group.tell({"do": "prefill", "ids": [list(row) for row in prompt_ids]})
            first: list[int] = self.launch_prefill(prompt_ids).tolist()
        return first

    def launch_prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Any:
        """The first tokens, on the device."""
        loop = self._ready()
        self._kept.clear()
        with self._memory_errors("torch", "the prompt", self._device), self._torch.inference_mode():
            ids = self._torch.tensor(prompt_ids, dtype=self._torch.long).to(self._device)
            return loop.prefill(ids)

    def decode_step(self) -> Sequence[int] | None:
        if self._group is None:
            return self._step()
        with self._whole_group():
            if self._on_board:
                self._group.begin_step()
            else:
                self._group.tell({"do": "step"})
            return self._step()

    def launch_step(self) -> None:
        """One step whose tokens stay on the device."""
        with self._torch.inference_mode():
            self._ready().step()

    def _step(self) -> Sequence[int] | None:
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
        with self._whole_group():
            rows: list[list[int]] = self._torch.stack(self._kept).tolist()
        self._kept.clear()
        return rows

    def wait(self) -> None:
        """Until the device has nothing to do."""
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def reset(self) -> None:
        self._kept.clear()
        self._ready().reset()
        if self._group is not None:
            self._group.tell({"do": "reset"})

    def close(self) -> None:
        group, self._group = self._group, None
        loop, self._loop = self._loop, None
        self._kept.clear()
        if group is not None:
            from llmprof.engines.torch.shards import part

            group.close()
            part(on_cpu=self._info.device == "cpu")
        if loop is not None and self._device.type == "cuda":
            del loop
            self._torch.cuda.empty_cache()

    def reshape(self, batch: int, max_positions: int) -> None:
        """On the same weights: a new cache, and graphs captured again when they are wanted."""
        from llmprof.engines.pytorch.memory import check_fits

        if self._group is not None:
            raise LoadAgain("the ranks of torch:tp are loaded for one batch and context")
        loop = self._ready()
        _check_context(max_positions, loop.model.config, self._info.model)
        model = loop.model
        self._kept.clear()
        self._loop = None
        del loop  # with its graphs and their pool
        size = model.dtype.itemsize
        errors = self._memory_errors("torch", "the KV cache", self._device)
        with errors, self._torch.inference_mode():
            model.cache.clear()
            if self._device.type == "cuda":
                self._torch.cuda.empty_cache()
            need = model.config.kv_bytes_per_token(size) * batch * max_positions
            check_fits("torch", need, self._device, "the KV cache needs")
            self._loop = _loop(model, batch, max_positions, bool(self._info.cuda_graph))
        self._batch, self._limit = batch, max_positions

    def describe(self) -> EngineInfo:
        return self._info

    def ranks(self) -> Sequence[RankProcess]:
        return self._ranks or [RankProcess(0, os.getpid(), self._info.device)]

    def start_metronomes(self, boards: dict[int, str], tick_ns: int, reader: int) -> dict[int, int]:
        if self._group is None or not boards:
            return {}
        ask = {"do": "metronome", "tick_ns": tick_ns, "reader": reader}
        with self._whole_group():
            self._group.tell_each({r: {**ask, "board": boards[r]} for r in self._group.pids})
            return {r: int(f["pid"]) for r, f in self._group.answers(ANSWER_S).items()}

    def start_rank_traces(self, serial: int) -> None:
        if self._group is None:
            return
        with self._whole_group():
            self._group.tell({"do": "begin_trace", "serial": serial})
            found = self._group.answers(ANSWER_S)
        self._begun = {r: str(f["unavailable"]) for r, f in found.items()}

    def stop_rank_traces(self, serial: int) -> dict[int, str]:
        if self._group is None:
            return {}
        with self._whole_group():
            self._group.tell({"do": "end_trace", "serial": serial})
            found = self._group.answers(ANSWER_S)
        return {
            r: self._untraced.get(r) or self._begun.get(r) or trace_words(facts)
            for r, facts in found.items()
        }

    def start_op_trace(self) -> None:
        from llmprof.engines.pytorch.ops import OpTrace

        self._trace = OpTrace()
        self._trace.start()

    def stop_op_trace(self) -> Sequence[tuple[str, int, int, int]]:
        trace, self._trace = self._trace, None
        return trace.stop() if trace else []

    def _load(
        self, request: LoadRequest, chosen: Choices, shard: Shard | None, progress: Progress
    ) -> None:
        from llmprof.engines.pytorch.memory import check_fits, memory_errors, needed_bytes

        torch = self._torch = _torch()
        ref, source, config = _config(request, chosen)
        held = config if shard is None else shard.config(config)
        if (threads := chosen.threads) is not None:
            torch.set_num_threads(max(1, threads // chosen.world))
        need = needed_bytes(held, chosen.torch_dtype.itemsize, request.batch, request.max_positions)
        check_fits("torch", need, chosen.device)
        self._memory_errors = memory_errors
        self._device = chosen.device
        self._synchronous = chosen.synchronous
        self._batch, self._vocab = request.batch, config.vocab_size
        self._limit = request.max_positions
        try:
            with memory_errors("torch", "the model", chosen.device), torch.inference_mode():
                self._loop = _build(config, source, chosen, request, progress, shard)
        finally:
            if source is not None:
                source.close()
        from llmprof.engines.torch.describing import describe

        payloads: dict[str, int] = {}
        if shard is not None:
            payloads = shard.payloads(config, request.batch, chosen.torch_dtype.itemsize)
        self._info = describe(ref, config, held, source, chosen, request, payloads)

    def _asked(self, request: LoadRequest, chosen: Choices, rank: int) -> dict[str, Any]:
        assert self._group is not None
        return {
            "do": "load",
            "model": request.model,
            "options": request.options,
            "batch": request.batch,
            "max_positions": request.max_positions,
            "seed": request.seed,
            "rendezvous": self._group.rendezvous,
            "trace": request.trace,
            "spool": None if request.spool is None else rank_spool(request.spool, rank),
            "board": str(self._group.board_path) if self._on_board else None,
        }

    @contextmanager
    def _whole_group(self) -> Iterator[None]:
        """What fails because a rank is gone says that."""
        try:
            yield
        except RuntimeError as why:
            raise self._reason(why) from None

    def _reason(self, why: BaseException) -> BaseException:
        group = self._group
        if group is None or isinstance(why, (LlmprofError, KeyboardInterrupt)):
            return why
        from llmprof.engines.torch.group import RankDied

        if group.wait_for_death():
            return RankDied(group.why_dead)
        if _TIMED_OUT.search(str(why)) is None:
            return why
        limit = f"{self._timeout_s} s (torch:timeout=)"
        return RankDied(f"torch: a rank did not come to a collective within {limit}")

    def _ready(self) -> EagerLoop:
        if self._loop is None:
            raise RuntimeError("torch: no model loaded")
        return self._loop


def _torch() -> Any:
    try:
        import torch
    except ImportError as why:
        raise MissingPackage(
            f"engine 'torch' needs torch ({why}); install it with: {how_to_install('torch')}"
        ) from None
    return torch


def _config(
    request: LoadRequest, chosen: Choices
) -> tuple[ModelRef, WeightSource | None, LlamaConfig]:
    """The model that is asked for, opened; raises ``UsageError`` where the request does not fit."""
    ref = resolve(request.model)
    source = _open(ref)
    config = _shape(ref) if source is None else source.config
    _check_context(request.max_positions, config, ref.name)
    if chosen.world > 1:
        chosen.check_shape(config)
    return ref, source, config


def _check_context(positions: int, config: LlamaConfig, name: str) -> None:
    if positions > config.max_position_embeddings:
        raise UsageError(
            f"torch: {positions} positions asked for, but the context of {name}"
            f" is {config.max_position_embeddings}; shorten --prompt-len or --decode-len"
        )


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
    chosen: Choices,
    request: LoadRequest,
    progress: Progress,
    shard: Shard | None,
) -> EagerLoop:
    import torch

    from llmprof.engines.torch.llama import TorchLlama, random_weights, stored_weights
    from llmprof.engines.torch.loops import cache_positions

    dtype = chosen.torch_dtype
    if source is None:
        what = "making random weights"
        read = random_weights(config, request.seed, chosen.device, dtype)
    else:
        what, read = "loading weights", stored_weights(source, chosen.device, dtype)
    progress(what, 0.0)
    model = TorchLlama(
        config if shard is None else shard.config(config),
        read if shard is None else shard.reading(read),
        batch=request.batch,
        positions=cache_positions(request.max_positions, chosen.cuda_graph),
        device=chosen.device,
        dtype=dtype,
        rope_factors=None if source is None else source.rope_factors,
        told=lambda share: progress(what, share),
        shard=shard,
    )
    if chosen.device.type == "cuda":
        torch.cuda.synchronize(chosen.device)
    return _loop(model, request.batch, request.max_positions, chosen.cuda_graph)


def _loop(model: TorchLlama, batch: int, positions: int, cuda_graph: bool) -> EagerLoop:
    """Over a cache of that size, which is made where it is not there."""
    from llmprof.engines.torch.loops import EagerLoop, GraphLoop, cache_positions

    if not model.cache:
        model.make_cache(batch, cache_positions(positions, cuda_graph))
    return GraphLoop(model, positions, batch) if cuda_graph else EagerLoop(model, positions)
