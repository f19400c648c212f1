"""What engines have in common whose work a *drive* does, which ``load`` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from llmprof.records import EngineInfo


class Drive(Protocol):
    """Prefill and greedy decode steps of one loaded model."""

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[int]: ...

    def step(self) -> list[int]: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class _Resets(Protocol):
    def reset(self) -> None: ...


class _Closes(_Resets, Protocol):
    def close(self) -> None: ...


AnyDrive = TypeVar("AnyDrive", bound=_Resets)
ClosedDrive = TypeVar("ClosedDrive", bound=_Closes)


class DrivenEngine(Generic[AnyDrive]):
    """``load`` fills in the fields; ``_ready`` is the drive that it made."""

    name: str

    def __init__(self) -> None:
        self._drive: AnyDrive | None = None
        self._info = EngineInfo()
        self._batch = 1
        self._positions = 0
        """Of a sequence, at most."""
        self._vocab = 0

    def reset(self) -> None:
        self._ready().reset()

    def describe(self) -> EngineInfo:
        return self._info

    def _ready(self) -> AnyDrive:
        if self._drive is None:
            raise RuntimeError(f"{self.name}: no model loaded")
        return self._drive


class ClosedByDrive(DrivenEngine[ClosedDrive]):
    """What the drive closes is all there is to close."""

    def close(self) -> None:
        if self._drive is not None:
            self._drive.close()
            self._drive = None
