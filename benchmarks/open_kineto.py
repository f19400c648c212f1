"""Memory and time of reading a large trace of torch.profiler, beside json, ijson and HTA.

    python benchmarks/open_kineto.py --mb 200
    python benchmarks/open_kineto.py --mb 2000 --only llmprof --only HTA --hta OTHER/bin/python

Makes a trace of that size (decode steps with operators, Python functions, launches, kernels and
flow arrows, as torch.profiler with ``with_stack`` writes them) and reads it in one child process a
reader. Ratios are against ``json.load`` in the same run. Readers that are not installed are left
out; Perfetto's trace processor is a download of a binary, which this script does not do. A reader
that needs more than ``--limit-gb`` of memory ends and is said to.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = [
    f"void at::native::kernel_{i}<4, at::native::Functor<float>>(int, float*)" for i in range(60)
]

READERS = {
    "json.load": "import json, sys\njson.load(open(sys.argv[1]))",
    "ijson (yajl2_c)": (
        "import ijson, sys\n"
        "for _ in ijson.items(open(sys.argv[1], 'rb'), 'traceEvents.item', use_float=True): pass"
    ),
    "HTA": (
        "import sys\nfrom hta.common.trace_parser import parse_trace_dataframe\n"
        "from hta.configs.parser_config import ParserConfig\n"
        "parse_trace_dataframe(sys.argv[1], ParserConfig.get_default_cfg())"
    ),
    "llmprof": (
        "import sys\nfrom pathlib import Path\nfrom llmprof.traces.opened import readable\n"
        "print(readable(Path(sys.argv[1])).stat().st_size)"
    ),
}


def write(path: Path, size: int) -> int:
    """About ``size`` bytes of trace; returns its kernels."""
    kernels, at, number = 0, 4_203_669_603_000.0, 0
    with path.open("w") as file:
        file.write('{"schemaVersion": 1, "baseTimeNanoseconds": 1735632360000000000,\n')
        file.write(
            '"deviceProperties": [{"id": 0, "name": "GPU", "numSms": 132}],\n"traceEvents": [\n'
        )
        while file.tell() < size:
            lines = [
                f'{{"ph": "X", "cat": "user_annotation", "name": "decode {number}", "pid": 77,'
                f' "tid": 77, "ts": {at:.3f}, "dur": 900.000, "args": {{"External id": {number}}}}}'
            ]
            for i in range(300):
                t, c = at + 3 * i, 300 * number + i + 1
                lines.append(
                    f'{{"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 77, "tid": 77,'
                    f' "ts": {t:.3f}, "dur": 2.500, "args": {{"External id": {c}, "Ev Idx": {c}}}}}'
                )
                lines.append(
                    f'{{"ph": "X", "cat": "python_function", "name": "model.py({i}): forward",'
                    f' "pid": 77, "tid": 77, "ts": {t:.3f}, "dur": 2.900,'
                    f' "args": {{"Python id": {c}, "Python parent id": {c}}}}}'
                )
                lines.append(
                    f'{{"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 77,'
                    f' "tid": 77, "ts": {t + 1:.3f}, "dur": 1.000,'
                    f' "args": {{"External id": {c}, "cbid": 211, "correlation": {c}}}}}'
                )
                lines.append(
                    f'{{"ph": "s", "id": {c}, "pid": 77, "tid": 77, "ts": {t + 1:.3f},'
                    ' "cat": "ac2g", "name": "ac2g"}'
                )
                lines.append(
                    f'{{"ph": "X", "cat": "kernel", "name": "{NAMES[i % 60]}", "pid": 0, "tid": 7,'
                    f' "ts": {t + 5:.3f}, "dur": 2.000, "args": {{"External id": {c}, "queued": 0,'
                    f' "device": 0, "context": 1, "stream": 7, "correlation": {c},'
                    ' "registers per thread": 32, "shared memory": 1024, "grid": [8, 1, 1],'
                    ' "block": [128, 1, 1], "est. achieved occupancy %": 50}}'
                )
            kernels += 300
            number, at = number + 1, at + 1000.0
            file.write((",\n" if number > 1 else "") + ",\n".join(lines))
        file.write('\n], "traceName": "x.json"}\n')
    return kernels


def measure(
    code: str, path: Path, cache: Path, python: str, limit_gb: float
) -> tuple[float, float, float] | str:
    """Wall s, CPU s, peak MiB of a child; or why it failed."""
    limit = int(limit_gb * 1e9)
    begin = time.monotonic()
    child = subprocess.Popen(
        [python, "-c", code, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert child.stderr is not None
    said = child.stderr.read().decode(errors="replace").strip().splitlines()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - begin
    if status:
        return said[-1][:80] if said else f"status {status}"
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=200, help="size of the trace (200)")
    parser.add_argument("--only", action="append", choices=READERS, help="this reader; repeatable")
    parser.add_argument("--hta", metavar="PYTHON", help="interpreter that has HTA (traceinsight)")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="memory of a reader (16)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="open-kineto-") as name:
        folder = Path(name)
        path = folder / "trace.json"
        kernels = write(path, chosen.mb * 1_000_000)
        print(f"{path.stat().st_size / 1e6:,.0f} MB, {kernels:,} kernels, {kernels * 5:,} events")
        print(f"{os.cpu_count()} CPUs, load of the last minute {os.getloadavg()[0]:.1f}")
        print(f"{'reader':<16} {'wall s':>8} {'CPU s':>8} {'MB/s CPU':>9} {'peak MiB':>9}")
        base: tuple[float, float, float] | None = None
        for reader in chosen.only or READERS:
            python = chosen.hta if reader == "HTA" and chosen.hta else sys.executable
            found = measure(READERS[reader], path, folder / "cache", python, chosen.limit_gb)
            if isinstance(found, str):
                print(f"{reader:<16} left out: {found}")
                continue
            wall, cpu, peak = found
            base = base or found
            rate = path.stat().st_size / 1e6 / cpu
            print(
                f"{reader:<16} {wall:8.1f} {cpu:8.1f} {rate:9.1f} {peak:9,.0f}"
                f"   {cpu / base[1]:.2f}× time, {peak / base[2]:.2f}× memory of the first"
            )


if __name__ == "__main__":
    main()
