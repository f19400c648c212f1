"""The torch engine under what llmprof's tracing is measured against: CUPTI's floor, torch.profiler.

``under=floor`` and ``under=floor-full``: the kinds of ``--trace kernels`` and ``full``, with
callbacks that throw every buffer away. ``under=torch-cuda``, ``under=torch-both``: torch.profiler
around each round's decode steps.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

from llmprof.engines.torch.engine import TorchEngine
from llmprof.tracers.cupti.library import COMPLETED, REQUESTED, load
from llmprof.tracers.cupti.tracer import KINDS


class Floor:
    """CUPTI activity with nothing done to it."""

    def __init__(self, level: str, size: int = 4 << 20) -> None:
        self.free: list[int] = []
        self.memory: list[ctypes.Array] = []
        self.size = size
        self.callbacks = REQUESTED(self.requested), COMPLETED(self.completed)
        self.cupti = load()
        lib = self.cupti.lib
        self.cupti.check("register", lib.cuptiActivityRegisterCallbacks(*self.callbacks))
        for kind in KINDS[level]:
            self.cupti.check("enable", lib.cuptiActivityEnable(kind))

    def requested(self, buffer, size, most) -> None:
        if not self.free:
            self.memory.append(ctypes.create_string_buffer(self.size + 8))
            self.free.append((ctypes.addressof(self.memory[-1]) + 7) & ~7)
        buffer[0], size[0], most[0] = self.free.pop(), self.size, 0

    def completed(self, context, stream, buffer, size, valid) -> None:
        self.free.append(buffer)


class ProfiledTorch(TorchEngine):
    def load(self, request, progress):
        options = dict(request.options)
        self.under = options.pop("under")
        self.profiler = None
        if self.under.startswith("floor"):
            # Before torch makes the CUDA context.
            self.floor = Floor("full" if self.under.endswith("full") else "kernels")
        super().load(replace(request, options=options), progress)

    def reset(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None
        super().reset()

    def prefill(self, prompt_ids):
        first = super().prefill(prompt_ids)
        if self.under.startswith("torch"):
            from torch.profiler import ProfilerActivity, profile

            kinds = [ProfilerActivity.CUDA]
            if self.under.endswith("both"):
                kinds.append(ProfilerActivity.CPU)
            self.profiler = profile(activities=kinds)
            self.profiler.start()
        return first
