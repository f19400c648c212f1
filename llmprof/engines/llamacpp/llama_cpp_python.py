"""Two ways to drive llama.cpp through llama-cpp-python. Imported late, by ``bindings``: loads it
and numpy."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy

from llmprof.engines.llamacpp import settings as limits
from llmprof.engines.llamacpp.refusal import not_loaded
from llmprof.engines.llamacpp.settings import Settings
from llmprof.errors import LoadAgain

NAME = "llama-cpp-python"
_ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h


@contextmanager
def errors_heard() -> Iterator[list[str]]:
    """The errors that llama.cpp logs meanwhile; they are not printed."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def hear(level: int, text: bytes, data: Any) -> None:
        if level == _ERROR:
            lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(hear, None)
    try:
        yield lines
    finally:
        # What the package itself sets at import.
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, None)


class GeneratorDrive:
    """``Llama.generate``, the loop that llama-cpp-python's own completion runs, one sequence.

    Greedy (temperature 0). The generator itself does not look at end-of-sequence: its caller
    does, so the length is forced by not looking.
    """

    def __init__(self, settings: Settings) -> None:
        with errors_heard() as errors:
            try:
                self._llama = llama_cpp.Llama(
                    settings.path,
                    n_ctx=settings.positions,
                    n_batch=limits.PROMPT_CHUNK,
                    n_threads=settings.threads,
                    n_threads_batch=settings.threads,
                    n_gpu_layers=settings.n_gpu_layers,
                    verbose=False,
                )
            except ValueError as why:
                if "context" in str(why):
                    raise settings.no_context() from None
                raise not_loaded(settings.path, errors, NAME) from None
        self._tokens: Generator[int, Any, None] | None = None

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]:
        self._tokens = self._llama.generate(list(rows[0]), temp=0.0)
        return [next(self._tokens)]

    def step(self) -> list[int]:
        if self._tokens is None:
            raise RuntimeError("llamacpp: decode step before prefill")
        return [next(self._tokens)]

    def reset(self) -> None:
        if self._tokens is not None:
            self._tokens.close()
            self._tokens = None
        # Without this the next prompt would reuse the cached positions of the last.
        self._llama.reset()

    def reshape(self, settings: Settings) -> None:
        raise LoadAgain("llama-cpp-python's generator makes model and context in one")

    def close(self) -> None:
        self.reset()
        self._llama.close()


class ForwardDrive:
    """``llama_decode`` and an argmax, without sampler and generator; any number of sequences."""

    def __init__(self, settings: Settings) -> None:
        # Else llama.cpp's log of every tensor goes to stderr; errors still do.
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama_cpp.llama_backend_init()
        self._context: Any = None
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.n_gpu_layers = settings.layers_on_gpu
        with errors_heard() as errors:
            self._model = llama_cpp.llama_model_load_from_file(
                settings.path.encode(), model_settings
            )
        if not self._model:
            raise not_loaded(settings.path, errors, NAME)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.reshape(settings)

    def reshape(self, settings: Settings) -> None:
        """Another context on the same model."""
        self._free_context()
        self._settings = settings
        self._filled = 0
        self._tokens: list[int] = []
        self._context = llama_cpp.llama_init_from_model(self._model, self._context_settings())
        if not self._context:
            self.close()
            raise settings.no_context()
        self._chunk = max(limits.PROMPT_CHUNK, settings.batch)
        self._batch = llama_cpp.llama_batch_init(self._chunk, 0, 1)

    def _context_settings(self) -> Any:
        wanted = self._settings
        context = llama_cpp.llama_context_default_params()
        context.n_seq_max = wanted.batch
        context.n_ctx = wanted.context_positions
        context.n_batch = max(limits.PROMPT_CHUNK, wanted.batch)
        context.n_ubatch = limits.PROMPT_CHUNK
        context.n_threads = context.n_threads_batch = wanted.threads
        if hasattr(context, "flash_attn_type"):  # as the generator drive has it
            context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return context

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]:
        self._tokens = []
        for sequence, row in enumerate(rows):
            for start in range(0, len(row), self._chunk):
                chunk = row[start : start + self._chunk]
                for slot, token in enumerate(chunk):
                    self._put(slot, token, start + slot, sequence, slot == len(chunk) - 1)
                self._decode(len(chunk))
            self._tokens.append(self._greedy(len(chunk) - 1))
        self._filled = len(rows[0])
        return list(self._tokens)

    def step(self) -> list[int]:
        count = len(self._tokens)
        for sequence, token in enumerate(self._tokens):
            self._put(sequence, token, self._filled, sequence, True)
        self._decode(count)
        self._filled += 1
        self._tokens = [self._greedy(slot) for slot in range(count)]
        return list(self._tokens)

    def logits(self, slot: int) -> Any:
        """Logits of the last call's ``slot``, numpy [vocabulary] fp32; valid until the next."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, slot)
        return numpy.ctypeslib.as_array(pointer, shape=(self._vocab,))

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._filled = 0
        self._tokens = []

    def _free_context(self) -> None:
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
            self._context = None

    def close(self) -> None:
        self._free_context()
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def _put(self, slot: int, token: int, position: int, sequence: int, wanted: bool) -> None:
        batch = self._batch
        batch.token[slot] = token
        batch.pos[slot] = position
        batch.n_seq_id[slot] = 1
        batch.seq_id[slot][0] = sequence
        batch.logits[slot] = wanted

    def _decode(self, count: int) -> None:
        self._batch.n_tokens = count
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status == 1:
            raise self._settings.cache_full()
        if status:
            raise RuntimeError(f"llama_decode failed with {ctypes.c_int32(status).value}")

    def _greedy(self, slot: int) -> int:
        return int(self.logits(slot).argmax())
