"""The parent's side of one worker: start it, ask it, and say clearly how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmprof.children.child import BOOT
from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.errors import EngineFailure
from llmprof.plaintext import one_line
from llmprof.worker.stamps import StampBoard

LOG_TAIL_BYTES = 64 * 1024
START_TIMEOUT_S = 60.0


class Cancelled(Exception):
    """The user asked to stop."""


_SIGNALS = {
    "SIGKILL": "; the kernel's out-of-memory killer does this",
    "SIGBUS": "; a file that it maps is cut off, or its disk is full or gone",
    "SIGILL": "; a library is built for another processor",
}
"""What ends a process so."""


@dataclass
class Reply:
    """The answer to one request; ``extra`` holds what came before it (operators, tracing)."""

    facts: dict[str, Any]
    extra: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)


class WorkerClient:
    """One worker process with one engine.

    Args:
        label: for messages.
        folder: where its log and its shared stamps live; the caller removes it.
        variables: environment variables on top of our own.
        under: a command that runs the worker (nsys profile …); it must end when the worker does.
    """

    def __init__(
        self,
        label: str,
        python: str,
        folder: Path,
        steps: int,
        under: Sequence[str] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.label = label
        self._log_path = folder / "worker.log"
        self._log_begin = 0
        self.stamps_path = folder / "stamps"
        self.board = StampBoard(self.stamps_path, steps, create=True)
        to_worker, from_parent = os.pipe(), os.pipe()
        child_read, parent_write = to_worker
        parent_read, child_write = from_parent
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*under, python, str(BOOT), str(child_read), str(child_write)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(child_read, child_write),
                # Signals to our terminal or group are the parent's to judge; and a compiler that
                # an engine started ends with the worker.
                start_new_session=True,
                env={
                    **os.environ,
                    **variables,
                    "PYTHONUNBUFFERED": "1",
                    "LLMPROF_PARENT": str(os.getpid()),
                },
            )
        os.close(child_read)
        os.close(child_write)
        self._channel = Channel(parent_read, parent_write)
        self.pid = self._process.pid
        self.tid = self.pid

    def renew(self, steps: int) -> None:
        """For the next run of a worker that stays: stamps of another length, a log of its own."""
        self.board.close()
        self.stamps_path.unlink()
        self.board = StampBoard(self.stamps_path, steps, create=True)
        self._log_begin = self._log_path.stat().st_size

    def wait_ready(self, cancelled: Callable[[], bool]) -> None:
        """Wait for the worker's greeting.

        Raises:
            EngineFailure: the interpreter does not start.
        """
        reply = self._await("start", START_TIMEOUT_S, cancelled, {}, want="hello")
        self.pid, self.tid = reply.facts["pid"], reply.facts["tid"]

    def ask(
        self,
        request: dict[str, Any],
        stall_timeout_s: float,
        cancelled: Callable[[], bool],
        on_progress: Callable[[str, float | None], None] | None = None,
        on_poll: Callable[[], None] | None = None,
        poll_s: float = 0.25,
    ) -> Reply:
        """Send a request and wait for its answer.

        Args:
            stall_timeout_s: no progress message and no new stamp for this long is a hang.
            on_poll: called about every ``poll_s`` while waiting.

        Raises:
            EngineFailure: the engine said so, died, or hangs.
            Cancelled: ``cancelled()`` turned true; the worker is still busy: kill it.
        """
        hooks = {"progress": on_progress, "poll": on_poll, "poll_s": poll_s}
        try:
            self._channel.send(request)
        except ChannelClosed:
            raise self._death(request["do"]) from None
        return self._await(request["do"], stall_timeout_s, cancelled, hooks)

    def _await(
        self,
        doing: str,
        stall_timeout_s: float,
        cancelled: Callable[[], bool],
        hooks: dict[str, Any],
        want: str = "done",
    ) -> Reply:
        extra: list[tuple[dict[str, Any], bytes]] = []
        poll, poll_s = hooks.get("poll"), float(hooks.get("poll_s", 0.25))
        alive, seen = time.monotonic(), -1
        while True:
            if cancelled():
                raise Cancelled
            try:
                received = self._channel.receive(poll_s)
            except ChannelClosed:
                raise self._death(doing) from None
            if received is None:
                if poll is not None:
                    poll()
                count = len(self.stamps())
                if count != seen:
                    seen, alive = count, time.monotonic()
                if time.monotonic() - alive > stall_timeout_s:
                    raise EngineFailure(
                        f"{self.label}: no sign of life for {stall_timeout_s:.0f} s during {doing}"
                        " (--timeout changes this)",
                        "hang",
                    )
                continue
            alive = time.monotonic()
            message, blob = received
            kind = message.get("is")
            if kind == want:
                return Reply(message, extra)
            if kind == "failed":
                raise EngineFailure(
                    f"{self.label}: {one_line(str(message['message']))}", str(message["kind"])
                )
            if kind == "progress":
                if hooks.get("progress"):
                    hooks["progress"](one_line(str(message["phase"]), 60), message["share"])
            else:
                extra.append((message, blob))

    def stamps(self) -> array[int]:
        return self.board.read()[3]

    def log_tail(self) -> str:
        """The last 64 KiB of the worker's stdout and stderr in this run; raw text, not for a
        terminal."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(self._log_begin, self._log_path.stat().st_size - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def close(self, timeout_s: float = 10.0) -> None:
        """End the worker in good order, or by force after ``timeout_s``."""
        if self._process.poll() is None:
            try:
                self._channel.send({"do": "close"})
                self._process.wait(timeout_s)
            except (ChannelClosed, subprocess.TimeoutExpired):
                pass  # kill() below ends it
        self.kill()

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of them have ended
        self._process.wait()
        self._channel.close()
        self.board.close()

    def _death(self, doing: str) -> EngineFailure:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return EngineFailure(f"{self.label}: closed its pipe during {doing}", "crash")
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}{_SIGNALS.get(name, '')}"
        else:
            how = f"exited with code {code}"
        last = [line for line in self.log_tail().splitlines() if line.strip()]
        said = f"; last output: {one_line(last[-1], 160)}" if last else ""
        return EngineFailure(f"{self.label}: the worker {how} during {doing}{said}", "crash")
