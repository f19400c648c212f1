"""How long until a file of ten million kernels is on the screen, and what it costs.

    python benchmarks/open_large.py [--kernels 10000000] [--bin FOLDER] [--keep FILE]

Goals: first values of ``llmprof open`` within 1 s of the import and 500 MB; a frame within 30 ms,
zoomed out or in; ``export --to nsys`` of 1 million kernels within 3 s. The file has no index and no
table of llmprof, as nsys makes it. Beside it, ``info`` and ``summary`` of nsys-tui and nsys-ai
(``--bin``) on the same file.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

PER_STEP, SLOT = 300, 20_000
GLOBAL = 1 << 48 | 4001 << 24


def make(path: Path, kernels: int) -> None:
    """A decode trace: 300 kernels a step, one NVTX range a step."""
    root = Path(__file__).resolve().parent.parent
    text = (root / "llmprof" / "runfile" / "schema.sql").read_text()
    wanted = ("StringIds", "META_DATA_EXPORT", "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_KERNEL",
              "PROCESSES", "TARGET_INFO_GPU", "TARGET_INFO_CUDA_DEVICE")  # fmt: skip
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute("PRAGMA journal_mode = OFF")
    sql.execute("PRAGMA synchronous = OFF")
    for statement in text.split(";\n"):
        words = statement.split("CREATE TABLE ")
        if len(words) == 2 and words[1].split(" ")[0] in wanted:
            sql.execute("CREATE TABLE " + words[1])
    sql.execute("BEGIN")
    sql.execute("INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_SCHEMA_VERSION', '3.25.0')")
    sql.execute("INSERT INTO PROCESSES VALUES (?, 4001, 'python3')", (GLOBAL,))
    sql.execute("INSERT INTO TARGET_INFO_GPU (vmId, id, name) VALUES (1, 0, 'GPU')")
    sql.execute("INSERT INTO TARGET_INFO_CUDA_DEVICE VALUES (0, 0, 4001, 'x', 132)")
    names = [(i + 1, f"void kernel_{i}<(int){i}>(float*)") for i in range(40)]
    sql.executemany("INSERT INTO StringIds VALUES (?, ?)", names)
    steps = kernels // PER_STEP
    sql.executemany(
        'INSERT INTO NVTX_EVENTS (start, "end", eventType, "text", globalTid)'
        f" VALUES (?, ?, 59, ?, {GLOBAL | 4001})",
        ((i * PER_STEP * SLOT, (i + 1) * PER_STEP * SLOT - 500, f"decode {i}")
         for i in range(steps)),
    )  # fmt: skip
    columns = ("start", '"end"', "correlationId", "demangledName", "shortName")
    fixed = {
        "deviceId": 0, "contextId": 1, "streamId": 7, "globalPid": GLOBAL, "registersPerThread": 32,
        "gridX": 1, "gridY": 1, "gridZ": 1, "blockX": 128, "blockY": 1, "blockZ": 1,
        "staticSharedMemory": 0, "dynamicSharedMemory": 0, "localMemoryPerThread": 0,
        "localMemoryTotal": 0, "gridId": 0,
    }  # fmt: skip
    insert = (
        f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL ({', '.join([*columns, *fixed])}) VALUES"
        f" (?, ?, ?, ?, ?, {', '.join(str(v) for v in fixed.values())})"
    )
    source = np.random.default_rng(1)
    for at in range(0, kernels, 1 << 18):
        number = np.arange(at, min(kernels, at + (1 << 18)))
        start = number * SLOT + 1000
        end = start + source.integers(5000, 18_000, len(number))
        name = number % 40 + 1
        rows = np.stack([start, end, number + 1, name, name], 1).tolist()
        sql.executemany(insert, rows)
    sql.execute("COMMIT")
    sql.close()


def timed(command: list[str], limit: float) -> str:
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"> {limit:.0f} s"
    took = f"{time.perf_counter() - begin:.1f} s"
    return took if done.returncode == 0 else f"failed after {took}"


def measure(file: Path) -> None:
    """In a process of its own, so that its peak memory is that of opening."""
    from llmprof.runfile.overview import KernelOverview
    from llmprof.runfile.reader import RunFileReader

    begin = time.perf_counter()
    with RunFileReader(file) as reader:
        data = reader.run_data()
        patterns = reader.step_patterns()
    overview = KernelOverview(file)
    overview.window(overview.start_ns, overview.end_ns, 200)
    first = time.perf_counter() - begin
    print(f"first values: {first * 1e3:.0f} ms ({overview.rows:,} kernels, "
          f"{data.rounds[0].steps:,} steps analysed, guess {patterns[0].pattern!r})")  # fmt: skip
    begin = time.perf_counter()
    overview.refine()
    print(f"refined in the background: {time.perf_counter() - begin:.1f} s")
    span = overview.end_ns - overview.start_ns
    for name, share in (("zoomed out", 1.0), ("one in a hundred", 0.01), ("zoomed in", 2e-5)):
        times = []
        for i in range(40):
            start = overview.start_ns + int(span * (1 - share) * i / 40)
            begin = time.perf_counter()
            overview.window(start, start + int(span * share), 200)
            times.append(time.perf_counter() - begin)
        print(f"frame, {name}: {median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:.0f} MB")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kernels", type=int, default=10_000_000)
    options.add_argument("--bin", default="")
    options.add_argument("--limit", type=float, default=300.0, help="seconds for each other reader")
    options.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        file, million = Path(folder) / "large.sqlite", Path(folder) / "million.sqlite"
        begin = time.perf_counter()
        make(file, chosen.kernels)
        size = file.stat().st_size / 1e6
        print(
            f"made {chosen.kernels:,} kernels, {size:.0f} MB in {time.perf_counter() - begin:.0f} s"
        )
        subprocess.run([sys.executable, __file__, "--measure", str(file)], check=True)
        make(million, min(1_000_000, chosen.kernels))
        for to in ("nsys",):
            command = [sys.executable, "-m", "llmprof", "export", str(million), "--to", to,
                       "-o", str(Path(folder) / f"out.{to}")]  # fmt: skip
            print(f"export --to {to} of a million kernels: {timed(command, 120)}")
        for program in ("nsys-tui", "nsys-ai"):
            found = shutil.which(program, path=chosen.bin or None)
            if found:
                for what in ("info", "summary"):
                    print(f"{program} {what}: {timed([found, what, str(file)], chosen.limit)}")


if __name__ == "__main__":
    main()
