"""Engines whose host is busy with one known thing: sleep, launch, sync, gil."""

from __future__ import annotations

import os
import select
import signal
import threading
import zlib
from pathlib import Path

from llmprof.engines.options import Options
from llmprof.records import EngineInfo


class Stream:
    """Blocks as a device's stream does."""

    def synchronize(self) -> None:
        select.select([], [], [], 0.004)


class HostEngine:
    """``what=sleep|launch|sync|gil|compute``; ``undumpable=1`` forbids others to read it,
    ``crash_traced=1`` dies in the middle of the traced round."""

    def load(self, request, progress) -> None:
        options = Options("hosts", request.options)
        self.step = getattr(self, f"_{options.text('what', 'sleep')}")
        if options.flag("undumpable", False):
            import ctypes

            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
        self.crash = options.flag("crash_traced", False)
        self.count = 0
        options.done()
        self.stream = Stream()
        if self.step == self._launch:
            import torch

            torch.set_num_threads(1)
            self.x = torch.ones(4)
        if self.step == self._gil:
            threading.Thread(target=self._rival, name="rival", daemon=True).start()

    def _sleep(self) -> None:
        import time

        time.sleep(0.004)

    def _launch(self) -> None:
        import torch

        for _ in range(600):
            torch.add(self.x, self.x)

    def _sync(self) -> None:
        self.stream.synchronize()

    def _gil(self) -> None:
        # Lets go of the GIL for a moment, as every call into a device does, and has to win it back.
        for _ in range(2):
            zlib.compress(bytes(100_000))

    def _compute(self) -> None:
        total = 0
        for i in range(40_000):
            total += i * i

    def _rival(self) -> None:
        n = 0
        while True:
            n = (n * 7 + 1) % 1_000_003

    def reset(self) -> None: ...

    def prefill(self, prompt_ids):
        self.last = [1 for _ in prompt_ids]
        return self.last

    def decode_step(self):
        self.step()
        self.count += 1
        if self.crash and self.count % 20 == 0 and self._sampled():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.last

    def _sampled(self) -> bool:
        """Only a worker that is being sampled has a child."""
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
        return bool(children.read_text().split())

    def close(self) -> None: ...

    def describe(self) -> EngineInfo:
        return EngineInfo(device="cpu", drive="forward")
