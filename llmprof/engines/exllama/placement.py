"""On which GPUs an ExLlama engine computes, and how it is split over them. Standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmprof.engines.host_memory import MIB
from llmprof.engines.options import Options
from llmprof.errors import OutOfMemory, UsageError
from llmprof.models.presets import LlamaConfig

_GB = 1 << 30
"""The packages call it GB."""


@dataclass(frozen=True)
class Placement:
    """GPU 0 alone, tensor parallel over the first ``tp`` GPUs, or layer by layer over several."""

    engine: str
    tp: int = 1
    gpu_split: tuple[float, ...] = ()
    """GB that each GPU may take, from GPU 0 on; 0: that GPU is left out."""

    @property
    def devices(self) -> tuple[int, ...]:
        if self.gpu_split:
            return tuple(n for n, gb in enumerate(self.gpu_split) if gb)
        return tuple(range(self.tp))

    @property
    def words(self) -> str:
        """``cuda:0``, ``cuda:0,1``."""
        return f"cuda:{','.join(map(str, self.devices))}"

    @property
    def option(self) -> str:
        """As the user wrote it."""
        if self.gpu_split:
            return f"{self.engine}:gpu_split={'/'.join(f'{gb:g}' for gb in self.gpu_split)}"
        return f"{self.engine}:tp={self.tp}"

    def check_shape(self, config: LlamaConfig) -> None:
        """Raise ``UsageError`` where a GPU would get no head."""
        heads = config.num_key_value_heads
        if self.tp > heads:
            raise UsageError(
                f"{self.option}: this model has {heads} KV heads, so at most {heads} GPUs can share"
                " them"
            )

    def check_gpus(self, torch: Any) -> None:
        """Raise ``UsageError`` where there are fewer GPUs."""
        there = int(torch.cuda.device_count())
        if self.devices[-1] >= there:
            raise UsageError(
                f"{self.option} takes GPU {' and '.join(map(str, self.devices))}: this machine"
                f" shows {there} CUDA GPU{'s' if there != 1 else ''}"
            )

    def check_room(self, torch: Any, what: str, need: int) -> None:
        """Raise ``OutOfMemory`` where ``need`` bytes are more than what is free on them.

        With tensor parallelism every GPU takes an equal share. ``what`` ends in its verb.
        """
        free = {n: int(torch.cuda.mem_get_info(n)[0]) for n in self.devices}
        where, most, each = self.words, sum(free.values()), ""
        if self.tp > 1:
            least = min(free, key=lambda n: free[n])
            where, most, need = f"cuda:{least}", free[least], -(-need // self.tp)
            each = f" on each of {self.tp} GPUs"
        if need > most:
            raise OutOfMemory(
                f"{self.engine}: {what} {need // MIB} MiB{each}, {most // MIB} MiB are free on"
                f" {where}; use a smaller model, batch or context"
            )

    def free_words(self, torch: Any) -> str:
        """``123 MiB are free on cuda:0``, of each GPU."""
        return ", ".join(
            f"{int(torch.cuda.mem_get_info(n)[0]) // MIB} MiB are free on cuda:{n}"
            for n in self.devices
        )

    def equal_gb(self, torch: Any) -> list[float]:
        """What each GPU may take so that all shares are alike: the least that is free on any."""
        least = min(int(torch.cuda.mem_get_info(n)[0]) for n in self.devices)
        return [least / _GB] * self.tp


def read_placement(given: Options, engine: str) -> Placement:
    """``tp=N`` or ``gpu_split=GB/GB/…``.

    Raises:
        UsageError: both, or what is no number.
    """
    tp = given.integer("tp", 1, 1) or 1
    text = given.text("gpu_split", "")
    if not text:
        return Placement(engine, tp)
    if tp > 1:
        raise UsageError(
            f"{engine}: tp={tp} splits every layer and gpu_split={text} puts whole layers on GPUs:"
            " give one of them"
        )
    try:
        parts = tuple(float(word) for word in text.split("/"))
    except ValueError:
        parts = ()
    if (
        not parts
        or min(parts) < 0
        or max(parts) in (0.0, float("inf"))
        or any(gb != gb for gb in parts)
    ):
        raise UsageError(
            f"{engine}:gpu_split={text}: expected the GB that each GPU may take, as in"
            " gpu_split=10/24"
        )
    while not parts[-1]:
        parts = parts[:-1]
    return Placement(engine, 1, parts)
