"""Which GPU a process means by its device number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmprof.plaintext import one_line
from llmprof.records import GpuDevice

MOST_DEVICES = 256


class DeviceMap:
    """UUIDs to GPU numbers of the run: NVML's, and further ones where NVML is not there."""

    def __init__(self, known: Sequence[GpuDevice]) -> None:
        self._numbers = {plain_uuid(d.uuid): d.index for d in known}
        self.added: list[GpuDevice] = []
        """GPUs that only the recorded processes named."""

    def numbers(self, devices: Any) -> dict[int, int]:
        """Ordinal of the process → GPU number, of a DEVICES frame (whatever it holds)."""
        found: dict[int, int] = {}
        for row in devices if isinstance(devices, list) else []:
            if not isinstance(row, dict) or type(row.get("ordinal")) is not int:
                continue
            ordinal, uuid = row["ordinal"], plain_uuid(str(row.get("uuid", "")))
            if 0 <= ordinal < MOST_DEVICES and uuid:
                found[ordinal] = self._number(uuid, row)
        return found

    def _number(self, uuid: str, row: dict[str, Any]) -> int:
        if uuid not in self._numbers:
            number = max(self._numbers.values(), default=-1) + 1
            self._numbers[uuid] = number
            self.added.append(
                GpuDevice(
                    index=number,
                    name=one_line(str(row.get("name", "")), 80) or "GPU",
                    uuid=spelled(uuid),
                    pci_bus_id=one_line(str(row.get("pci_bus_id", "")), 40) or None,
                )
            )
        return self._numbers[uuid]


def plain_uuid(uuid: str) -> str:
    """32 hexadecimal digits, from any spelling; empty where it is none."""
    digits = uuid.lower().removeprefix("gpu-").replace("-", "")
    return digits if len(digits) == 32 and set(digits) <= set("0123456789abcdef") else ""


def spelled(digits: str) -> str:
    """As NVML spells it: ``GPU-01234567-89ab-…``."""
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "GPU-" + "-".join(parts)
