"""The seam that every engine fills. Standard library only.

A third party writes a class with these methods and registers it in its own package:

    [project.entry-points."llmprof.engines"]
    mine = "my_package.my_module:MyEngine"
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from llmprof.records import EngineInfo
from llmprof.records.processes import RankProcess

Progress = Callable[[str, float | None], None]
"""``progress("loading weights", 0.4)``; ``None`` where the share is not known."""


@dataclass(frozen=True)
class LoadRequest:
    """All that an engine needs to load, as the worker got it from its parent."""

    model: str
    """A path, a preset (``llama2-7b``, ``tiny``) or ``smollm2``; already resolved to a path
    where it names a file."""
    options: dict[str, str] = field(default_factory=dict)
    """The user's ``key=value`` pairs; an unknown key is a ``UsageError`` naming the known ones."""
    batch: int = 1
    max_positions: int = 512
    """KV positions a sequence needs; more than the model's context is a ``UsageError``."""
    seed: int = 0
    """For random weights."""
    trace_ops: bool = False
    """The traced pass will record operators: an engine may keep its Python structure visible."""
    trace: str | None = None
    """Level of the traced pass; ``None`` for a worker that is only timed."""
    most_batch: int = 0
    most_positions: int = 0
    """The largest shape that ``reshape`` may ask for later, for what can be made once only; 0: the
    shape above is the only one."""
    spool: str | None = None
    """Where this process' kernels are written (``tracers.cupti``). An engine that starts further
    processes lets each write beside it (``rank_spool``)."""


@runtime_checkable
class Engine(Protocol):
    """Decodes greedily, with forced length (EOS ignored).

    ``decode_step`` returns when its token is on the host, unless the engine was asked to run
    free (``EngineInfo.synchronous`` False); such an engine returns ``None`` from ``decode_step``
    and all its tokens from ``finish_round``, which waits for the device.
    """

    def load(self, request: LoadRequest, progress: Progress) -> None:
        """Load or make the weights, allocate the KV cache.

        Raises:
            MissingPackage: its package is not installed (name the extra).
            ModelError: missing, corrupt or unsupported model.
            UsageError: unknown option or bad value, context too small.
            OutOfMemory: it does not fit (say needed and free).
        """

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        """Process the prompt of every sequence; the first new token of each, on the host."""

    def decode_step(self) -> Sequence[int] | None:
        """One more token for every sequence (``batch`` ids)."""

    def reset(self) -> None:
        """Forget the sequences, keep weights, graphs and caches' memory."""

    def close(self) -> None:
        """Free everything."""

    def describe(self) -> EngineInfo:
        """Facts about the loaded engine (after ``load``)."""


@runtime_checkable
class FreeRunningEngine(Engine, Protocol):
    """An engine that can let the host run ahead of the device."""

    def finish_round(self) -> Sequence[Sequence[int]]:
        """Wait for the device; the tokens of every step since ``prefill``, one row a step."""


@runtime_checkable
class ReshapedEngine(Engine, Protocol):
    """An engine that can change batch and context on the weights that it holds: the points of a
    sweep then share one load. One without it is loaded again for each."""

    def reshape(self, batch: int, max_positions: int) -> None:
        """Leave the engine as a fresh ``load`` of the same request with this shape would: no
        sequence, a KV cache of this size, graphs to be captured again, ``describe`` true.

        Memory of the old shape is free before the new one is allocated. Steps made at a batch
        before count towards ``EngineInfo.warmup_min_steps`` of that batch.

        Raises:
            LoadAgain: what it holds goes with the loaded shape; nothing has changed.
            UsageError: context or batch of a size that ``load`` would refuse.
            OutOfMemory: it does not fit; the engine is of no use then.
        """


@runtime_checkable
class OpTracedEngine(Engine, Protocol):
    """An engine whose operators can be recorded from inside (the kernel level on a CPU)."""

    def start_op_trace(self) -> None: ...

    def stop_op_trace(self) -> Sequence[tuple[str, int, int, int]]:
        """``(name, start_ns, end_ns, native thread id)``, times on CLOCK_MONOTONIC."""


@runtime_checkable
class RankedEngine(Engine, Protocol):
    """An engine that computes one step in several processes, a rank each. The worker is rank 0."""

    def ranks(self) -> Sequence[RankProcess]:
        """All of them, rank 0 first; one alone where the engine was not asked for more."""

    def start_metronomes(self, boards: dict[int, str], tick_ns: int, reader: int) -> dict[int, int]:
        """Let each rank behind 0 start a child that dates the samples of its host stacks
        (``tracers.pyspy.metronome.spawn``), and let ``reader`` read it.

        Args:
            boards: rank → file mapping of its child.

        Returns:
            Rank → process id of that child.
        """

    def start_rank_traces(self, serial: int) -> None:
        """Let the ranks behind 0 record round ``serial``, while the device is idle."""

    def stop_rank_traces(self, serial: int) -> dict[int, str]:
        """Rank → why its kernels of the round are missing or incomplete (empty: all there)."""


def rank_spool(spool: str, rank: int) -> str:
    """Where a rank behind 0 writes its kernels."""
    return f"{spool}.rank{rank}"


def trace_words(facts: Mapping[str, Any]) -> str:
    """What is wrong with the records of a rank, from what its tracer said of a round (empty:
    nothing)."""
    if facts.get("unavailable"):
        return str(facts["unavailable"])
    dropped = facts.get("dropped")
    return f"CUPTI dropped {dropped} records" if dropped else ""


def exit_words(code: int | None) -> str:
    """How the process of a rank ended: ``was killed by SIGKILL``."""
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"
