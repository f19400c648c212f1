"""The processes of a tensor-parallel exllamav3, one a GPU, as ranks that are traced.

The package starts them itself with multiprocessing (``create_tp_context`` of model_tp.py); the
worker is the rank of GPU 0. Each is started here through ``v3_rank_process``, which records its
kernels and answers on a pipe of its own. The process that adds up in host memory (device -1) has
no GPU: it only gets the extension that the worker found.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from llmprof.children import boot
from llmprof.engines.base import exit_words, rank_spool
from llmprof.errors import EngineFailure
from llmprof.plaintext import one_line
from llmprof.records.processes import RankProcess

ANSWER_S = 60.0
GRACE_S = 5.0
"""After the death of a rank the worker's own kernels wait for it; then the worker ends as well."""
DEAD_RANK_EXIT = 70


class RankProcesses:
    """Those behind rank 0; the rank is the GPU's number.

    Args:
        spool: of the worker's kernels; ``None``: nothing is traced.
        trace: level of the traced pass.
        extension: name and file of the CUDA extension that the worker has loaded.
    """

    def __init__(self, spool: str | None, trace: str | None, extension: tuple[str, str]) -> None:
        self._spool, self._trace, self._extension = spool, trace, extension
        self._processes: dict[int, Any] = {}
        self._pipes: dict[int, Connection] = {}
        self._closing = False

    @contextmanager
    def started_by(self, module: Any) -> Iterator[None]:
        """While the package loads: ``module.Process`` starts ranks that are traced."""
        real, theirs = module.Process, list[Connection]()

        def started(target: Callable[..., None], args: tuple[Any, ...]) -> Any:
            device, end, spool = int(args[1]), None, None
            if device >= 0:
                self._pipes[device], end = Pipe()
                theirs.append(end)
                spool = None if self._spool is None else rank_spool(self._spool, device)
            words = ("llmprof.engines.exllama.v3_rank_process", "work")
            more = (_Pickled((target, args)), self._extension, end, spool, self._trace, device)
            made = real(target=_entry(), args=(*words, *more))
            if device >= 0:
                self._processes[device] = made
            return made

        module.Process = started
        try:
            yield
        finally:
            module.Process = real
            for end in theirs:
                end.close()  # so that the death of a rank is seen
        if self._processes:
            threading.Thread(target=self._watch, daemon=True).start()

    @property
    def all(self) -> Sequence[RankProcess]:
        behind = (RankProcess(n, p.pid, f"cuda:{n}") for n, p in sorted(self._processes.items()))
        return [RankProcess(0, os.getpid(), "cuda:0"), *behind]

    def ask(self, requests: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Rank → its answer to its request.

        Raises:
            EngineFailure: a rank is gone, does not answer or failed.
        """
        for rank, request in requests.items():
            with self._named(rank):
                self._pipes[rank].send(request)
        deadline = time.monotonic() + ANSWER_S
        found: dict[int, dict[str, Any]] = {}
        for rank in requests:
            with self._named(rank):
                if not self._pipes[rank].poll(max(0.0, deadline - time.monotonic())):
                    raise EngineFailure(f"exllamav3: rank {rank} did not answer", "hang")
                found[rank] = self._pipes[rank].recv()
            if "failed" in found[rank]:
                raise EngineFailure(f"exllamav3: rank {rank}: {one_line(found[rank]['failed'])}")
        return found

    def ask_all(self, request: dict[str, Any]) -> dict[int, dict[str, Any]]:
        return self.ask(dict.fromkeys(self._pipes, request))

    @contextmanager
    def failures(self) -> Iterator[None]:
        """What fails because a rank is gone says which one."""
        try:
            yield
        except (OSError, EOFError, RuntimeError) as why:  # TimeoutError is an OSError
            dead = self._death(2.0)
            if not dead:
                raise
            raise EngineFailure(dead, "crash") from why

    def closing(self) -> None:
        """From here on ranks may end."""
        self._closing = True
        for pipe in self._pipes.values():
            pipe.close()

    @contextmanager
    def _named(self, rank: int) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError) as why:
            text = self._death(2.0) or f"exllamav3: rank {rank} closed its pipe"
            raise EngineFailure(text, "crash") from why

    def _death(self, patience_s: float) -> str:
        """The first rank that ended, and how; empty: none did."""
        ended = wait([p.sentinel for p in self._processes.values()], patience_s)
        for rank, process in sorted(self._processes.items()):
            if process.sentinel in ended:
                process.join(1.0)
                how = exit_words(process.exitcode)
                return (
                    f"exllamav3: rank {rank} (process {process.pid}) {how};"
                    " the other ranks were stopped"
                )
        return ""

    def _watch(self) -> None:
        """A kernel that waits for a dead rank may spin for minutes: the worker ends before."""
        wait([process.sentinel for process in self._processes.values()])
        if self._closing:
            return
        time.sleep(GRACE_S)
        if not self._closing:
            print(self._death(0.0), file=sys.stderr, flush=True)
            os._exit(DEAD_RANK_EXIT)


class _Pickled:
    """Arrives as bytes: the rank unpickles them once its tracer runs, for that imports the package.

    They are made while the process is started, when connections can be handed over.
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(ForkingPickler.dumps(self._value)),)


def _entry() -> Callable[..., None]:
    """``boot.call`` under the name that the new process finds it by."""
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) == boot.__file__:
        found: Callable[..., None] = vars(main)["call"]
        return found
    return boot.call
