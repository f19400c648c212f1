"""Record tests/fixtures/cupti on a machine with a GPU, and check the tracer there.

    python3 tests/gpu/cupti/record_cupti_fixture.py OUT

Needs torch (CUDA) and numpy; llmprof itself is taken from this checkout. Each recording runs in a
process of its own, since one process has one CUPTI client:

- ``driver-full.spool.gz``: the CUDA driver alone by ctypes, everything known by construction;
- ``torch-kernels.spool.gz``, ``torch-full.spool.gz``: a small decode-like loop, eager and as CUDA
  graph, and a part with a known number of launches;
- ``truth.json``: the same loop under torch.profiler, and the known numbers.

Prints one line a check; exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support" / "truths")]

from llmprof.records import Unavailable  # noqa: E402 - the path above comes first
from llmprof.tracers.cupti.tracer import CuptiTracer, Level  # noqa: E402

STEPS, REPLAYS, ADDS, COPIES = 6, 10, 100, 5
PTX = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry llmprof_probe() { ret; }
"""
DRIVER_CALLS = {
    "kernel": "llmprof_probe",
    "launches": 11,
    "shape": [3, 2, 1, 64, 1, 1, 256],
    "copies": [5, 3, 2],
    "bytes_copied": 10 * 4096,
    "sets": 7,
    "bytes_set": 7 * 4096,
}


def started(path: Path, level: Level) -> CuptiTracer:
    tracer = CuptiTracer(path, level)
    why = tracer.start()
    if isinstance(why, Unavailable):
        sys.exit(f"tracer: {why.reason}")
    if tracer.missing:
        print("tracer: missing", tracer.missing)
    return tracer


def finish(tracer: CuptiTracer, round_id: int) -> None:
    facts = tracer.end_round(round_id)
    if isinstance(facts, Unavailable):
        sys.exit(f"tracer, round {round_id}: {facts.reason}")
    print(f"tracer, round {round_id}: {facts}")


def driver_child(path: Path) -> None:
    """Sets, copies and launches through libcuda alone (signatures: cuda.h)."""
    tracer = started(path, "full")
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    size = ctypes.c_size_t(4096)

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            sys.exit(f"{name} failed: CUresult {code}")

    call("cuInit", ctypes.c_uint(0))
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(8192))
    call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
    call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"llmprof_probe"))
    host = ctypes.create_string_buffer(4096)
    upper = ctypes.c_uint64(memory.value + 4096)
    shape = [ctypes.c_uint(n) for n in DRIVER_CALLS["shape"]]  # type: ignore[attr-defined]
    to_device, to_host, inside = DRIVER_CALLS["copies"]  # type: ignore[misc]

    def launch() -> None:
        call("cuLaunchKernel", function, *shape, None, None, None)

    launch()  # lazy loading happens here, before the round
    call("cuCtxSynchronize")
    tracer.begin_round(1)
    for _ in range(DRIVER_CALLS["sets"]):  # type: ignore[call-overload]
        call("cuMemsetD32_v2", memory, ctypes.c_uint(7), ctypes.c_size_t(1024))
    for _ in range(to_device):
        call("cuMemcpyHtoD_v2", memory, host, size)
    for _ in range(to_host):
        call("cuMemcpyDtoH_v2", host, memory, size)
    for _ in range(inside):
        call("cuMemcpyDtoD_v2", upper, memory, size)
    for _ in range(DRIVER_CALLS["launches"]):  # type: ignore[call-overload]
        launch()
    call("cuCtxSynchronize")
    finish(tracer, 1)
    tracer.close()
    print(json.dumps({"who": [os.getpid(), threading.get_native_id()]}))


def torch_parts() -> list[tuple[str, Callable[[], None], int | None, bool]]:
    """(name, loop, launches known by construction, is a graph); warmed up, deterministic."""
    import torch

    torch.manual_seed(0)
    options = {"device": "cuda", "dtype": torch.float16}
    width, context = 256, 64
    weights = [torch.randn(width, width, **options) * 0.05 for _ in range(6)]
    keys = torch.randn(context, width, **options)
    x = torch.randn(1, width, **options)

    def forward() -> torch.Tensor:
        h = x
        for _ in range(2):
            q = torch.nn.functional.rms_norm(h, (width,)) @ weights[0]
            h = h + torch.softmax(q @ keys.T, -1) @ keys @ weights[1]
            h = h + torch.nn.functional.silu(h @ weights[2]) @ weights[3]
        return h.argmax(-1)

    def eager() -> None:
        for _ in range(STEPS):
            forward().item()

    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()

    def replay() -> None:
        for _ in range(REPLAYS):
            graph.replay()
            torch.cuda.synchronize()

    counter = torch.zeros(1024, device="cuda")
    pinned = torch.ones(1024).pin_memory()

    def counted() -> None:
        for _ in range(ADDS):
            counter.add_(1.0)
        for _ in range(COPIES):
            counter.copy_(pinned, non_blocking=True)

    parts = [
        ("eager", eager, None, False),
        ("graph", replay, None, True),
        ("counted", counted, ADDS, False),
    ]
    for _, loop, _, _ in parts:
        loop()
        loop()
    torch.cuda.synchronize()
    return parts


