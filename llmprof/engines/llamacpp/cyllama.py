"""Two ways to drive llama.cpp through cyllama. Imported late, by ``bindings``: loads it.

cyllama gives logits as a Python list only (milliseconds for a large vocabulary, and 0.2.18 not at
all), so the argmax is llama.cpp's own greedy sampler: one pass over the logits, in C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cyllama.llama import llama_cpp

from llmprof.engines.llamacpp import settings as limits
from llmprof.engines.llamacpp.refusal import not_loaded
from llmprof.engines.llamacpp.settings import Settings

_NO_FLASH_ATTENTION = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED of llama.h
_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h


@contextmanager
def _errors_heard() -> Iterator[list[str]]:
    """The errors that llama.cpp logs meanwhile; nothing is printed, neither here nor later: it
    would tell of every tensor."""
    lines: list[str] = []

    def hear(level: int, text: str) -> None:
        if level == _ERROR:
            lines.append(text)

    llama_cpp.set_log_callback(hear)
    try:
        yield lines
    finally:
        llama_cpp.disable_logging()


class _Context:
    """A model, its context and a greedy sampler."""

    def __init__(self, settings: Settings) -> None:
        self._open: list[Any] = []
        """What ``close`` closes, last made first."""
        wanted = llama_cpp.LlamaModelParams()
        wanted.n_gpu_layers = settings.layers_on_gpu
        with _errors_heard() as errors:
            try:
                model = llama_cpp.LlamaModel(settings.path, wanted, verbose=False)
            except ValueError:
                raise not_loaded(settings.path, errors, "cyllama") from None
        self._model = self._opened(model)
        self.reshape(settings)

    def reshape(self, settings: Settings) -> None:
        """Another context on the same model."""
        self._close_down_to(1)
        self._settings = settings
        self._filled = 0
        try:
            self._context = self._opened(
                llama_cpp.LlamaContext(self._model, self._wanted(), verbose=False)
            )
        except (RuntimeError, ValueError, MemoryError):
            self.close()
            raise settings.no_context() from None
        self._greedy = self._opened(llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams()))
        self._greedy.add_greedy()

    def reset(self) -> None:
        self._context.kv_cache_clear(False)
        self._filled = 0

    def close(self) -> None:
        self._close_down_to(0)

    def _close_down_to(self, count: int) -> None:
        while len(self._open) > count:
            self._open.pop().close()

    def _opened(self, made: Any) -> Any:
        self._open.append(made)
        return made

    def _wanted(self) -> Any:
        settings, wanted = self._settings, llama_cpp.LlamaContextParams()
        wanted.n_seq_max = settings.batch
        wanted.n_ctx = settings.context_positions
        wanted.n_batch = max(limits.PROMPT_CHUNK, settings.batch)
        wanted.n_ubatch = limits.PROMPT_CHUNK
        wanted.n_threads = wanted.n_threads_batch = settings.threads
        wanted.flash_attn_type = _NO_FLASH_ATTENTION  # as llama-cpp-python has it
        return wanted

    def _decode(self, batch: Any) -> None:
        try:
            self._context.decode(batch)
        except ValueError as why:  # also for a batch that llama.cpp refuses
            if "KV slot" in str(why):
                raise self._settings.cache_full() from None
            raise


class GeneratorDrive(_Context):
    """The calls of cyllama's own completion loop (``LLM._generate_stream``), one sequence:
    a batch a call from ``llama_batch_get_one``, ``decode``, ``LlamaSampler.sample``.

    That loop itself takes text and ends at an end token; token ids and a forced length need its
    calls without it.
    """

    def reshape(self, settings: Settings) -> None:
        super().reshape(settings)
        self._token = -1

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]:
        row = rows[0]
        for start in range(0, len(row), limits.PROMPT_CHUNK):
            self._evaluate(list(row[start : start + limits.PROMPT_CHUNK]))
        return self._sampled()

    def step(self) -> list[int]:
        if self._token < 0:
            raise RuntimeError("llamacpp: decode step before prefill")
        self._evaluate([self._token])
        return self._sampled()

    def reset(self) -> None:
        super().reset()
        self._token = -1

    def _evaluate(self, tokens: list[int]) -> None:
        self._decode(llama_cpp.llama_batch_get_one(tokens, self._filled))
        self._filled += len(tokens)

    def _sampled(self) -> list[int]:
        self._token = int(self._greedy.sample(self._context, -1))
        return [self._token]


class ForwardDrive(_Context):
    """``llama_decode`` on a batch that is made once, any number of sequences."""

    def reshape(self, settings: Settings) -> None:
        super().reshape(settings)
        self._chunk = max(limits.PROMPT_CHUNK, settings.batch)
        self._batch = self._opened(llama_cpp.LlamaBatch(n_tokens=self._chunk, embd=0, n_seq_max=1))
        self._tokens: list[int] = []

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]:
        self._tokens = []
        for sequence, row in enumerate(rows):
            for start in range(0, len(row), self._chunk):
                chunk = row[start : start + self._chunk]
                self._batch.clear()
                for slot, token in enumerate(chunk):
                    last = slot == len(chunk) - 1
                    self._batch.add(int(token), start + slot, [sequence], last)
                self._decode(self._batch)
            self._tokens.append(int(self._greedy.sample(self._context, -1)))
        self._filled = len(rows[0])
        return list(self._tokens)

    def step(self) -> list[int]:
        self._batch.clear()
        for sequence, token in enumerate(self._tokens):
            self._batch.add(token, self._filled, [sequence], True)
        self._decode(self._batch)
        self._filled += 1
        self._tokens = [
            int(self._greedy.sample(self._context, slot)) for slot in range(len(self._tokens))
        ]
        return list(self._tokens)

    def reset(self) -> None:
        super().reset()
        self._tokens = []
