"""Clocks, power, memory, throttling: NVML and GPM, in the parent."""
