"""One engine on two GPUs, and two processes on one GPU, recorded on real hardware. About a minute.

    python3 tests/gpu/run_devices.py

The programs below know nothing of llmprof and time their own work with CUDA events. Recorded by
``llmprof record``, each GPU's busy time must be what its events say, idle time during which the
other GPU worked must be called so, and so must idle time that another process filled. Prints one
line a check and exits 1 where one failed. Needs torch for CUDA, numpy and two GPUs (the checks of
the pipeline are left out with one), platformdirs; a C compiler for the recorder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
TURNS = """
import json, sys, time, torch
first, second, turn, turns = (int(a) for a in sys.argv[1:5])
name = sys.argv[5]
places = [first] if first == second else [first, second]
a = {d: torch.randn(4096, 4096, device=f"cuda:{d}", dtype=torch.float16) for d in places}
def work(d, n):
    with torch.cuda.device(d):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(n):
            torch.mm(a[d], a[d])
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
for d in places:
    work(d, 20)
period = 0.02
start = (int(time.time() / period) + 25) * period
spent = {d: [] for d in places}
for i in range(int(sys.argv[6])):
    at = start + i * period + turn * period / turns
    while time.time() < at:
        pass
    torch.cuda.nvtx.range_push(f"decode {i}")
    for d in places:
        spent[d].append(work(d, 20))
    torch.cuda.nvtx.range_pop()
open(name, "w").write(json.dumps(spent))
"""
failed = 0


def say(ok: bool, text: str) -> None:
    global failed
    failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)


def recorded(folder: Path, name: str, *command: str) -> dict:
    """The JSON document of one recording."""
    path = folder / f"{name}.sqlite"
    path.unlink(missing_ok=True)
    run = [sys.executable, "-m", "llmprof"]
    done = subprocess.run(
        [*run, "record", "--headless", "-o", str(path), "--", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    say(done.returncode == 0 and path.exists(), f"{name}: recorded, exit {done.returncode}")
    if not path.exists():
        print(done.stderr[-2000:])
        return {"engines": []}
    read = subprocess.run(
        [*run, "--headless", "--json", "--from", str(path), "--step-range", "decode *"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if read.returncode:
        say(False, f"{name}: {read.stderr[-500:]}")
        return {"engines": []}
    document: dict = json.loads(read.stdout)
    for warned in document["warnings"]:
        print(f"     ! {warned['scope']}: {warned['text'][:160]}")
    return document


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def causes(tracing: dict) -> dict[str, float]:
    found = (tracing["gap_causes"] or {}).get("causes", [])
    return {c["cause"]: c["ms_per_step"] for c in found}


def pipeline(folder: Path, program: Path) -> None:
    spent = folder / "pipeline.json"
    document = recorded(
        folder, "pipeline", sys.executable, str(program), "0", "1", "0", "1", str(spent), str(STEPS)
    )
    known = {int(d): median(v) for d, v in json.loads(spent.read_text()).items()}
    (engine,) = document["engines"] or [{}]
    gpu = engine["tracing"]["gpu"]
    for device in gpu["devices"]:
        busy, truth = device["busy_ms_per_step"], known[device["device"]]
        say(
            0.9 * truth <= busy <= 1.01 * truth,
            f"GPU {device['device']}: busy {busy:.3f} ms a step, its events say {truth:.3f} ms",
        )
        wall = device["busy_ns"] + device["idle_ns"]
        say(wall == gpu["busy_ns"] + gpu["idle_ns"], "busy + idle is the length of the steps")
    other = known[1 - gpu["device"]]
    found = causes(engine["tracing"])
    print(f"     causes of idle time of GPU {gpu['device']}: {found}")
    part = found.get("other GPU", 0.0)
    say(0.8 * other <= part <= 1.05 * other, f"other GPU {part:.3f} ms of {other:.3f} ms it worked")


def shared(folder: Path, program: Path) -> None:
    both = folder / "both.py"
    both.write_text(
        "import subprocess, sys\n"
        "made = [subprocess.Popen([sys.executable, sys.argv[1], '0', '0', str(k), '2',"
        " f'{sys.argv[2]}/shared{k}.json', sys.argv[3]]) for k in (0, 1)]\n"
        "sys.exit(max(p.wait() for p in made))\n"
    )
    document = recorded(
        folder, "shared", sys.executable, str(both), str(program), str(folder), str(STEPS)
    )
    say(len(document["engines"]) == 2, f"{len(document['engines'])} processes are engines")
    for engine in document["engines"]:
        (device,) = engine["tracing"]["gpu"]["devices"]
        taken, idle = device["other_processes_ns"], device["idle_ns"]
        say(0 < taken <= idle, f"{engine['label']}: others fill {taken / idle:.0%} of its idle")
    texts = " ".join(w["text"] for w in document["warnings"])
    say("idle is the engine's, not the GPU's" in texts, "and it is said")


def main() -> int:
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "turns.py"
        program.write_text(TURNS)
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if torch.cuda.device_count() > 1:
            pipeline(folder, program)
        else:
            print("one GPU: the pipeline over two is left out")
        shared(folder, program)
    print("failed" if failed else "all right")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
