"""The worker: holds one engine and does what the parent asks, one request at a time.

Requests are ``{"do": "load", …}``; ``reshape``, ``warmup``, ``round``, ``metronome``, ``park``,
``close`` likewise. Each is answered by any number of ``{"is": "progress", …}`` and one
``{"is": "done", …}`` or ``{"is": "failed", …}``.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
from array import array
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.engines.base import Engine, LoadRequest, RankedEngine, ReshapedEngine
from llmprof.engines.registry import create
from llmprof.errors import LlmprofError, LoadAgain, MissingPackage, OutOfMemory, UsageError
from llmprof.tracers.pyspy import metronome
from llmprof.worker.rounds import RoundResult, ranged_round, timed_round, warm_up
from llmprof.worker.stamps import StampBoard
from llmprof.worker.tracing import WorkerTracers

PROGRESS_INTERVAL_S = 0.1
PARKED_POSITIONS = 16
"""KV positions of an engine that waits for the next run: the memory is wanted by others."""


def failure_kind(why: BaseException) -> str:
    """The ``EngineFailure.kind`` of what an engine raised."""
    if isinstance(why, (OutOfMemory, MemoryError)):
        return "oom"
    if isinstance(why, MissingPackage):
        return "missing-package"
    if isinstance(why, LoadAgain):
        return "load-again"
    return "input" if isinstance(why, UsageError) else "exception"


def _text(why: BaseException) -> str:
    if isinstance(why, LlmprofError):
        return str(why)
    if isinstance(why, MemoryError):  # mostly without a word
        return f"out of memory on the host ({type(why).__name__})" + (
            f": {why}" if str(why) else ""
        )
    return f"{type(why).__name__}: {why}"


class Worker:
    """State between requests: the engine, its prompt, the shared stamps, the tracers."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.engine: Engine | None = None
        self.prompt: list[list[int]] = []
        self.board: StampBoard | None = None
        self.tracers: WorkerTracers | None = None
        self._made: Counter[int] = Counter()
        """Batch → decode steps since the load: those of an earlier shape count towards the engine's
        minimum."""
        self._metronome: subprocess.Popen[bytes] | None = None
        self._told = 0.0

    def progress(self, phase: str, share: float | None) -> None:
        """At most ten a second: an engine may call this for every tensor."""
        if time.monotonic() - self._told >= PROGRESS_INTERVAL_S:
            self._told = time.monotonic()
            self.channel.send({"is": "progress", "phase": phase, "share": share})

    def load(self, ask: dict[str, Any]) -> None:
        begin = time.monotonic_ns()
        # Tracers first: CUPTI's kinds must be on before the CUDA context and any graph exist.
        self.tracers = WorkerTracers(ask.get("trace"), ask.get("spool"))
        engine = create(ask["engine"])
        engine.load(
            LoadRequest(
                model=ask["model"],
                options=ask["options"],
                batch=ask["batch"],
                max_positions=ask["max_positions"],
                seed=ask["seed"],
                trace_ops=self.tracers.wants_ops,
                trace=ask.get("trace"),
                spool=ask.get("spool"),
                most_batch=ask.get("most_batch", 0),
                most_positions=ask.get("most_positions", 0),
            ),
            self.progress,
        )
        self.tracers.loaded(engine, engine.describe())
        self.engine = engine
        self.told_loaded(engine, ask, begin)

    def reshape(self, ask: dict[str, Any]) -> None:
        """Another prompt, batch and context on the weights that are there."""
        begin = time.monotonic_ns()
        engine = self.reshaped(ask["batch"], ask["max_positions"])
        self.told_loaded(engine, ask, begin)

    def park(self, ask: dict[str, Any]) -> None:
        """Keep the weights and give the rest back, until ``reshape``; fails where that never
        comes."""
        if self.board is not None:
            self.board.close()
            self.board = None
        self.reshaped(1, PARKED_POSITIONS)
        self.done()

    def reshaped(self, batch: int, positions: int) -> Engine:
        engine = self.engine
        if not isinstance(engine, ReshapedEngine):
            raise LoadAgain("batch and context are fixed when it loads")
        gc.unfreeze()  # warm-up froze what goes now
        engine.reshape(batch, positions)
        gc.collect()
        return engine

    def told_loaded(self, engine: Engine, ask: dict[str, Any], begin_ns: int) -> None:
        self.prompt = ask["prompt"]
        self.board = StampBoard(Path(ask["stamps"]), ask["steps"], create=False)
        ranks = engine.ranks() if isinstance(engine, RankedEngine) else ()
        self.done(
            info=asdict(engine.describe()),
            ranks=[asdict(rank) for rank in ranks] if len(ranks) > 1 else [],
            load_ns=time.monotonic_ns() - begin_ns,
            unavailable=self.tracers.unavailable if self.tracers else {},
        )

    def warm_up(self, ask: dict[str, Any]) -> None:
        engine, board = self.ready()

        def tell(steps: int, stable: bool) -> None:
            self.progress(f"warm-up, {steps} steps" + (", stable" if stable else ""), None)

        # What is loaded stays loaded: unfrozen, torch's modules alone make the collection before
        # each round take 0.1 s.
        gc.collect()
        gc.freeze()
        batch = len(self.prompt)
        limits = max(0, ask["min_steps"] - self._made[batch]), ask["max_s"]
        result = warm_up(
            engine,
            self.prompt,
            ask["steps"],
            board,
            *limits,
            tell,
            ask.get("round_s"),
            ask.get("meet", False),
        )
        self._made[batch] += result.steps
        gc.collect()
        gc.freeze()
        self.done(**asdict(result))

    def round(self, ask: dict[str, Any]) -> None:
        engine, board = self.ready()
        self._made[len(self.prompt)] += ask["steps"]
        board.clear()
        board.slots[0] = ask["serial"]
        if not ask["kernels"]:
            result = timed_round(engine, self.prompt, ask["steps"], board)
        else:
            result = self.traced(engine, ask, board)
        tokens = [list(column) for column in zip(*result.rows, strict=True)]
        self.done(tokens=tokens, end_ns=result.end_ns, synchronous=result.synchronous)

    def traced(self, engine: Engine, ask: dict[str, Any], board: StampBoard) -> RoundResult:
        tracers = self.tracers
        if tracers is None:
            raise RuntimeError("traced round before load")
        tracers.begin_round(engine, ask["serial"])
        try:
            result = ranged_round(
                engine, self.prompt, ask["steps"], board, ask["index"], tracers.ranges
            )
        finally:
            found = tracers.end_round(engine, ask["serial"])
        if found.ops:
            names = sorted({op[0] for op in found.ops})
            number = {name: i for i, name in enumerate(names)}
            flat = array("q")
            for name, start, end, tid in found.ops:
                flat.extend((number[name], start, end, tid))
            self.channel.send({"is": "ops", "names": names}, flat.tobytes())
        self.channel.send({"is": "tracing", **found.facts})
        return result

    def metronome(self, ask: dict[str, Any]) -> None:
        """Let py-spy in, and start the child that dates its samples; that ends by itself."""
        metronome.let_read(ask["reader"])
        self._metronome = metronome.spawn(ask["board"], ask["tick_ns"], ask["reader"])
        boards = {int(rank): str(path) for rank, path in ask["ranks"].items()}
        ranks: dict[int, int] = {}
        if boards and isinstance(self.engine, RankedEngine):
            ranks = self.engine.start_metronomes(boards, ask["tick_ns"], ask["reader"])
        self.done(pid=self._metronome.pid, ranks=ranks)

    def ready(self) -> tuple[Engine, StampBoard]:
        if self.engine is None or self.board is None:
            raise RuntimeError("no engine loaded")
        return self.engine, self.board

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        if self.tracers is not None:
            self.tracers.close()
        if self._metronome is not None:
            self._metronome.kill()
            self._metronome.wait()

    def done(self, **facts: Any) -> None:
        self.channel.send({"is": "done", **facts})


def serve(read_fd: int, write_fd: int) -> None:
    """Answer requests until ``close`` or the end of the stream."""
    channel = Channel(read_fd, write_fd)
    worker = Worker(channel)
    channel.send(
        {
            "is": "hello",
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "python": sys.version.split()[0],
        }
    )
    actions = {
        "load": worker.load,
        "reshape": worker.reshape,
        "park": worker.park,
        "warmup": worker.warm_up,
        "round": worker.round,
        "metronome": worker.metronome,
    }
    try:
        while True:
            received = channel.receive()
            if received is None:
                continue
            ask = received[0]
            if ask["do"] == "close":
                worker.close()
                worker.done()
                return
            try:
                actions[ask["do"]](ask)
            except ChannelClosed:
                raise
            except BaseException as why:  # noqa: BLE001 - whatever an engine raises is its failure
                if not isinstance(why, LlmprofError):
                    traceback.print_exc()  # stderr is the worker's log, kept in the run
                channel.send({"is": "failed", "kind": failure_kind(why), "message": _text(why)})
                if isinstance(why, (KeyboardInterrupt, SystemExit)):
                    return
    except ChannelClosed:
        return  # the parent is gone; nothing is left to tell
