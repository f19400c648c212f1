"""A compiled library driven through TVM's virtual machine, as MLC's cpp/serve/model.cc does it:
``embed``, then ``prefill`` or ``decode`` for one sequence, ``batch_prefill`` or ``batch_decode``
for more, around a paged KV cache. The next token is the argmax of the logits, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.engines.mlc.tvm import Tvm
from llmprof.errors import ModelError

PAGE = 16
"""Positions a page; MLC's engine knows no other size."""
_KV = {"flashinfer": "create_flashinfer_paged_kv_cache", "tir": "create_tir_paged_kv_cache"}

Rows = Sequence[Sequence[int]]


def open_machine(tvm: Tvm, module: Any, device: Any) -> Any:
    """A virtual machine whose CUDA graphs have their memory, as MLC's function table leaves it."""
    machine = import_module("tvm.runtime.vm").VirtualMachine(module, device)
    if machine.module.implements_function("cuda_graph_alloc_init"):
        machine["cuda_graph_alloc_init"]()
    return machine


def has_graphs(machine: Any) -> bool:
    """Does the library capture CUDA graphs; the compiler adds this function only then."""
    return bool(machine.module.implements_function("cuda_graph_alloc_init"))


def choose_cache(machine: Any, asked: str, shown: str) -> str:
    """``flashinfer`` or ``tir``; ``auto`` takes FlashInfer where it is, as MLC does.

    Raises:
        ModelError: the library has no such cache.
    """
    have = [kind for kind, name in _KV.items() if machine.module.implements_function(name)]
    if asked == "auto" and have:
        return have[0]
    if asked not in have:
        kinds = " and ".join(have) or "no paged"
        raise ModelError(f"{shown} has {kinds} KV cache; mlc:kv={asked} was asked for")
    return asked


