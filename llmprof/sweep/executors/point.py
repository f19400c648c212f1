"""One point, on this machine: a process of llmprof, its document, its run file."""

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
from typing import Any

from llmprof.children.child import BOOT
from llmprof.plaintext import one_line

POLL_S = 0.02
STOP_S = 30.0
"""A point that is told to end has this long to close its run file."""


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


def run_point(
    arguments: Sequence[str],
    run_file: Path,
    stop: Callable[[], bool],
    variables: Mapping[str, str | None] | None = None,
) -> Ran:
    """Run ``llmprof ARGUMENTS`` and wait; call it from a thread that lives as long as that.

    Args:
        run_file: where the run goes.
        stop: asked some fifty times a second; true ends the point early.
        variables: what to change in its environment; ``None``: to be unset.
    """
    command = [
        sys.executable, str(BOOT), "0", "1", "llmprof.sweep.executors.child",
        "--json", "-o", str(run_file), *arguments,
    ]  # fmt: skip
    begin = time.monotonic()
    stopped = False
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            # Ctrl-C is the sweep's, which tells its points itself.
            start_new_session=True,
            env=_environment(variables or {}),
        )
        try:
            while process.poll() is None:
                if stop():
                    stopped = True
                    _end(process)
                    break
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    pass  # it still runs
        except BaseException:
            _end(process)
            raise
        out.seek(0)
        err.seek(0)
        document = _document(out.read())
        lines = [line for line in err.read().decode(errors="replace").splitlines() if line.strip()]
    # The last line of a run that was kept says where.
    said = [line for line in lines if not line.startswith("llmprof: run file ")]
    last = one_line(said[-1].removeprefix("llmprof: "), 300) if said else ""
    return Ran(process.returncode, document, last, time.monotonic() - begin, stopped)


def _environment(variables: Mapping[str, str | None]) -> dict[str, str]:
    found = {**os.environ, "LLMPROF_PARENT": str(os.getpid()), **variables}
    return {name: value for name, value in found.items() if value is not None}


def _document(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("engines") else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Politely, then by force; its workers end with it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
