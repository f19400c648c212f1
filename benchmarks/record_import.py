"""Kernels a second from a spool into a run file, as ``llmprof record`` reads along.

    python benchmarks/record_import.py [--kernels 2000000] [--calls] [--processes 500]

A synthetic spool of one process (or of several, which share the kernels), in frames of 20 ms at
300,000 kernels a second: a CUDA graph of 587 kernels, names once, with ``--calls`` one API record a
kernel. The recording's own classes read it. Beside the rate: kernels a second of processor time
(what a busy machine leaves comparable), those of decoding alone, and how much resident memory grew.
``to_plain_insert`` is the processor time of a plain ``executemany`` of the same rows, which are
tuples already, to that of the import: above 1 the import is faster than what it ends in.
Goal: 1 million kernels a second in both modes, memory the same for any length.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llmprof.recording.spooled.devices import DeviceMap
from llmprof.recording.spooled.spools import Spools
from llmprof.records import RunInfo
from llmprof.runfile import schema
from llmprof.runfile.pages.transfer import definition_of
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.tracers.cupti import spool
from llmprof.tracers.cupti.decode import decode_buffer, record_dtype
from llmprof.tracers.cupti.layout import API_FIELDS, KERNEL_FIELDS, known_layout

NODES, FRAME = 587, 6000
PLAIN_ROWS = 300_000


def frames(kernels: int, calls: bool) -> Iterator[bytes]:
    layout = known_layout(130001)
    assert layout is not None
    size = layout.sizes[10]
    random = np.random.default_rng(0)
    for at in range(0, kernels, FRAME):
        count = min(FRAME, kernels - at)
        number = np.arange(at, at + count)
        rows = np.zeros(count, record_dtype(KERNEL_FIELDS, size))
        node = number % NODES
        rows["kind"] = 10
        rows["start"] = 10**12 + number * 3300
        rows["end"] = rows["start"] + random.integers(1000, 3000, count)
        rows["stream"], rows["context"] = 7, 1
        rows["grid_x"], rows["block_x"] = 1 + node % 22, 128
        rows["grid_y"] = rows["grid_z"] = rows["block_y"] = rows["block_z"] = 1
        rows["correlation"] = number if calls else number // NODES
        rows["grid_id"] = number
        rows["name_ptr"] = 0x7F0000000000 + 64 * (node % 22)
        rows["graph_node"] = 0 if calls else 1 + node
        if not calls:
            yield rows.tobytes()
            continue
        api = np.zeros(count, record_dtype(API_FIELDS, 40))
        api["kind"], api["cbid"], api["tid"] = 5, 211, 1234
        api["start"], api["end"] = rows["start"] - 9000, rows["start"] - 4000
        api["correlation"] = number
        both = np.concatenate(
            [api.view(np.uint8).reshape(count, 40), rows.view(np.uint8).reshape(count, size)], 1
        )
        yield both.tobytes()


def write_spool(path: Path, kernels: int, calls: bool) -> float:
    """Seconds that decoding its buffers takes."""
    layout = known_layout(130001)
    assert layout is not None
    writer = spool.SpoolWriter(path)
    writer.write_json(spool.LAYOUT, layout.to_dict())
    names = {str(0x7F0000000000 + 64 * i): f"_Z6kernelILi{i}EEvPfi" for i in range(22)}
    api = {"5": {"211": "cudaLaunchKernel_v7000"}}
    writer.write_json(spool.NAMES, {"kernels": names, "api": api})
    devices = [{"ordinal": 0, "uuid": "ab" * 16, "pci_bus_id": "0", "name": "GPU"}]
    writer.write_json(spool.DEVICES, {"devices": devices})
    decoding = 0.0
    for payload in frames(kernels, calls):
        writer.write(spool.RECORDS, payload)
        begin = time.perf_counter()
        decode_buffer(payload, layout)
        decoding += time.perf_counter() - begin
    writer.close()
    return decoding


def plain_insert(run: Path, scratch: Path) -> float:
    """Processor seconds that the rows of the run's kernels and calls take, a statement a row: of
    ``PLAIN_ROWS`` of each, scaled."""
    took = 0.0
    with closing(sqlite3.connect(run)) as source, closing(sqlite3.connect(scratch)) as sql:
        for table in ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"):
            found = source.execute(
                "SELECT sql FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
            if found is None:
                continue
            sql.execute(found[0])
            (count,) = source.execute(f"SELECT count(*) FROM {table}").fetchone()
            rows = source.execute(f"SELECT * FROM {table} LIMIT {PLAIN_ROWS}")
            marks, its = ", ".join("?" * len(rows.description)), 0.0
            while some := rows.fetchmany(1 << 16):
                begin = time.process_time()
                sql.executemany(f"INSERT INTO {table} VALUES ({marks})", some)
                sql.commit()
                its += time.process_time() - begin
            took += its * max(1.0, count / PLAIN_ROWS)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=2_000_000)
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        decoding = 0.0
        each = arguments.kernels // arguments.processes
        for number in range(arguments.processes):
            decoding += write_spool(folder / f"{4711 + number}-{1000 + number}.spool", each,
                                    arguments.calls)  # fmt: skip
        info = RunInfo(10**12, 0, "0", None, [], {}, {}, "full", source="recorded")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with RunFileWriter(folder / "run.sqlite", info) as run:
            spools = Spools(folder, run, DeviceMap([]), None, lambda engine: None)
            begin, processor = time.perf_counter(), time.process_time()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            spools.read(final=True)
            took = time.perf_counter() - begin
            processor = time.process_time() - processor
            used = resource.getrusage(resource.RUSAGE_SELF)
            spools.close()
        kernels = sum(one.image.kernels for one in spools.all)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        plain = plain_insert(folder / "run.sqlite", folder / "plain.sqlite")
        kernel_table = schema.statements()["CUPTI_ACTIVITY_KIND_KERNEL"][0]
    result = {
        "kernels": kernels,
        "seconds": round(took, 2),
        "kernels_s": round(kernels / took),
        "per_processor_second": round(kernels / processor),
        "decoding_kernels_s": round(kernels / decoding),
        "system_share": round((used.ru_stime - usage.ru_stime) / processor, 2),
        "page_faults_a_kernel": round((used.ru_minflt - usage.ru_minflt) / kernels, 3),
        "to_plain_insert": round(plain / processor, 2),
        "more_memory_mib": round((after - before) / 1024),
        "sqlite": sqlite3.sqlite_version,
        "as_pages": definition_of(kernel_table) is not None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
