"""Points on this machine: a process of llmprof, their documents, their run files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmprof.children.child import BOOT
from llmprof.children.protocol import Channel, ChannelClosed
from llmprof.errors import EXIT_INTERRUPTED, EXIT_USAGE
from llmprof.plaintext import one_line
from llmprof.sweep.loads import Load

POLL_S = 0.1
STOP_S = 30.0
"""A point that is told to end has this long to close its run file."""
LAST_BYTES = 65536


@dataclass(frozen=True)
class Ran:
    """What came of it. ``document`` is ``None`` where no engine could be reported on."""

    code: int
    document: dict[str, Any] | None
    said: str
    """Its last line on stderr."""
    seconds: float
    stopped: bool = False

    @property
    def reason(self) -> str:
        """Why it failed; empty: it did not."""
        if self.stopped:
            return "stopped"
        if self.document is None:
            return self.said or f"ended with code {self.code} and said nothing"
        failed = [e for e in self.document["engines"] if e["state"] != "finished"]
        messages = [
            (e["failure"] or {}).get("message", f"{e['label']}: {e['state']}") for e in failed
        ]
        return one_line("; ".join(messages), 500)


class PointProcess:
    """Runs points one after another in a process of llmprof, which those of one load share.

    To be used, and closed, by the thread that made it: the process ends with that thread.

    Args:
        shares: may points share loads? Else each has a process of its own.
        variables: what to change in the environment; ``None``: to be unset.
        folder: where traces may lie while they are read.
    """

    def __init__(
        self, shares: bool, variables: Mapping[str, str | None] | None, folder: Path
    ) -> None:
        self._shares = shares
        self._variables = variables or {}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._log: IO[bytes] | None = None
        self._used = 0
        self.loaded = ""
        """Key of the load that the process has."""

    def run(
        self, arguments: Sequence[str], load: Load, run_file: Path, stop: Callable[[], bool]
    ) -> Ran:
        """Run ``llmprof ARGUMENTS`` and wait.

        A point that fails on engines that earlier points have used is run again on fresh ones: it
        shall fail for its own reasons only.

        Args:
            run_file: where the run goes.
            stop: asked some ten times a second; true ends the point early.
        """
        if load.key != self.loaded:
            self.close()
        shared = self._used > 0
        ran = self._run(arguments, load, run_file, stop)
        if shared and ran.reason and not ran.stopped and ran.code != EXIT_USAGE:
            self.close()
            run_file.unlink(missing_ok=True)
            ran = self._run(arguments, load, run_file, stop)
        # Bad input has loaded nothing; after any other failure nobody knows what is left.
        if not self._shares or (ran.reason and ran.code != EXIT_USAGE):
            self.close()
        return ran

    def close(self) -> None:
        """End the process and its workers. Twice is no error."""
        if self._process is None:
            return
        if self._process.poll() is None and self._channel is not None:
            try:
                self._channel.send({"do": "close"})
                self._process.wait(STOP_S)
            except (ChannelClosed, subprocess.TimeoutExpired):
                pass  # _end() does it
        self._end()

    def _run(
        self, arguments: Sequence[str], load: Load, run_file: Path, stop: Callable[[], bool]
    ) -> Ran:
        begin = time.monotonic()
        if self._process is None:
            self._start()
        assert self._process is not None and self._channel is not None
        self.loaded, self._used = load.key, self._used + 1
        request = {
            "do": "run",
            "argv": ["--json", "-o", str(run_file), *arguments],
            "shares": self._shares,
            "most_batch": load.most_batch,
            "most_positions": load.most_positions,
        }
        try:
            self._channel.send(request)
            while (received := self._channel.receive(POLL_S)) is None:
                if stop():
                    self._end()
                    return Ran(EXIT_INTERRUPTED, None, "", time.monotonic() - begin, stopped=True)
        except ChannelClosed:
            code = self._process.wait()
            said = _last_line(self._last_words())
            self._end()
            return Ran(code, None, said or _death(code), time.monotonic() - begin)
        except BaseException:
            self._end()
            raise
        facts = received[0]
        said = _last_line(str(facts["err"]))
        document = _document(str(facts["out"]))
        return Ran(int(facts["code"]), document, said, time.monotonic() - begin)

    def _start(self) -> None:
        child_read, parent_write = os.pipe()
        parent_read, child_write = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(BOOT), str(child_read), str(child_write),
                 "llmprof.cli.run.series", str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(child_read, child_write),
                # Ctrl-C is the sweep's, which tells its points itself.
                start_new_session=True,
                env=_environment(self._variables),
            )  # fmt: skip
        finally:
            os.close(child_read)
            os.close(child_write)
        self._channel = Channel(parent_read, parent_write)
        self._used = 0

    def _last_words(self) -> str:
        assert self._log is not None
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LAST_BYTES))
        return self._log.read().decode(errors="replace")

    def _end(self) -> None:
        """Politely, then by force; its workers end with it."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self.loaded, self._used = "", 0


def _death(code: int) -> str:
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with code {code} and said nothing"


def _last_line(text: str) -> str:
    """Of what it printed: the last line of a run that was kept says where."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("llmprof: run file ")]
    return one_line(said[-1].removeprefix("llmprof: "), 300) if said else ""


def _environment(variables: Mapping[str, str | None]) -> dict[str, str]:
    found = {**os.environ, "LLMPROF_PARENT": str(os.getpid()), **variables}
    return {name: value for name, value in found.items() if value is not None}


def _document(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("engines") else None
