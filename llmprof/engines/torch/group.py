"""The other ranks of a tensor-parallel torch engine, as rank 0 sees them. Standard library only.

Each is a child of the worker (``rank_process``) in the worker's process group, so what ends the
worker ends them. Rank 0 tells them every step; they answer only what is asked for an answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmprof.children.child import BOOT
from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.engines.base import exit_words
from llmprof.engines.torch.step_board import StepBoard
from llmprof.errors import LlmprofError, MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line

READY_S = 120.0
"""To import torch and to look at the GPU."""
LOAD_S = 900.0
GRACE_S = 5.0
"""After the death of a rank: rank 0 waits in a collective that nobody ends. Gloo notices, NCCL's
kernel spins for ever, so then this process ends."""
DEAD_RANK_EXIT = 70
_KINDS: dict[str, type[LlmprofError]] = {
    "oom": OutOfMemory,
    "missing-package": MissingPackage,
    "input": UsageError,
    "model": ModelError,
}


class RankDied(LlmprofError):
    """A rank is gone: which, and how."""


class _Rank:
    """One child process and the channel to it."""

    def __init__(self, rank: int, world: int) -> None:
        child_read, parent_write = os.pipe()
        parent_read, child_write = os.pipe()
        self.rank = rank
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(BOOT),
                    str(child_read),
                    str(child_write),
                    "llmprof.engines.torch.rank_process",
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(child_read, child_write),
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LLMPROF_PARENT": str(os.getpid()),
                },
            )
        finally:
            os.close(child_read)
            os.close(child_write)
        self.channel = Channel(parent_read, parent_write)

    def death(self) -> str:
        try:
            code = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return exit_words(code)


class RankGroup:
    """Ranks 1 … world - 1.

    Raises:
        OSError: a process cannot be started.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.why_dead = ""
        self._closing = False
        self._folder = OwnFolder("llmprof-ranks-")
        self._ranks: list[_Rank] = []
        self._board = StepBoard(self.board_path, create=True)
        try:
            for rank in range(1, world):
                self._ranks.append(_Rank(rank, world))
        except OSError:
            self.close()
            raise
        for one in self._ranks:
            threading.Thread(target=self._watch, args=(one,), daemon=True).start()

    @property
    def rendezvous(self) -> str:
        """Where the ranks find each other: a file, so no port can be taken."""
        return f"file://{self._folder.path / 'rendezvous'}"

    @property
    def board_path(self) -> Path:
        """Of the ``StepBoard``."""
        return self._folder.path / "steps"

    @property
    def pids(self) -> dict[int, int]:
        """Rank → process."""
        return {one.rank: one.process.pid for one in self._ranks}

    def tell(self, request: dict[str, Any]) -> None:
        """Without an answer.

        Raises:
            RankDied: a rank is gone.
        """
        self.tell_each(dict.fromkeys(self.pids, request))

    def begin_step(self) -> None:
        """By one store into shared memory: for ranks on GPUs, which look at it all the time.

        Raises:
            RankDied: a rank is gone.
        """
        if self.why_dead:
            raise RankDied(self.why_dead)
        self._board.step()

    def tell_each(self, requests: dict[int, dict[str, Any]]) -> None:
        """Rank → its own request.

        Raises:
            RankDied: a rank is gone.
        """
        self._board.message()
        after = self._board.seen[1]
        for one in self._ranks:
            try:
                one.channel.send({**requests[one.rank], "after": after})
            except ChannelClosed:
                raise self._died(one) from None

    def answers(self, timeout_s: float) -> dict[int, dict[str, Any]]:
        """Rank → its answer to what was told.

        Raises:
            RankDied: a rank is gone or did not answer in time.
            LlmprofError: of the kind that the rank said, with its rank before the text.
        """
        deadline = time.monotonic() + timeout_s
        found = {}
        for one in self._ranks:
            try:
                received = one.channel.receive(max(0.0, deadline - time.monotonic()))
            except ChannelClosed:
                raise self._died(one) from None
            if received is None:
                raise RankDied(f"rank {one.rank} did not answer within {timeout_s:.0f} s")
            facts, _ = received
            if facts.get("is") == "failed":
                text = one_line(str(facts.get("message", "")).removeprefix("torch: "))
                kind = _KINDS.get(str(facts.get("kind")), RankDied)
                raise kind(f"torch: rank {one.rank}: {text}")
            found[one.rank] = facts
        return found

    def wait_for_death(self) -> bool:
        """Is a rank gone? A collective may fail a moment before that is seen."""
        deadline = time.monotonic() + 2.0
        while not self.why_dead and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(self.why_dead)

    def close(self) -> None:
        """End all of them: in good order where they listen, else by force. Twice is no error."""
        self._closing = True
        for one in self._ranks:
            try:
                one.channel.send({"do": "close"})
            except ChannelClosed:
                pass  # it has ended
        deadline = time.monotonic() + GRACE_S
        for one in self._ranks:
            try:
                one.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.channel.close()
        self._board.close()
        self._ranks = []
        self._folder.cleanup()

    def _died(self, one: _Rank) -> RankDied:
        return RankDied(self.why_dead or f"torch: rank {one.rank} {one.death()}")

    def _watch(self, one: _Rank) -> None:
        """A rank that ends early takes the others with it, and the worker says which it was."""
        one.process.wait()
        if self._closing or self.why_dead:
            return
        self.why_dead = (
            f"torch: rank {one.rank} (process {one.process.pid}) {one.death()};"
            " the other ranks were stopped"
        )
        for other in self._ranks:
            if other is not one and other.process.poll() is None:
                other.process.kill()
        time.sleep(GRACE_S)
        if not self._closing:
            print(self.why_dead, file=sys.stderr, flush=True)
            os._exit(DEAD_RANK_EXIT)
