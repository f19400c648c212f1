"""Names of the reasons in an NVML clocks event mask. Standard library only.

Bits: nvmlClocksEventReason* of nvml.h (nvmlClocksThrottleReason* for the last two).
"""

from __future__ import annotations

_REASONS = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
# Idle, and settings that somebody chose: the GPU keeps the clocks that it was asked for.
_CHOSEN = 0x001 | 0x002 | 0x010 | 0x100


def reason_names(mask: int) -> tuple[str, ...]:
    """All reasons in the mask, lowest bit first, ``idle`` among them."""
    bits = (1 << n for n in range(mask.bit_length()) if mask >> n & 1)
    return tuple(_REASONS.get(bit, f"reason {bit:#x}") for bit in bits)


def throttle_names(mask: int) -> tuple[str, ...]:
    """The reasons for which a GPU runs below the clocks that it was asked for."""
    return reason_names(mask & ~_CHOSEN)
