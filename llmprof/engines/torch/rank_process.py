"""A rank of a tensor-parallel torch engine that is not rank 0: started by ``group``, told by it.

Each request is done in order. A step is answered by nothing: the ranks meet in its collectives. On
a GPU it comes over the ``StepBoard``, else as a request.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.engines.base import LoadRequest
from llmprof.engines.rank_tracing import RankTracing
from llmprof.engines.torch.step_board import StepBoard
from llmprof.errors import LlmprofError, MissingPackage, ModelError, OutOfMemory, UsageError

if TYPE_CHECKING:
    from llmprof.engines.torch.engine import TorchEngine

SPIN_S = 0.25
"""On a GPU a rank looks at the board over and over for so long before it sleeps: waking up takes
tens of µs, which would be lateness that llmprof itself made."""
SLEEP_S = 0.001
"""Then it looks so often; a request in the pipe wakes it at once."""


def _kind(why: BaseException) -> str:
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (OutOfMemory, "oom"),
        (MissingPackage, "missing-package"),
        (ModelError, "model"),
        (UsageError, "input"),
    )
    return next((name for kind, name in kinds if isinstance(why, kind)), "exception")


class _Rank:
    """State between requests."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.engine: TorchEngine | None = None
        self.tracing = RankTracing()
        self.board: StepBoard | None = None
        self.messages = self.steps = 0
        """Done so far."""

    def load(self, ask: dict[str, Any]) -> None:
        facts: dict[str, Any] = {}
        if ask["spool"] is not None:
            why = self.tracing.start(ask["spool"], ask["trace"])
            if why:
                facts["untraced"] = why
        from llmprof.engines.torch.engine import TorchEngine

        request = LoadRequest(
            model=ask["model"],
            options=ask["options"],
            batch=ask["batch"],
            max_positions=ask["max_positions"],
            seed=ask["seed"],
        )
        engine = TorchEngine()
        engine.load_rank(
            request,
            int(os.environ["RANK"]),
            ask["rendezvous"],
            ready=lambda device: self.done(device=device, **facts),
        )
        self.engine = engine
        if ask["board"] is not None:
            self.board = StepBoard(Path(ask["board"]), create=False)
        self.done()

    def prefill(self, ask: dict[str, Any]) -> None:
        self._ready().launch_prefill(ask["ids"])

    def step(self, _ask: dict[str, Any]) -> None:
        self._ready().launch_step()

    def reset(self, _ask: dict[str, Any]) -> None:
        self._ready().reset()

    def begin_trace(self, ask: dict[str, Any]) -> None:
        self._ready().wait()
        self.done(**self.tracing.begin(ask["serial"]))

    def end_trace(self, ask: dict[str, Any]) -> None:
        self._ready().wait()
        self.done(**self.tracing.end(ask["serial"]))

    def metronome(self, ask: dict[str, Any]) -> None:
        self.done(**self.tracing.metronome(ask))

    def close(self) -> None:
        self.tracing.stop_metronome()
        if self.engine is not None:
            self.engine.close()
        self.tracing.close()

    def done(self, **facts: Any) -> None:
        self.channel.send({"is": "done", **facts})

    def next(self) -> dict[str, Any]:
        """The next request, after all steps that rank 0 began before it."""
        spin_until = time.monotonic() + SPIN_S
        while True:
            ask = None
            messages, steps = (self.messages + 1, 0) if self.board is None else self.board.seen
            if messages > self.messages:
                ask = self._received(None)
            elif steps > self.steps:
                self._catch_up(self.steps + 1)
                spin_until = time.monotonic() + SPIN_S
            elif time.monotonic() > spin_until:
                ask = self._received(SLEEP_S)
            if ask is not None:
                return ask

    def _received(self, timeout_s: float | None) -> dict[str, Any] | None:
        """What is in the pipe; ``None`` where nothing came in time."""
        received = self.channel.receive(timeout_s)
        if received is None:
            return None
        ask = received[0]
        self.messages += 1
        if self.board is not None:
            self._catch_up(ask["after"])
        return ask

    def _catch_up(self, steps: int) -> None:
        while self.steps < steps:
            self.steps += 1
            self._ready().launch_step()

    def _ready(self) -> TorchEngine:
        if self.engine is None:
            raise RuntimeError("no model loaded")
        return self.engine


def serve(read_fd: int, write_fd: int) -> None:
    """Do what rank 0 asks until ``close``, its end, or the first failure.

    The process then leaves without Python's and torch's teardown: NCCL's has been seen to hang
    while a CUDA graph with collectives lives, and everything of value is with rank 0 already.
    """
    channel = Channel(read_fd, write_fd)
    rank = _Rank(channel)
    actions = {
        "load": rank.load,
        "prefill": rank.prefill,
        "step": rank.step,
        "reset": rank.reset,
        "begin_trace": rank.begin_trace,
        "end_trace": rank.end_trace,
        "metronome": rank.metronome,
    }
    code = 0
    try:
        while True:
            ask = rank.next()
            if ask["do"] == "close":
                rank.close()
                break
            actions[ask["do"]](ask)
    except ChannelClosed:
        pass  # rank 0 is gone; nothing is left to tell
    except BaseException as why:  # noqa: BLE001 - whatever it is, rank 0 has to hear of it
        code = 1
        if not isinstance(why, LlmprofError):
            traceback.print_exc()  # stderr is the worker's log
        text = str(why) if isinstance(why, LlmprofError) else f"{type(why).__name__}: {why}"
        try:
            channel.send({"is": "failed", "kind": _kind(why), "message": text})
        except ChannelClosed:
            pass
    os._exit(code)