def torch_child(path: Path, level: Level) -> None:
    tracer = started(path, level)  # before torch makes a CUDA context
    import torch

    for round_id, (_, loop, _, _) in enumerate(torch_parts(), 1):
        torch.cuda.synchronize()
        tracer.begin_round(round_id)
        loop()
        torch.cuda.synchronize()
        finish(tracer, round_id)
    tracer.close()


def profiler_child(path: Path) -> None:
    """What torch.profiler sees of each part: counts and summed ns by demangled kernel name."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CUDA]
    with profile(activities=kinds):  # CUPTI is attached before the graph is captured
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    parts: list[dict[str, Any]] = []
    for name, loop, launches, graph in torch_parts():
        torch.cuda.synchronize()
        with profile(activities=kinds) as prof:
            loop()
            torch.cuda.synchronize()
        exported = path.with_suffix(".trace.json")
        prof.export_chrome_trace(str(exported))
        events = json.loads(exported.read_text(encoding="utf-8"))["traceEvents"]
        kernels: dict[str, list[int]] = {}
        for event in events:
            if event.get("cat") == "kernel":
                entry = kernels.setdefault(event["name"], [0, 0])
                entry[0] += 1
                entry[1] += round(event["dur"] * 1000)
        count = {c: sum(e.get("cat") == c for e in events) for c in ("gpu_memcpy", "gpu_memset")}
        part = {"name": name, "launches": launches, "graph": graph, "kernels": kernels}
        parts.append({**part, "memcpy": count["gpu_memcpy"], "memset": count["gpu_memset"]})
    major, minor = torch.cuda.get_device_capability()
    facts = {
        "device": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    path.write_text(json.dumps({"parts": parts, "facts": facts}), encoding="utf-8")


def demangler() -> Callable[[str], str]:
    """``abi::__cxa_demangle``, which torch.profiler uses too."""
    library = ctypes.CDLL("libstdc++.so.6")
    demangle = library["__cxa_demangle"]
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]

    def plain(name: str) -> str:
        text = demangle(name.encode(), None, None, None)
        if not text:
            return name
        try:
            return ctypes.string_at(text).decode(errors="replace")
        finally:
            free(text)

    return plain


def run_child(what: str, path: Path) -> str:
    """Its stdout. It is shown too; a child that fails ends the script."""
    command = [sys.executable, __file__, str(path), "--child", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=240, check=False)
    print(f"--- {what}\n{done.stdout}", end="", flush=True)
    if done.returncode:
        sys.exit(f"{what} ended with exit code {done.returncode}")
    return done.stdout


def record(out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        told = run_child("driver", folder / "driver-full.spool")
        run_child("torch-kernels", folder / "torch-kernels.spool")
        run_child("torch-full", folder / "torch-full.spool")
        run_child("profiler", folder / "profiler.json")
        truth = json.loads((folder / "profiler.json").read_text(encoding="utf-8"))
        truth["driver_calls"] = {**DRIVER_CALLS, **json.loads(told.splitlines()[-1])}
        truth["demangled"] = demangled([*folder.glob("torch-*.spool")])
        for path in folder.glob("*.spool"):
            packed = gzip.compress(path.read_bytes(), 9, mtime=0)
            (out / f"{path.name}.gz").write_bytes(packed)
            print(f"{path.name}: {path.stat().st_size:,} bytes, packed {len(packed):,}")
    text = json.dumps(truth, indent=1, sort_keys=True)
    (out / "truth.json").write_text(text + "\n", encoding="utf-8")
    return verdict(out)


def demangled(spools: list[Path]) -> dict[str, str]:
    from llmprof.tracers.cupti.decode import Trace

    plain, found = demangler(), {}
    for path in spools:
        trace = Trace(path)
        found.update({name: plain(name) for name in trace.kernel_names.values()})
        trace.close()
    return found


def verdict(out: Path) -> int:
    from cupti_truth import check_folder

    failed = 0
    for good, what in check_folder(out):
        failed += not good
        print("ok  " if good else "FAIL", what)
    print(f"{failed} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the fixture")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out: Path = arguments.out
    children: dict[str, Callable[[], None]] = {
        "driver": lambda: driver_child(out),
        "torch-kernels": lambda: torch_child(out, "kernels"),
        "torch-full": lambda: torch_child(out, "full"),
        "profiler": lambda: profiler_child(out),
    }
    if arguments.child:
        children[arguments.child]()
        return 0
    return record(out)


if __name__ == "__main__":
    sys.exit(main())
