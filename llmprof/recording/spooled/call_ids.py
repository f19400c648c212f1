"""Correlation ids of one process over all sessions of CUPTI in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.tracers.cupti.decode import Records
from llmprof.tracers.cupti.layout import DRIVER, RUNTIME
from llmprof.tracers.cupti.library import DRIVER_LAUNCHES, RUNTIME_LAUNCHES

NO_CALL = 2**32 - 1
"""Of GPU work whose call is not known: no call has it. A call whose work is not known has 0."""
_KINDS = ("kernels", "memcpy", "memset", "api", "sync")
_LAUNCHES = {RUNTIME: RUNTIME_LAUNCHES, DRIVER: DRIVER_LAUNCHES}


class CallIds:
    """Makes what CUPTI numbered unique, and takes back what it numbered wrong.

    A session begins at 1 again. And a window that was closed while a thread was within a call, with
    CUPTI left in the process, leaves that call open: all graph launches of the thread then have its
    id (CUDA 13.0, H100: 3,800 launches of 4,500 in a program of two threads). Neither the calls nor
    the kernels of such an id can be told apart, and joined they would be seconds apart.
    """

    def __init__(self) -> None:
        self.stuck = 0
        """GPU rows whose call is not known for that."""
        self._base = 0
        self._most = 0
        self._known: set[int] = set()

    def new_session(self) -> None:
        self._base = self._most % 2**32

    def of(self, records: Records) -> Records:
        """The records of the next buffers, with ids of the whole process."""
        changed: dict[str, Any] = {}
        if self._base:
            for name in _KINDS:
                rows = getattr(records, name)
                if len(rows):
                    changed[name] = rows.copy()
                    changed[name]["correlation"] += np.uint32(self._base)
            records = dataclasses.replace(records, **changed)
        for name in ("kernels", "memcpy", "memset", "api"):
            ids = getattr(records, name)["correlation"]
            self._most = max(self._most, int(ids.max())) if len(ids) else self._most
        self._known.update(_twice(records.api))
        return self._without_stuck(records) if self._known else records

    def _without_stuck(self, records: Records) -> Records:
        stuck = np.fromiter(self._known, np.uint32, len(self._known))
        changed: dict[str, Any] = {}
        for name in _KINDS:
            rows = getattr(records, name)
            mine = np.isin(rows["correlation"], stuck)
            if not mine.any():
                continue
            changed[name] = rows.copy()
            changed[name]["correlation"][mine] = 0 if name == "api" else NO_CALL
            if name not in ("api", "sync"):
                self.stuck += int(np.count_nonzero(mine))
        return dataclasses.replace(records, **changed)


def _twice(api: NDArray[np.void]) -> set[int]:
    """Ids that two launches have. Within one call of the runtime other functions of the driver may
    run twice."""
    ids = api["correlation"]
    if (ids[1:] > ids[:-1]).all():
        return set()  # the usual case, without a sort
    found: set[int] = set()
    for kind, launches in _LAUNCHES.items():
        mine = np.sort(ids[(api["kind"] == kind) & np.isin(api["cbid"], launches)])
        found.update(mine[1:][mine[1:] == mine[:-1]].tolist())
    return found
