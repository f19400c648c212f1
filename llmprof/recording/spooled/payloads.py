"""Structures that a recorded program attached to its NVTX ranges (NVTX's payload extension)."""

from __future__ import annotations

import json
import struct

_SHAPES = {
    1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "l", 8: "L", 9: "q", 10: "Q",
    11: "b", 12: "B", 13: "h", 14: "H", 15: "i", 16: "I", 17: "q", 18: "Q", 22: "Q",
}  # fmt: skip
"""``NVTX_PAYLOAD_ENTRY_TYPE_*`` of whole numbers → their ``struct`` format on a 64-bit machine."""
_SIZES = {19: 4, 20: 8, 23: 8, 32: 1, 43: 4, 44: 8, 68: 4, 69: 4, 70: 8, 73: 4, 74: 8, 75: 8}
"""Of other types that may stand before an entry without an offset."""
MAX_SCHEMAS = 1024
"""Of one process; a program could register new ones without end."""


class Schemas:
    """Schema of each (domain, id), and what payloads hold."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[tuple[str, int, str], ...]] = {}

    def learn(self, domain: int, number: int, text: str) -> None:
        """A schema as the recorder writes it (payloads.c); what makes no sense is left out."""
        lines = text.splitlines()
        if not lines or len(self._known) >= MAX_SCHEMAS:
            return
        found, end = [], 0
        packed = lines[0].split(" ")[0] not in ("", "0")
        for row, line in enumerate(lines[1:]):
            words = line.split(" ", 4)
            if len(words) < 5 or not all(word.isdecimal() for word in words[:4]):
                break
            offset, kind, flags = int(words[0]), int(words[1]), int(words[2])
            shape = _SHAPES.get(kind)
            size = _SIZES.get(kind, 0) if shape is None else struct.calcsize(shape)
            if not offset and row:
                if packed or not size or end < 0:
                    break  # where it lies is not known, nor where the ones behind it do
                offset = (end + size - 1) // size * size
            end = offset + size if size else -1
            if shape is not None and not flags and words[4]:
                found.append((words[4], offset, f"<{shape}"))
        self._known[domain, number] = tuple(found)

    def json(self, domain: int, number: int, payload: bytes) -> str:
        """Its whole numbers by name, as one JSON object; empty: none are known."""
        found = {
            name: struct.unpack_from(shape, payload, offset)[0]
            for name, offset, shape in self._known.get((domain, number), ())
            if offset + struct.calcsize(shape) <= len(payload)
        }
        return json.dumps(found) if found else ""
