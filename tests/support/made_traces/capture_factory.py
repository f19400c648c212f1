"""Captures of Nsight Systems with what a test wants in them: any process, device, table, row."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from llmprof.runfile import schema

MS = 1_000_000
PID = 4001
H100 = "NVIDIA H100 80GB HBM3"


def global_pid(pid: int) -> int:
    return 1 << 48 | pid << 24


class Capture:
    """An export in the making; tables come with their first row, as in real ones.

    ``close`` (or leaving the context) writes the strings.
    """

    def __init__(self, path: Path, version: str = "2026.2.1.210") -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("BEGIN")
        self._strings: dict[str, int] = {}
        self._made: set[str] = set()
        self._correlation = 0
        for name, value in (
            ("EXPORT_PRODUCT_VERSION", version),
            ("EXPORT_SCHEMA_VERSION", "3.25.0"),
        ):
            self.put("META_DATA_EXPORT", name=name, value=value)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for text, number in self._strings.items():
            self.put("StringIds", id=number, value=text)
        self.db.execute("COMMIT")
        self.db.close()

    def table(self, name: str, columns: str | None = None) -> None:
        """``columns``: for tables that the writer of llmprof has no use for, or other types."""
        if name not in self._made:
            self._made.add(name)
            known = schema.statements().get(name)
            self.db.execute(
                known[0] if columns is None and known else f"CREATE TABLE {name} ({columns})"
            )

    def put(self, table: str, columns: str | None = None, **values: Any) -> None:
        self.table(table, columns or ", ".join(f'"{name}"' for name in values))
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        self.db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))

    def string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings) + 1)

    def process(self, pid: int = PID, name: str = "python3") -> None:
        self.table("PROCESSES")
        self.put("PROCESSES", globalPid=global_pid(pid), pid=pid, name=name)

    def gpu(self, number: int = 0, name: str = H100, cuda: int | None = None) -> None:
        self.table("TARGET_INFO_GPU")
        self.put(
            "TARGET_INFO_GPU", vmId=1 << 48, id=number, name=name, busLocation=f"0000:{number}",
            uuid=f"u{number}", totalMemory=80 << 30, smCount=132,
            cuDevice=number if cuda is None else cuda,
        )  # fmt: skip

    def range(
        self, start: int, end: int, text: str, pid: int = PID, tid: int | None = None,
        kind: int = 59,
    ) -> None:  # fmt: skip
        self.table("NVTX_EVENTS")
        thread = global_pid(pid) | (pid if tid is None else tid)
        self.put(
            "NVTX_EVENTS", start=start, end=end, eventType=kind, text=text, globalTid=thread,
            domainId=0,
        )  # fmt: skip

    def call(
        self, start: int, end: int, name: str = "cudaLaunchKernel_v7000", pid: int = PID,
        tid: int | None = None,
    ) -> int:  # fmt: skip
        """Returns the correlation id."""
        self.table("CUPTI_ACTIVITY_KIND_RUNTIME")
        self._correlation += 1
        self.put(
            "CUPTI_ACTIVITY_KIND_RUNTIME", start=start, end=end, eventClass=0,
            globalTid=global_pid(pid) | (pid if tid is None else tid),
            correlationId=self._correlation, nameId=self.string(name), returnValue=0,
        )  # fmt: skip
        return self._correlation

    def kernel(
        self, start: Any, end: Any, name: str = "void gemm(float*)", pid: int = PID,
        device: int = 0, correlation: int = 0, stream: int = 7, table: bool = True, **more: Any,
    ) -> None:  # fmt: skip
        if table:
            self.table("CUPTI_ACTIVITY_KIND_KERNEL")
        short = name.partition("(")[0].removeprefix("void ")
        values = {
            "start": start, "end": end, "deviceId": device, "contextId": 1, "greenContextId": 0,
            "streamId": stream, "correlationId": correlation, "globalPid": global_pid(pid),
            "demangledName": self.string(name), "shortName": self.string(short),
            "mangledName": self.string(name), "registersPerThread": 32, "gridX": 1, "gridY": 1,
            "gridZ": 1, "blockX": 128, "blockY": 1, "blockZ": 1, "staticSharedMemory": 0,
            "dynamicSharedMemory": 0, "localMemoryPerThread": 0, "localMemoryTotal": 0,
            "gridId": 0, **more,
        }  # fmt: skip
        self.put("CUPTI_ACTIVITY_KIND_KERNEL", **values)

    def work(
        self, table: str, start: int, end: int, pid: int = PID, device: int = 0,
        correlation: int = 0, **more: Any,
    ) -> None:  # fmt: skip
        """A row of another table of device work."""
        self.put(
            table, start=start, end=end, deviceId=device, contextId=1, greenContextId=0,
            streamId=7, correlationId=correlation, globalPid=global_pid(pid), **more,
        )  # fmt: skip

    def graph(self, start: int, end: int, pid: int = PID, correlation: int = 0) -> None:
        """A whole CUDA graph (``--cuda-graph-trace=graph``, the default)."""
        self.work(
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", start, end, pid, correlation=correlation,
            graphId=5, graphExecId=6,
        )  # fmt: skip

    def eager_steps(
        self, count: int = 20, wall: int = 10 * MS, each: int = 10, busy: float = 0.9,
        text: str = "decode {}", pid: int = PID, device: int = 0, name: str = "void gemm(float*)",
    ) -> None:  # fmt: skip
        """Steps of ``wall`` ns, ``each`` kernels apart by launches, busy for a share of it."""
        for i in range(count):
            start = 100 * MS + i * wall
            self.range(start, start + wall - 100_000, text.format(i), pid)
            slot = (wall - 200_000) // each
            for k in range(each):
                at = start + k * slot + 20_000
                launch = self.call(at - 15_000, at - 10_000, pid=pid)
                end = at + int(wall * busy) // each
                self.kernel(at, end, name, pid, device, launch)
