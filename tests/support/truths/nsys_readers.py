"""Do other programs find in a run file exactly what was written to it?

    python tests/support/truths/nsys_readers.py [--nsys NSYS]… [--bin FOLDER]

prints the table report × reader × equal to truth of docs/nsys.md. ``--nsys`` names nsys programs
(default: the one on PATH), ``--bin`` the ``bin`` folder of an
environment with nsys-ai 0.3, nsys-tui 0.1.5 and HolisticTraceAnalysis. Exit codes of nsys
say nothing (0 after an internal error or a skipped report), so every number is compared.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from nsys_truth import SYNC, Event, Truth, make

Row = dict[str, str]
Rows = list[Row]
Found = tuple[object, object]
"""What the reader says, what is true."""


def _pairs(rows: Rows, name: str, count: str, total: str) -> dict[str, tuple[int, int]]:
    return {r[name].removesuffix(" "): (int(r[count]), int(r[total])) for r in rows}


def _short(name: str) -> str:
    return re.sub(r"_v\d+$", "", name)


def _renamed(sums: dict[str, tuple[int, int]], change: Callable[[str], str]) -> object:
    return {change(name): value for name, value in sums.items()}


def _operation(name: str) -> str:
    """2022.4 has labels of its own, 2023.4 prints those of the file."""
    words = {"HtoD": "Host-to-Device", "DtoH": "Device-to-Host", "DtoD": "Device-to-Device"}
    plain = re.sub(r"^\[CUDA (memcpy )?(.*)\]$", r"\2", name)
    return words.get(plain, plain).lower()


def _memory(truth: Truth) -> dict[str, tuple[int, int]]:
    sums = truth.sums([*truth.copies, *truth.sets])
    return {name.lower(): value for name, value in sums.items()}


def kernels(rows: Rows, truth: Truth) -> Found:
    return _pairs(rows, "Name", "Instances", "Total Time (ns)"), truth.sums(truth.kernels)


def calls(rows: Rows, truth: Truth) -> Found:
    got = _pairs(rows, "Name", "Num Calls", "Total Time (ns)")
    return got, _renamed(truth.sums(truth.calls), _short)


def _spans(events: Iterable[Event]) -> list[tuple[int, int]]:
    events = list(events)
    return sorted((e.correlation, e.ns) for e in events)


def call_trace(rows: Rows, truth: Truth) -> Found:
    got = sorted((int(r["CorrID"]), int(r["Duration (ns)"])) for r in rows)
    return got, _spans(truth.calls)


def gpu_trace(rows: Rows, truth: Truth) -> Found:
    got = sorted((int(r["CorrId"]), int(r["Duration (ns)"])) for r in rows)
    return got, _spans([*truth.kernels, *truth.copies, *truth.sets])


def memory_time(rows: Rows, truth: Truth) -> Found:
    got = {_operation(r["Operation"]): (int(r["Count"]), int(r["Total Time (ns)"])) for r in rows}
    return got, _memory(truth)


def memory_size(rows: Rows, truth: Truth) -> Found:
    got = {_operation(r["Operation"]): (int(r["Count"]), r["Total (MB)"]) for r in rows}
    sizes: dict[str, list[int]] = defaultdict(list)
    for event in [*truth.copies, *truth.sets]:
        sizes[event.name.lower()].append(event.bytes)
    return got, {name: (len(s), f"{sum(s) / 1e6:.3f}") for name, s in sizes.items()}


def gpu_sum(rows: Rows, truth: Truth) -> Found:
    work = [r for r in rows if r["Category"] != "CUDA_API"]
    got = {
        _operation(r["Operation"]) if r["Operation"].startswith("[") else r["Operation"]: (
            int(r["Instances"]),
            int(r["Total Time (ns)"]),
        )
        for r in work
    }
    return got, {**truth.sums(truth.kernels), **_memory(truth)}


def api_and_gpu(rows: Rows, truth: Truth) -> Found:
    got, wanted = gpu_sum(rows, truth)
    api = [r for r in rows if r["Category"] == "CUDA_API"]
    said = _pairs(api, "Operation", "Instances", "Total Time (ns)")
    return (got, _renamed(said, _short)), (wanted, _renamed(truth.sums(truth.calls), _short))


def launches(rows: Rows, truth: Truth) -> Found:
    called = {e.correlation: e for e in truth.calls}
    got = sorted((int(r["API Start (ns)"]), int(r["Kernel Dur (ns)"])) for r in rows)
    t0 = truth.data.info.t0_ns
    return got, sorted((called[k.correlation].start - t0, k.ns) for k in truth.kernels)


def launch_sum(rows: Rows, truth: Truth) -> Found:
    got = {(int(r["PID"]), r["Kernel Name"]): int(r["Count"]) for r in rows}
    wanted: dict[tuple[int, str], int] = defaultdict(int)
    for k in truth.kernels:
        wanted[k.pid, k.name] += 1
    return got, dict(wanted)


def ranges(rows: Rows, truth: Truth) -> Found:
    got = {r["Range"].lstrip(":"): (int(r["Instances"]), int(r["Total Time (ns)"])) for r in rows}
    return got, truth.ranges()


def range_trace(rows: Rows, truth: Truth) -> Found:
    got: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for r in rows:
        entry = got[r["Name"].lstrip(":")]
        entry[0] += 1
        entry[1] += int(r["Duration (ns)"])
    return {name: (n, ns) for name, (n, ns) in got.items()}, truth.ranges()


def range_kernels(rows: Rows, truth: Truth) -> Found:
    """Each kernel counts in its own range and in the round around it."""
    got = {
        (r["NVTX Range"].lstrip(":"), int(r["PID"]), r["Kernel Name"]): (
            int(r["Kern Inst"]),
            int(r["Total Time (ns)"]),
        )
        for r in rows
    }
    wanted: dict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0, 0])
    for k in truth.kernels:
        for name in (k.inside, "llmprof:round 1 traced"):
            wanted[name, k.pid, k.name][0] += 1
            wanted[name, k.pid, k.name][1] += k.ns
    return got, {key: (n, ns) for key, (n, ns) in wanted.items()}


def _projection(truth: Truth) -> dict[tuple[str, int], tuple[int, int]]:
    """(range, pid) → GPU work in it, from its first start to its last end."""
    found: dict[tuple[str, int], list[Event]] = defaultdict(list)
    for event in [*truth.kernels, *truth.copies, *truth.sets]:
        for name in (event.inside, "llmprof:round 1 traced"):
            found[name, event.pid].append(event)
    return {
        key: (len(events), max(e.end for e in events) - min(e.start for e in events))
        for key, events in found.items()
    }


def projection(rows: Rows, truth: Truth) -> Found:
    got = {
        (r["Name"].lstrip(":"), int(r["PID"])): (
            int(r["NumGPUOps"]),
            int(r["Projected Duration (ns)"]),
        )
        for r in rows
    }
    return got, _projection(truth)


def projection_sum(rows: Rows, truth: Truth) -> Found:
    got = {
        r["Range"].lstrip(":"): (int(r["Total GPU Ops"]), int(r["Total Proj Time (ns)"]))
        for r in rows
    }
    wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (name, _), (operations, ns) in _projection(truth).items():
        wanted[name][0] += operations
        wanted[name][1] += ns
    return got, {name: (n, ns) for name, (n, ns) in wanted.items()}


REPORTS: dict[str, tuple[str, Callable[[Rows, Truth], Found]]] = {
    # Name since 2023: name in 2022 ("": not there), what to compare.
    "cuda_gpu_kern_sum": ("gpukernsum", kernels),
    "cuda_gpu_kern_gb_sum": ("", kernels),
    "cuda_gpu_trace": ("gputrace", gpu_trace),
    "cuda_gpu_sum": ("gpusum", gpu_sum),
    "cuda_gpu_mem_time_sum": ("gpumemtimesum", memory_time),
    "cuda_gpu_mem_size_sum": ("gpumemsizesum", memory_size),
    "cuda_api_sum": ("cudaapisum", calls),
    "cuda_api_trace": ("cudaapitrace", call_trace),
    "cuda_api_gpu_sum": ("apigpusum", api_and_gpu),
    "cuda_kern_exec_trace": ("kernexectrace", launches),
    "cuda_kern_exec_sum": ("kernexecsum", launch_sum),
    "nvtx_sum": ("nvtxsum", ranges),
    "nvtx_pushpop_sum": ("nvtxppsum", ranges),
    "nvtx_pushpop_trace": ("nvtxpptrace", range_trace),
    "nvtx_kern_sum": ("nvtxkernsum", range_kernels),
    "nvtx_gpu_proj_trace": ("nvtxgpuproj", projection),
    "nvtx_gpu_proj_sum": ("", projection_sum),
}


def waits(rows: Rows, truth: Truth) -> Found:
    wanted = sorted(e.ns for e in truth.calls if e.name == SYNC)
    return sorted(int(r["Duration (ns)"]) for r in rows), wanted


def pageable(rows: Rows, truth: Truth) -> Found:
    wanted = sorted(e.ns for e in truth.copies if e.kind != 8)
    return sorted(int(r["Duration (ns)"]) for r in rows), wanted


RULES: dict[str, tuple[str, Callable[[Rows, Truth], Found]]] = {
    "cuda_api_sync": ("cuda-sync-api", waits),
    "cuda_memcpy_async": ("cuda-async-memcpy", pageable),
}


def version(nsys: str) -> str:
    done = subprocess.run([nsys, "--version"], capture_output=True, text=True, timeout=60)
    match = re.search(r"(\d{4})\.(\d+)", done.stdout)
    return f"{match[1]}.{match[2]}" if match else "?"


def _csv(command: list[str], file: Path) -> Rows:
    whole = ["timeout", "-s", "KILL", "120", *command, "-q", "-f", "csv", "-o", "-", str(file)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    return list(csv.DictReader(io.StringIO(done.stdout.strip() + "\n")))


def stats(nsys: str, report: str, file: Path) -> Rows:
    """Rows of one report, by its name since 2023; none if nsys has none."""
    name = REPORTS[report][0] if version(nsys).startswith("2022") else report
    return _csv([nsys, "stats", "-r", name], file) if name else []


def analyze(nsys: str, rule: str, file: Path) -> Rows:
    """Rows of one rule, by its name since 2023."""
    name = RULES[rule][0] if version(nsys).startswith("2022") else rule
    return _csv([nsys, "analyze", "-r", name], file)


def equal(rows: Rows, check: Callable[[Rows, Truth], Found], truth: Truth) -> bool:
    if not rows:
        return False
    got, wanted = check(rows, truth)
    return got == wanted


def nsys_ai(program: str, file: Path, truth: Truth) -> dict[str, bool]:
    """nsys-ai: ``top_kernels`` and ``memory_transfers`` (ms and MB with two decimals)."""

    def skill(name: str) -> list[dict[str, object]]:
        done = subprocess.run(
            [program, "skill", "run", name, str(file), "--format", "json"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        at = done.stdout.find("[\n")
        found: list[dict[str, object]] = json.loads(done.stdout[at:]) if at >= 0 else []
        return found

    def rounded(sums: dict[str, tuple[int, int]]) -> object:
        return {name: (n, round(ns / 1e6, 2)) for name, (n, ns) in sums.items()}

    top = {r["kernel_name"]: (r["invocations"], r["total_ms"]) for r in skill("top_kernels")}
    kinds: dict[object, list[Event]] = defaultdict(list)
    for copy in truth.copies:
        kinds[copy.kind].append(copy)
    moved = {r["copyKind"]: (r["count"], r["total_mb"]) for r in skill("memory_transfers")}
    wanted = {k: (len(c), round(sum(e.bytes for e in c) / 1e6, 2)) for k, c in kinds.items()}
    return {
        "top_kernels": top == rounded(truth.sums(truth.kernels)),
        "memory_transfers": moved == wanted,
    }


def nsys_tui(program: str, file: Path, truth: Truth) -> dict[str, bool]:
    """nsys-tui: counts of ``info``, and every kernel in its Chrome JSON export."""
    said = subprocess.run([program, "info", str(file)], capture_output=True, text=True, timeout=120)
    ranges = sum(count for count, _ in truth.ranges().values())
    domains = len({r.pid for r in truth.data.rounds})  # a row of its own for each process
    info = f"Kernels: {len(truth.kernels)}  |  NVTX: {ranges + domains}" in said.stdout
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [program, "export", str(file), "--trim", "0", "1000", "-o", folder],
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        found: dict[str, list[float]] = defaultdict(list)
        for made in Path(folder).glob("*.json"):
            document = json.loads(made.read_text())
            events = document["traceEvents"] if isinstance(document, dict) else document
            for event in events:
                if event.get("ph") == "X" and event.get("cat") == "gpu_kernel":
                    found[event["name"]].append(event["dur"])
    got = {name: (len(us), round(sum(us) * 1000)) for name, us in found.items()}
    return {"info": info, "export": got == truth.sums(truth.kernels)}


HTA = """
import json, sys
from hta.common.trace_parser import parse_trace_dataframe
from hta.configs.parser_config import ParserConfig
_, frame, symbols = parse_trace_dataframe(sys.argv[1], ParserConfig.get_default_cfg())
names = symbols.sym_table
rows = zip(frame["name"], frame["cat"], frame["dur"])
print(json.dumps([[names[int(n)], names[int(c)], float(d)] for n, c, d in rows]))
"""


def hta(python: str, file: Path, truth: Truth) -> dict[str, bool]:
    """HolisticTraceAnalysis (Meta) reads the Chrome JSON export; its table has whole µs."""
    from llmprof.exports.formats import export_runs

    with tempfile.TemporaryDirectory() as folder:
        made = export_runs([file], "chrome", Path(folder) / "x.json")
        done = subprocess.run(
            [python, "-c", HTA, str(made)], capture_output=True, text=True, timeout=120, check=False
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    rows = json.loads(lines[-1]) if lines else []
    steps = [name for name, category, _ in rows if category == "decode"]
    work = [
        name for name, category, _ in rows
        if category not in ("decode", "prefill", "timing", "traced", "sampled", "copy", "api")
    ]  # fmt: skip
    same = (len(steps), len(work)) == (
        sum(r.steps for r in truth.data.rounds),
        len(truth.kernels),
    )
    return {"--to chrome: steps and kernels": same}


def parquetdir(program: str, file: Path, truth: Truth) -> dict[str, bool]:
    """nsys-ai reads the tables of ``--to parquetdir`` by DuckDB."""
    from llmprof.exports.formats import export_runs

    with tempfile.TemporaryDirectory() as folder:
        made = export_runs([file], "parquetdir", Path(folder) / "x.parquetdir")
        return {f"--to parquetdir: {k}": v for k, v in nsys_ai(program, made, truth).items()}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--nsys", action="append")
    options.add_argument("--bin", default="")
    chosen = options.parse_args()
    programs = chosen.nsys or [p for p in [shutil.which("nsys")] if p]
    lines = ["| report | reader | equal to truth |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.sqlite"
        truth = make(file)
        for nsys in programs:
            reader = f"nsys {version(nsys)}"
            for report, (old, check) in REPORTS.items():
                name = old if version(nsys).startswith("2022") else report
                if name:
                    same = equal(stats(nsys, report, file), check, truth)
                    lines.append(f"| {name} | {reader} stats | {'yes' if same else 'NO'} |")
            for rule, (old, check) in RULES.items():
                same = equal(analyze(nsys, rule, file), check, truth)
                name = old if version(nsys).startswith("2022") else rule
                lines.append(f"| {name} | {reader} analyze | {'yes' if same else 'NO'} |")
        readers: list[tuple[str, str, Callable[[str, Path, Truth], dict[str, bool]]]] = [
            ("nsys-ai", "nsys-ai", nsys_ai),
            ("nsys-ai", "nsys-ai", parquetdir),
            ("nsys-tui", "nsys-tui", nsys_tui),
            ("HolisticTraceAnalysis", "python", hta),
        ]
        for name, binary, ask in readers:
            program = shutil.which(binary, path=chosen.bin or None) if chosen.bin else None
            if program:
                for what, same in ask(program, file, truth).items():
                    lines.append(f"| {what} | {name} | {'yes' if same else 'NO'} |")
    print("\n".join(lines))
    return int(any("NO" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
