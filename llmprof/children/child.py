"""A small child process of the parent's own, for calls that may crash. Standard library only.

It runs this interpreter on ``boot.py`` and speaks the worker's framed protocol. A segfault
in a driver library then ends this child with one line instead of the session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.plaintext import one_line

BOOT = Path(__file__).resolve().with_name("boot.py")
LAST_WORDS_BYTES = 4096


class ChildFailed(Exception):
    """One line: what the child refused, or how it died."""


class TracerChild:
    """One child process that answers one request at a time; not for use by several threads.

    The child dies with the *thread* that made it (PR_SET_PDEATHSIG), so that thread must live as
    long as the child is wanted.

    Args:
        label: for messages: ``the PM sampler``.
        module: its ``serve(read_fd, write_fd)`` is what the child runs.
        environment: what to change in the child's environment.
    """

    def __init__(self, label: str, module: str, environment: Mapping[str, str]) -> None:
        self._label = label
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        child_read, parent_write = os.pipe()
        parent_read, child_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(BOOT), str(child_read), str(child_write), module],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(child_read, child_write),
                env={**os.environ, "LLMPROF_PARENT": str(os.getpid()), **environment},
            )
        except OSError:
            for fd in (parent_read, parent_write):
                os.close(fd)
            self._log.close()
            raise
        finally:
            os.close(child_read)
            os.close(child_write)
        self._channel = Channel(parent_read, parent_write)
        self._ended = False
        self.pid = self._process.pid

    def ask(self, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """Send a request, wait for its answer: the facts and the raw bytes that belong to them.

        Raises:
            ChildFailed: the child said no, died, or did not answer in time (it is killed then).
        """
        if self._ended:
            raise ChildFailed(f"{self._label} process has ended")
        deadline = time.monotonic() + timeout_s
        try:
            self._channel.send(request)
            received = self._channel.receive(max(0.0, deadline - time.monotonic()))
        except ChannelClosed:
            raise ChildFailed(self._death()) from None
        if received is None:
            self.kill()
            raise ChildFailed(f"{self._label} process did not answer within {timeout_s:.0f} s")
        facts, blob = received
        if facts.get("is") != "done":
            raise ChildFailed(one_line(str(facts.get("message", "the child broke the protocol"))))
        return facts, blob

    def close(self, timeout_s: float = 10.0) -> None:
        """End the child in good order, or by force after ``timeout_s``. Closing twice is fine."""
        if not self._ended and self._process.poll() is None:
            try:
                self._channel.send({"do": "close"})
                self._process.wait(timeout_s)
            except (ChannelClosed, subprocess.TimeoutExpired):
                pass  # kill() below ends it
        self.kill()

    def kill(self) -> None:
        if self._ended:  # its file descriptors may be somebody else's by now
            return
        self._ended = True
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._channel.close()
        self._log.close()

    def _death(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return f"{self._label} process closed its pipe"
        if code < 0:
            return f"{self._label} process was killed by {signal.Signals(-code).name}"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        lines = self._log.read().decode(errors="replace").split("\n")
        said = next((one_line(line, 160) for line in reversed(lines) if line.strip()), "")
        return f"{self._label} process exited with code {code}" + (f": {said}" if said else "")
