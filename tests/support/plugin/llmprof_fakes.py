"""Engines whose behaviour is known, registered by entry point like any third party's.

Standard library only, so they run under any interpreter.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from llmprof.engines.base import LoadRequest
from llmprof.engines.options import Options
from llmprof.errors import LoadAgain, OutOfMemory
from llmprof.records import EngineInfo


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class FakeEngine:
    """Busy-waits ``step_us`` a step; every misfortune is an option: ``crash_at=N`` and so on."""

    def load(self, request: LoadRequest, progress) -> None:
        options = Options("fake", request.options)
        self.step_s = options.integer("step_us", 200) / 1e6
        # A sleep is as long on a busy machine, give or take a turn of the others; spinning is not.
        self.sleep_s = options.integer("sleep_us", 0) / 1e6
        self.prefill_s = options.integer("prefill_us", 500) / 1e6
        self.at = {
            what: options.integer(f"{what}_at", None, minimum=-1)
            for what in ("crash", "raise", "hang", "exit", "oom", "thread_hang", "hog")
        }
        self.weights = options.text("weights", "")
        self.offset = options.integer("offset", 0)
        if options.flag("oom_unless_alone", False) and self._loaded_processes() > 1:
            raise OutOfMemory("fake: needs 9000 MiB, 1 MiB free")
        say = options.text("say", "")
        self.fixed = options.flag("fixed", False)
        self.once = options.flag("dies_reshaped", False)
        self.reshaped = False
        options.done()
        if say:
            print(say.encode().decode("unicode_escape"), file=sys.stderr)
        if self.at["oom"] == 0:
            raise OutOfMemory("fake: needs 9000 MiB, 1 MiB free")
        for i in range(5):
            progress("loading weights", i / 5)
        self.count = 0
        self.total = 0

    def _loaded_processes(self) -> int:
        """Processes that hold this engine now, this one included."""
        folder = Path(os.environ["LLMPROF_FAKE_LOCKS"])
        (folder / str(os.getpid())).touch()
        return sum(Path(f"/proc/{entry.name}").exists() for entry in folder.iterdir())

    def reset(self) -> None:
        self.count = 0

    def prefill(self, prompt_ids):
        spin(self.prefill_s)
        self.last = [row[-1] for row in prompt_ids]
        return self._next()

    def _next(self):
        self.last = [(x * 7 + 3 + self.offset) % 997 for x in self.last]
        return list(self.last)

    def decode_step(self):
        self.count += 1
        self.total += 1
        if self.once and self.reshaped and self.count == 5:
            os._exit(7)
        if self.total == self.at["crash"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.total == self.at["exit"]:
            print("fake: giving up", file=sys.stderr, flush=True)
            os._exit(7)
        if self.total == self.at["raise"]:
            raise ValueError("a bug in \x1b[31mthe engine")
        if self.total == self.at["hog"]:
            bytearray(1 << 46)  # 64 TiB: the allocator itself says no
        if self.total == self.at["oom"]:
            raise OutOfMemory("fake: needs 9000 MiB, 1 MiB free")
        if self.total == self.at["hang"]:
            time.sleep(3600)
        if self.total == self.at["thread_hang"]:
            threading.Thread(target=time.sleep, args=(3600,)).start()
        if self.sleep_s:
            time.sleep(self.sleep_s)
        else:
            spin(self.step_s)
        return self._next()

    def reshape(self, batch: int, max_positions: int) -> None:
        if self.fixed:
            raise LoadAgain("fake:fixed=1 keeps its shape")
        self.reshaped, self.count = max_positions > 16, 0  # parked it has 16

    def close(self) -> None: ...

    def describe(self) -> EngineInfo:
        return EngineInfo(
            versions={"fake": "1.0"},
            model="fake",
            model_format="none",
            vocab_size=997,
            weight_bytes_per_step=1_000_000,
            kv_bytes_per_token=1000,
            weights_id=self.weights or None,
            notes=[f"sees {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"],
        )


class FreeRunning(FakeEngine):
    """Returns from a step before its token exists; the work is done in ``finish_round``."""

    def prefill(self, prompt_ids):
        self.pending = 0
        return super().prefill(prompt_ids)

    def decode_step(self):
        self.pending += 1

    def finish_round(self):
        spin(self.step_s * self.pending)
        return [self._next() for _ in range(self.pending)]

    def describe(self) -> EngineInfo:
        info = super().describe()
        info.synchronous = False
        return info
