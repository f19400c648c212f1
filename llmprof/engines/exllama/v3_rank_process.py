"""A process of a tensor-parallel exllamav3 behind rank 0: the package's own worker, traced.

The tracer starts before the package is imported, for kinds of records must be on before CUDA. A
thread answers what rank 0 asks meanwhile.
"""

from __future__ import annotations

import pickle
import sys
import threading
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llmprof.engines.exllama.extension_build import load_extension
from llmprof.engines.exllama.v3 import pydantic_stand_in
from llmprof.engines.rank_tracing import RankTracing


class _Answers:
    """To rank 0, from a thread of its own."""

    def __init__(self, pipe: Connection, device: int) -> None:
        self.tracing = RankTracing()
        self._pipe, self._device = pipe, device

    def serve(self) -> None:
        actions = {
            "begin_trace": self._begin,
            "end_trace": self._end,
            "metronome": self.tracing.metronome,
        }
        try:
            while True:
                ask = self._pipe.recv()
                try:
                    answer = actions[ask["do"]](ask)
                except Exception as why:  # noqa: BLE001 - whatever it is, rank 0 has to hear of it
                    answer = {"failed": f"{type(why).__name__}: {why}"}
                self._pipe.send(answer)
        except (EOFError, OSError):
            pass  # rank 0 has closed it
        finally:
            self.tracing.stop_metronome()

    def _begin(self, ask: dict[str, Any]) -> dict[str, Any]:
        self._wait()
        return self.tracing.begin(ask["serial"])

    def _end(self, ask: dict[str, Any]) -> dict[str, Any]:
        self._wait()
        return self.tracing.end(ask["serial"])

    def _wait(self) -> None:
        """Until the GPU has nothing to do."""
        sys.modules["torch"].cuda.synchronize(self._device)


def work(
    payload: bytes,
    extension: tuple[str, str],
    pipe: Connection | None,
    spool: str | None,
    trace: str | None,
    device: int,
) -> None:
    """Be that process until rank 0 tells the package to end.

    Args:
        payload: pickled (the package's function, its arguments).
        extension: name and file of the CUDA extension; the package would look for one to build.
        pipe: what rank 0 asks on; ``None``: a process without a GPU.
        spool: where kernels go; ``None``: they are not recorded.
    """
    if pipe is None:
        _package(payload, extension)
        return
    answers = _Answers(pipe, device)
    if spool is not None:
        answers.tracing.start(spool, trace or "kernels")
    threading.Thread(target=answers.serve, daemon=True).start()
    _package(payload, extension)
    answers.tracing.close()


def _package(payload: bytes, extension: tuple[str, str]) -> None:
    name, file = extension
    if file:
        with suppress(ImportError):  # then the extension says what it lacks
            import_module("torch")  # whose libraries it links to
        sys.modules[name] = load_extension(Path(file), name)
    with pydantic_stand_in():
        target, arguments = pickle.loads(payload)
    target(*arguments)
