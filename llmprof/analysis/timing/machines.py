"""On what two engines of different runs ran, and where that differs: a ratio is of both then."""

from __future__ import annotations

from collections import Counter

from llmprof.analysis.timing.conditions import gpu_indices
from llmprof.plaintext import one_line
from llmprof.records import EngineRecord, GpuDevice, RunData

POWER_W = 1.0
"""Limits of the same card that differ by less are NVML's rounding."""


def machine_differences(
    name_a: str, data_a: RunData, a: EngineRecord, name_b: str, data_b: RunData, b: EngineRecord
) -> list[str]:
    """A line for each thing of the machines that is known of both and is not the same: GPUs, their
    power limit, the driver; on a CPU its model and usable cores."""
    gpus_a, gpus_b = _gpus(data_a, a), _gpus(data_b, b)
    if gpus_a is None or gpus_b is None:
        return []
    place_a, place_b = _place(data_a, gpus_a), _place(data_b, gpus_b)
    if not place_a or not place_b:
        return []
    if place_a != place_b:
        return [
            f"{name_a} ran on {place_a}, {name_b} on {place_b}: the ratio is of engine and machine"
        ]
    found = []
    limits = [{d.power_limit_w for d in gpus if d.power_limit_w} for gpus in (gpus_a, gpus_b)]
    if all(limits) and abs(min(limits[0]) - min(limits[1])) >= POWER_W:
        low = [f"{min(limit):.0f} W" for limit in limits]
        found.append(f"the power limit of the GPU was {low[0]} for {name_a}, {low[1]} for {name_b}")
    drivers = [data.info.environment.get("driver") for data in (data_a, data_b)]
    if gpus_a and all(isinstance(d, str) for d in drivers) and drivers[0] != drivers[1]:
        told = [one_line(str(d), 40) for d in drivers]
        found.append(f"drivers differ: {told[0]} for {name_a}, {told[1]} for {name_b}")
    return found


def _gpus(data: RunData, engine: EngineRecord) -> list[GpuDevice] | None:
    """Empty on a CPU; ``None`` where a GPU is not known, or the engine never loaded."""
    if engine.info is None:
        return None
    known = {device.index: device for device in data.gpu_devices}
    wanted = gpu_indices(engine)
    return [known[n] for n in wanted] if all(n in known for n in wanted) else None


def _place(data: RunData, gpus: list[GpuDevice]) -> str:
    """``2 × NVIDIA H200``, or a CPU's model; nothing where it is not known."""
    if gpus:
        names = Counter(one_line(gpu.name, 60) for gpu in gpus)
        return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in names.items())
    cpu = data.info.environment.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else None
    if not isinstance(model, str):
        return ""
    cores = cpu.get("usable_cores") if isinstance(cpu, dict) else None
    return one_line(model, 60) + (f" ({cores:g} cores)" if isinstance(cores, int | float) else "")