class VmDrive:
    """One loaded model.

    Args:
        parameters: in the order of the library's metadata.
        cache: ``flashinfer`` or ``tir``.
        batch: sequences.
        kv_tokens: positions of the KV cache, all sequences together.
        chunk: positions a prefill call takes at most.
        active: ids from here on are padding and never the next token, as in MLC's sampler.
        ranges: ``(push, pop)`` around each phase of a step, or ``None``.
    """

    def __init__(
        self,
        tvm: Tvm,
        machine: Any,
        device: Any,
        parameters: Sequence[Any],
        cache: str,
        batch: int,
        kv_tokens: int,
        chunk: int,
        active: int | None,
        ranges: tuple[Callable[[str], None], Callable[[], None]] | None = None,
    ) -> None:
        shape = tvm.ffi.Shape
        self._shape, self._device = shape, device
        self._tensor = tvm.tvm.runtime.tensor
        self._machine = machine
        self._parameters = tvm.ffi.convert(list(parameters))
        self._batch, self._chunk, self._active = batch, chunk, active
        self._kv = machine[_KV[cache]](
            shape([batch]), shape([kv_tokens]), shape([chunk]), shape([PAGE]), shape([0])
        )
        self._reshape = tvm.function("vm.builtin.reshape")
        self._begin = tvm.function("vm.builtin.kv_state_begin_forward")
        self._end = tvm.function("vm.builtin.kv_state_end_forward")
        self._add = tvm.function("vm.builtin.kv_state_add_sequence")
        self._clear = tvm.function("vm.builtin.kv_state_clear")
        self._embed = machine["embed"]
        self._prefill = machine["prefill"]
        self._batch_prefill = machine["batch_prefill"] if batch > 1 else None
        self._decode = machine["decode" if batch == 1 else "batch_decode"]
        self._sequences = shape(list(range(batch)))
        self._ones = shape([1] * batch)
        self._last: NDArray[np.int32] | None = None
        self._width: Any = None
        """Shape of the embeddings of a decode step."""
        if ranges is not None:
            self._push, self._pop = ranges
            self.step = self._ranged_step  # type: ignore[method-assign]

    def prefill(self, rows: Rows) -> list[int]:
        """Fill every sequence; as many of them a call as the chunk takes, in order."""
        for number in range(self._batch):
            self._add(self._kv, number)
        self._last = np.zeros(self._batch, np.int32)
        for pieces in _packed([len(row) for row in rows], self._chunk):
            logits = self._prefill_logits(rows, pieces)
            for at, (number, _, end) in enumerate(pieces):
                if end == len(rows[number]):
                    self._last[number] = logits[at].argmax()
        found: list[int] = self._last.tolist()
        return found

    def _prefill_logits(
        self, rows: Rows, pieces: Sequence[tuple[int, int, int]]
    ) -> NDArray[np.float32]:
        """[pieces, vocabulary]"""
        ids = [token for number, start, end in pieces for token in rows[number][start:end]]
        embedded = self._embed(self._on_device(np.array(ids, np.int32)), self._parameters)
        embedded = self._reshape(embedded, self._shape([1, len(ids), embedded.shape[-1]]))
        lengths = [end - start for _, start, end in pieces]
        self._begin(self._kv, self._shape([p[0] for p in pieces]), self._shape(lengths))
        if len(pieces) == 1:
            result = self._prefill(embedded, self._kv, self._parameters)
        else:
            last = self._on_device(np.cumsum(lengths).astype(np.int32) - 1)
            assert self._batch_prefill is not None
            result = self._batch_prefill(embedded, last, self._kv, self._parameters)
        self._end(self._kv)
        values: NDArray[np.float32] = result[0].numpy()
        return values.reshape(len(pieces), -1)[:, : self._active]

    def step(self) -> list[int]:
        """One token for every sequence."""
        last = self._last
        if last is None:
            raise RuntimeError("mlc: decode step before prefill")
        embedded = self._embed(self._tensor(last, self._device), self._parameters)
        if self._width is None:
            self._width = self._shape([self._batch, 1, embedded.shape[-1]])
        embedded = self._reshape(embedded, self._width)
        self._begin(self._kv, self._sequences, self._ones)
        result = self._decode(embedded, self._kv, self._parameters)
        self._end(self._kv)
        logits = result[0].numpy()
        logits = logits.reshape(self._batch, -1)[:, : self._active]
        self._last = last = logits.argmax(-1).astype(np.int32)
        return last.tolist()  # type: ignore[no-any-return]

    def _ranged_step(self) -> list[int]:
        """The same step with a range around each phase. They end when the host is through: what
        the device does belongs to a range by the launches that were made in it."""
        last, push, pop = self._last, self._push, self._pop
        if last is None:
            raise RuntimeError("mlc: decode step before prefill")
        push("embed")
        embedded = self._embed(self._tensor(last, self._device), self._parameters)
        embedded = self._reshape(embedded, self._shape([self._batch, 1, embedded.shape[-1]]))
        pop()
        push("forward")
        self._begin(self._kv, self._sequences, self._ones)
        result = self._decode(embedded, self._kv, self._parameters)
        self._end(self._kv)
        pop()
        push("logits")
        logits = result[0].numpy()
        pop()
        push("sample")
        logits = logits.reshape(self._batch, -1)[:, : self._active]
        self._last = last = logits.argmax(-1).astype(np.int32)
        pop()
        return last.tolist()  # type: ignore[no-any-return]

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        """Logits after prompts that fit one call, [sequences, vocabulary]; for checks."""
        self.reset()
        for number in range(self._batch):
            self._add(self._kv, number)
        return self._prefill_logits(rows, [(n, 0, len(row)) for n, row in enumerate(rows)])

    def reset(self) -> None:
        self._clear(self._kv)
        self._last = None

    def close(self) -> None:
        self._device.sync()
        for name in ("_kv", "_parameters", "_machine", "_embed", "_prefill", "_decode"):
            setattr(self, name, None)
        self._batch_prefill = None

    def _on_device(self, values: NDArray[np.int32]) -> Any:
        return self._tensor(values, self._device)


def _packed(lengths: Sequence[int], chunk: int) -> list[list[tuple[int, int, int]]]:
    """Calls of at most ``chunk`` positions: lists of (sequence, start, end)."""
    calls: list[list[tuple[int, int, int]]] = [[]]
    room = chunk
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if not room:
                calls.append([])
                room = chunk
            end = min(length, start + room)
            calls[-1].append((number, start, end))
            room -= end - start
            start = end
    return calls
