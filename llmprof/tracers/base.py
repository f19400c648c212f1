"""The seam of parent-side tracers. Standard library only."""

from __future__ import annotations

from typing import Protocol

from llmprof.records import Unavailable


class Tracer(Protocol):
    """Records while a pass runs.

    ``cost`` is one sentence with a number: what the tracer takes from the traced process.
    """

    name: str
    cost: str

    def probe(self) -> Unavailable | None:
        """Why this tracer cannot work here; ``None`` when it can. Cheap, no side effect."""

    def start(self) -> None: ...

    def stop(self) -> None: ...
