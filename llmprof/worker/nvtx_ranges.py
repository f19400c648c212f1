"""NVTX ranges in domain ``llmprof``, so that nsys or any injected tool sees the steps too.

Standard library only where the package ``nvtx`` is not installed in the engine's environment:
then there are no ranges for outside tools, and the run file's own ranges are unaffected (the parent
writes them from the stamps).
"""

from __future__ import annotations

from typing import Any

from llmprof.worker.rounds import Ranges


class NoRanges:
    def prepare(self, name: str) -> None: ...

    def push(self, prepared: None) -> None: ...

    def pop(self) -> None: ...


class NvtxRanges:
    """Push and pop cost below noise with no tool attached (measured, nvtx 0.2.17)."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.push = domain.push_range
        self.pop = domain.pop_range

    def prepare(self, name: str) -> Any:
        return self._domain.get_event_attributes(message=name)


def open_ranges() -> tuple[Ranges, str]:
    """The ranges and, where there are none, the reason."""
    try:
        import nvtx
    except ImportError:
        return NoRanges(), "package nvtx is not installed in this engine's environment"
    return NvtxRanges(nvtx.get_domain("llmprof")), ""
