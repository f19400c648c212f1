"""What an export says of its recording, its version and its GPUs."""

from __future__ import annotations

import sqlite3
from typing import Any

from llmprof.plaintext import one_line
from llmprof.records import GpuDevice
from llmprof.runfile.activity import columns


def int_of(value: Any) -> int:
    return value if type(value) is int else 0


def all_of(sql: sqlite3.Connection, tables: set[str]) -> dict[str, str]:
    for table in ("META_DATA_EXPORT", "EXPORT_META_DATA"):
        if table in tables:
            rows = sql.execute(f"SELECT name, value FROM {table}")
            return {str(name): one_line(str(value), 60) for name, value in rows}
    return {}


def first_int(sql: sqlite3.Connection, tables: set[str], table: str, column: str) -> int:
    if table not in tables or column not in columns(sql, table):
        return 0
    row = sql.execute(f"SELECT {column} FROM {table}").fetchone()
    return int_of(row[0]) if row else 0


def wall_clock(sql: sqlite3.Connection, tables: set[str]) -> int:
    """At time 0 of the file, ns since 1970; 0: not known."""
    return first_int(sql, tables, "TARGET_INFO_SESSION_START_TIME", "utcEpochNs")


def devices(sql: sqlite3.Connection, tables: set[str]) -> list[GpuDevice]:
    if "TARGET_INFO_GPU" not in tables:
        return []
    there = columns(sql, "TARGET_INFO_GPU")
    wanted = ("id", "name", "uuid", "busLocation", "totalMemory", "smCount")
    chosen = ", ".join(c if c in there else f"NULL AS {c}" for c in wanted)
    found = {}
    for row in sql.execute(f"SELECT {chosen} FROM TARGET_INFO_GPU"):
        number, name, uuid, bus, memory, count = tuple(row)
        if type(number) is int:
            found[number] = GpuDevice(
                index=number,
                name=one_line(str(name or "GPU")),
                uuid=one_line(str(uuid or "")),
                pci_bus_id=one_line(str(bus)) if bus else None,
                memory_total_mib=int_of(memory) / 2**20 if memory else None,
                sm_count=int_of(count) or None,
            )
    return list(found.values())
