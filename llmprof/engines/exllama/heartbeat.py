"""Signs of life while a library is busy in one long call. Standard library only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmprof.engines.base import Progress

_PERIOD_S = 2.0


@contextmanager
def heartbeat(
    progress: Progress, phase: str, share: Callable[[], float | None] = lambda: None
) -> Iterator[None]:
    """Tell ``progress`` now and every other second until the block ends.

    The block must not call ``progress`` itself: it may not be safe for two threads.
    """
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_PERIOD_S):
            progress(phase, share())

    progress(phase, share())
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
