"""Inputs to begin with, and changes to them that know the format: JSON, SQLite, frames, bytes."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kineto_factory
import rocprof_factory
from capture_factory import MS, Capture
from cupti_synthetic import CUDA_13_0, NAME_POINTERS, layout_of, make_buffer, write_spool
from runfile_factory import sample_run, write_run

from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.layout import CONCURRENT_KERNEL, MEMCPY, MEMSET, RUNTIME

Random = random.Random
CORPUS = Path(__file__).parents[2] / "fixtures" / "fuzz"

ESCAPES = ("\x1b[2J\x1b[31m", "\x1b]0;x\x07", "\u202eabc", "\x9b5n", "a\r\nb\tc", "\x00")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**70,
    10**400, 0.5, -0.0, 1e300, -1e300, float("inf"), float("nan"), "", "0", "x" * 300, "_Z1fv",
    "decode 7", "\ud800", [], {}, [[]], [None], {"a": 1}, {"internal": 5}, {"handle": -1}, *ESCAPES,
)  # fmt: skip


# -- inputs to begin with ------------------------------------------------------------------------


def seeds(name: str) -> list[bytes]:
    """What a target begins with; made here, so that they follow the formats."""
    return _SEEDS[name]()


def corpus(name: str) -> list[bytes]:
    """Seeds, and what long runs have found to reach further; kept packed."""
    found = [gzip.decompress(path.read_bytes()) for path in sorted((CORPUS / name).glob("*.gz"))]
    return seeds(name) + found


def _kineto() -> list[bytes]:
    plain = kineto_factory.document(kineto_factory.steps(3))
    amd = kineto_factory.document(kineto_factory.steps(3, amd=True))
    world = kineto_factory.document(
        kineto_factory.steps(2, graph=True), distributedInfo={"rank": 0, "world_size": 2}
    )
    return [json.dumps(d).encode() for d in (plain, amd, world)]


def _rocprof() -> list[bytes]:
    return [json.dumps(rocprof_factory.document(n)).encode() for n in (5, 30)]


def _file(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.sqlite"
        write(path)
        return path.read_bytes()


def _nsys() -> list[bytes]:
    def eager(path: Path) -> None:
        with Capture(path) as made:
            made.process()
            made.gpu()
            made.eager_steps(4, each=3)

    def graphs(path: Path) -> None:
        with Capture(path) as made:
            made.process()
            for i in range(4):
                start = 100 * MS + i * 10 * MS
                made.range(start, start + 9_900_000, f"decode {i}")
                launch = made.call(start + 50_000, start + 80_000, "cudaGraphLaunch_v10000")
                made.graph(start + 100_000, start + 9_500_000, correlation=launch)

    def bare(path: Path) -> None:
        with Capture(path) as made:
            made.process()
            for i in range(60):
                made.kernel(i * MS, i * MS + 500_000, f"void k{i % 5}(float*)")

    return [_file(write) for write in (eager, graphs, bare)]


def _runfile() -> list[bytes]:
    return [_file(lambda path: write_run(path, sample_run(rounds=1)))]


def _spool() -> list[bytes]:
    layout = layout_of(CUDA_13_0)
    buffers = [
        make_buffer([CONCURRENT_KERNEL] * 6, layout),
        make_buffer([RUNTIME, CONCURRENT_KERNEL, MEMCPY, MEMSET, RUNTIME], layout),
    ]
    return [_file(lambda path: write_spool(path, buffers, layout))]


def event(kind: bytes, time_ns: int, text: bytes = b"", number: int = 0, domain: int = 0) -> bytes:
    """``struct event`` of the recorder, with its text."""
    head = struct.pack("<QQQQIHcB", time_ns, number, domain, 0, 77, len(text), kind, 0)
    return head + text + bytes(-len(text) % 8)


def _nvtx() -> list[bytes]:
    nested = b"".join(
        [event(b"D", 1, b"torch", domain=5), event(b"T", 1, b"main", number=77)]
        + [event(b"(", 10 * i, f"decode {i}".encode()) for i in range(3)]
        + [event(b"(", 35, b"op", domain=5), event(b")", 36, domain=5)]
        + [event(b")", 40 + i) for i in range(3)]
    )
    started = b"".join(
        [event(b"S", 10 + i, f"request {i}".encode(), number=i) for i in range(3)]
        + [event(b"M", 20, b"mark")]
        + [event(b"E", 30 + i, number=i) for i in range(3)]
    )
    return [nested, started]


def _recorded() -> list[bytes]:
    layout = layout_of(CUDA_13_0)

    def write(path: Path) -> None:
        writer = spool.SpoolWriter(path)
        facts = {
            "ppid": 1, "monotonic_ns": 1000, "exe": "/usr/bin/python3", "RANK": "1",
            "cmdline": "python3\0generate.py\0", "library": "/x/libcupti.so.13",
        }  # fmt: skip
        writer.write_json(spool.PROCESS, facts)
        writer.write_json(spool.LAYOUT, {**layout.to_dict(), "level": "full", "pid": 5})
        device = {"ordinal": 0, "uuid": "GPU-" + "5e6f" * 8, "name": "NVIDIA H100", "sm_count": 132}
        writer.write_json(spool.DEVICES, {"devices": [device]})
        names = {str(pointer): f"_Z{i}kernelv" for i, pointer in enumerate(NAME_POINTERS)}
        writer.write_json(
            spool.NAMES, {"kernels": names, "api": {"5": {"211": "cudaLaunchKernel"}}}
        )
        writer.write(spool.NVTX, _nvtx()[0])
        kinds = [RUNTIME, CONCURRENT_KERNEL, MEMCPY, MEMSET]
        writer.write(spool.RECORDS, make_buffer(kinds, layout))
        writer.write_json(spool.ERROR, {"what": "cuptiSubscribe", "code": 39})
        mark = {"where": "end", "dropped": 0, "monotonic_ns": 9_000, "cupti_ns": 9_000}
        writer.write_json(spool.MARK, mark)
        writer.close()

    return [_file(write)]


def _sweep() -> list[bytes]:
    from llmprof.sweep.grid import Grid
    from llmprof.sweep.store import FORMAT, Ended

    grid = Grid(("fake", "fake:step_us=400"), {"context": ("128", "1024"), "batch": ("1",)})
    first, second = grid.points()[:2]
    row = {"engine": "fake", "state": "done", "tok_s": 100.5, "rounds": 8, "device": "cuda:0",
           "gpu": "NVIDIA H100", "options": {"step_us": "400"}, "reasons": {"power_w": "no NVML"},
           "categories": {"attention": 0.5}, "warnings": ["throttled"]}  # fmt: skip
    ended = [
        Ended(first.point_id, "done", rows=[row], seconds=3.5, node="a", run_file="runs/x.sqlite"),
        Ended(second.point_id, "failed", "out of memory"),
    ]
    head = {"format": FORMAT, "llmprof": "0.2.0", "grid": grid.to_dict()}
    return ["\n".join(json.dumps(one) for one in (head, *map(asdict, ended))).encode() + b"\n"]


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "kineto": _kineto, "rocprof": _rocprof, "nsys": _nsys, "runfile": _runfile, "spool": _spool,
    "recorded": _recorded, "sweep": _sweep, "nvtx": _nvtx,
}  # fmt: skip


# -- changes -------------------------------------------------------------------------------------


def changed(data: bytes, by: Random, limit: int = 1 << 20) -> bytes:
    """One to four changes; half of them by the format, where the bytes still are of one."""
    for _ in range(by.choice((1, 1, 2, 4))):
        data = _by_format(data, by) if by.random() < 0.6 else _bytes(data, by)
    return data[:limit]


def _by_format(data: bytes, by: Random) -> bytes:
    if data[:1] == b"{" and b"}\n{" in data:
        lines = data.split(b"\n")
        number = by.randrange(len(lines))
        lines[number] = _json(lines[number], by)
        return b"\n".join(lines)
    if data[:1] in (b"{", b"["):
        return _json(data, by)
    if data.startswith(b"SQLite format 3\0"):
        return _sqlite(data, by)
    if data.startswith(spool.MAGIC):
        return _frames(data, by)
    return _bytes(data, by)


def _bytes(data: bytes, by: Random) -> bytes:
    made = bytearray(data)
    at = by.randrange(len(made) + 1)
    how = by.randrange(6)
    if how == 0 and made:
        made[at % len(made)] ^= 1 << by.randrange(8)
    elif how == 1:
        made[at : at + by.choice((1, 2, 4, 8))] = by.choice(
            (b"\0", b"\xff" * 8, b"\x1b[2J", struct.pack("<Q", 1 << 63), struct.pack("<q", -1),
             by.randbytes(8), struct.pack("<I", by.choice((1, 5, 10, 22, 38, 1 << 31))))
        )  # fmt: skip
    elif how == 2:
        del made[at : at + by.randrange(1, 64)]
    elif how == 3:
        made[at:at] = made[at : at + by.randrange(1, 64)]
    elif how == 4:
        del made[at:]
    else:
        other = by.randrange(len(made) + 1)
        made[at : at + 32] = made[other : other + 32]
    return bytes(made)


def _json(data: bytes, by: Random) -> bytes:
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, by)
    places: list[tuple[Any, Any]] = []
    open_: list[Any] = [whole]
    while open_ and len(places) < 20_000:
        value = open_.pop()
        keys = value if isinstance(value, dict) else range(len(value))
        for key in list(keys):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                open_.append(value[key])
    if not places:
        return _bytes(data, by)
    holder, key = by.choice(places)
    how = by.randrange(6)
    if how <= 1:
        holder[key] = by.choice(ODD)
    elif how == 2:
        del holder[key]
    elif how == 3:
        source, other = by.choice(places)
        with suppress(LookupError):
            holder[key] = source[other]
    elif how == 4 and isinstance(holder, dict):
        holder[by.choice(ESCAPES) + str(key)] = holder.pop(key)
    elif isinstance(holder[key], bool | int | float) and holder[key] == holder[key]:
        holder[key] = by.choice((-1, 0.001, 1000, 2**40)) * min(max(holder[key], -(2**60)), 2**60)
    elif isinstance(holder[key], str):
        holder[key] += by.choice(ESCAPES)
    try:
        return json.dumps(whole).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return _bytes(data, by)


_SQL = ("delete", "null", "odd", "odd", "odd", "shift", "drop", "column", "rename", "copy")


def _sqlite(data: bytes, by: Random) -> bytes:
    with tempfile.TemporaryDirectory(dir=_shm()) as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = OFF")
                db.execute("PRAGMA journal_mode = OFF").fetchall()
                _statement(db, by)
        except (sqlite3.Error, OverflowError, UnicodeError, ValueError):
            return _bytes(data, by)
        return path.read_bytes()


def _shm() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _statement(db: sqlite3.Connection, by: Random) -> None:
    tables = [str(n) for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if not tables:
        return
    name = by.choice(tables)
    table = _quoted(name)
    column = _quoted(str(by.choice(db.execute(f"PRAGMA table_info({table})").fetchall())[1]))
    where = by.choice(("", "", f" WHERE rowid % {by.randrange(1, 5)} = 0", " WHERE rowid = 1"))
    how = by.choice(_SQL)
    odd = by.choice(
        (-(2**63), 2**63 - 1, 2**62, 0, -1, 1, 1.5, 1e300, float("inf"), "late", "", b"\0\xff",
         "\x1b[2J\x1b]0;x\x07", "[" * 5000, '{"a": 1}', None)
    )  # fmt: skip
    if how == "delete":
        db.execute(f"DELETE FROM {table}{where}")
    elif how == "null":
        db.execute(f"UPDATE {table} SET {column} = NULL{where}")
    elif how == "odd":
        db.execute(f"UPDATE {table} SET {column} = ?{where}", (odd,))
    elif how == "shift":
        by_ns = by.choice((1, -1, 10**6, -(10**9), 2**62))
        db.execute(f"UPDATE {table} SET {column} = {column} + ?{where}", (by_ns,))
    elif how == "drop":
        db.execute(f"DROP TABLE {table}")
    elif how == "column":
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    elif how == "rename":
        new = by.choice((name + "_V3", "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_MEMSET", "X\x1b[2J"))
        db.execute(f"ALTER TABLE {table} RENAME TO {_quoted(new)}")
    else:  # other types of columns, and none of the constraints
        new = _quoted(name + "_made")
        db.execute(f"CREATE TABLE {new} AS SELECT * FROM {table}")
        db.execute(f"DROP TABLE {table}")
        db.execute(f"ALTER TABLE {new} RENAME TO {table}")


def _frames(data: bytes, by: Random) -> bytes:
    frames: list[tuple[int, bytes]] = []
    at = 0
    while at + spool.HEADER.size <= len(data):
        magic, kind, _, length = spool.HEADER.unpack_from(data, at)
        at += spool.HEADER.size
        if magic != spool.MAGIC or length > len(data):
            break
        frames.append((kind, data[at : at + length]))
        at += length + -length % 8
    if not frames:
        return _bytes(data, by)
    number = by.randrange(len(frames))
    kind, payload = frames[number]
    how = by.randrange(5)
    if how <= 1:
        changed_payload = _json(payload, by) if payload[:1] == b"{" else _bytes(payload, by)
        frames[number] = kind, changed_payload
    elif how == 2:
        frames[number] = by.randrange(10), payload
    elif how == 3:
        frames.insert(by.randrange(len(frames) + 1), frames[number])
    else:
        del frames[number]
    return b"".join(
        spool.HEADER.pack(spool.MAGIC, kind, spool.FORMAT, len(payload)) + payload
        + bytes(-len(payload) % 8)
        for kind, payload in frames
    )  # fmt: skip
