"""What runs on a node of a Ray cluster: the installed llmprof there, in processes of their own.

Ray sends the names of these functions, not their code; arguments are plain values.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llmprof
from llmprof import __version__
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line
from llmprof.sweep.executors.point import PointProcess
from llmprof.sweep.loads import Load
from llmprof.sweep.rows import rows_of

CHUNK_BYTES = 16 << 20
"""Of a run file, an object of Ray's store each: a node needs no room for a whole one there."""


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Of the sources of this llmprof: equal versions of a checkout need not be equal code."""
    root = Path(llmprof.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def probe(engines: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What this node has.

    Args:
        engines: name and interpreter; an empty interpreter is the node's own.
    """
    from llmprof.doctor.probe import look

    own = [name for name, python in engines if not python]
    found = look(own)["engines"]
    lacking = {}
    for name, python in engines:
        if python:
            if shutil.which(python) is None:
                lacking[name] = f"no interpreter at {one_line(python, 100)}"
            continue
        facts = found[name]
        absent = [module for module, version in facts["packages"].items() if version is None]
        if facts["target"] is None:
            lacking[name] = "llmprof there knows no such engine"
        elif absent and absent[0] == next(iter(facts["packages"])):
            lacking[name] = f"package {absent[0]} is not installed"
    return {
        "version": __version__,
        "digest": code_digest(),
        "host": one_line(platform.node(), 60),
        "lacking": lacking,
    }


class NodeWorker:
    """An actor: one point at a time on the GPU, or the CPUs, that Ray gave it."""

    def __init__(self, shares: bool) -> None:
        self._folder = OwnFolder("llmprof-sweep-")
        self._nice = _as_nice_as_the_node()
        # Ray runs an actor's methods on one thread, with which the process would end.
        self._process = PointProcess(shares, _undone(), self._folder.path)

    def run(
        self, point_id: str, arguments: list[str], load: tuple[str, int, int], runs_at: str
    ) -> dict[str, Any]:
        """Run a point; its run file waits here for ``chunk``, or goes to ``runs_at``.

        Args:
            load: the fields of its ``Load``.
        """
        self.forget()
        file = self._folder.path / "run.sqlite"
        ran = self._process.run(arguments, Load(*load), file, lambda: False)
        rows = [] if ran.document is None else rows_of(ran.document)
        size, kept = 0, ""
        if rows and file.is_file():
            if runs_at:
                target = Path(runs_at).resolve() / f"{point_id}.sqlite"
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.{os.getpid()}.part")
                shutil.move(file, part)
                part.replace(target)
                kept = str(target)
            else:
                size = file.stat().st_size
        return {
            "reason": ran.reason,
            "rows": rows,
            "seconds": round(ran.seconds, 3),
            "size": size,
            "run_file": kept,
            "nice": self._nice,
        }

    def chunk(self, offset: int) -> bytes:
        """The next part of the run file."""
        with (self._folder.path / "run.sqlite").open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    def forget(self) -> None:
        """Remove the run file."""
        for path in self._folder.path.glob("run.sqlite*"):
            path.unlink()


def _as_nice_as_the_node() -> int:
    """Ray gives its workers nice 15, so that a point would wait for whatever else the node does.

    Returns:
        How much nicer than the node's own process this one stays: 0 where that could be undone,
        which takes root or CAP_SYS_NICE.
    """
    node = os.getpriority(os.PRIO_PROCESS, os.getppid())
    own = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, node)
    except PermissionError:
        return own - node
    return 0


def _undone() -> dict[str, str | None]:
    """What Ray has put into this process's environment and a measurement must not have: it limits
    OpenMP to the CPUs that a task asks for. What the node itself has set stays."""
    try:
        started = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    had = {entry.partition(b"=")[0].decode(errors="replace") for entry in started}
    return {} if "OMP_NUM_THREADS" in had else {"OMP_NUM_THREADS": None}
