"""What ``run_ranks.py`` claims and prints, for its parts."""

from __future__ import annotations

import json
import time
from typing import Any

failures: list[str] = []
claims: list[dict[str, Any]] = []
kept: dict[str, Any] = {"claims": claims}
begun = time.monotonic()


def check(good: bool, text: str) -> None:
    print(f"- {'ok' if good else '**FAILED**'}: {text}", flush=True)
    claims.append({"holds": good, "claim": text})
    if not good:
        failures.append(text)


def heading(text: str) -> None:
    print(f"\n## {text} ({time.monotonic() - begun:.0f} s)\n", flush=True)


def show(group: dict[str, Any]) -> None:
    print(f"verdict: {group['words']}  \nclocks: {group['clocks']['words']}  ")
    late = group["lateness"]
    print(f"lateness: {json.dumps(late)}  ")
    for note in group["notes"]:
        print(f"note: {note}  ")
    print("\n| rank | wait | transfer | exposed | compute | idle | makes wait | critical |")
    print("|---|---|---|---|---|---|---|---|")
    for line in group["ranks"]:
        keys = ("wait_ms", "transfer_ms", "exposed_ms", "compute_ms", "idle_ms", "late_ms")
        row = " | ".join(f"{line[k]:.3f}" for k in keys)
        print(f"| {line['name']} | {row} | {line['late_steps']}/{group['steps']} |")
    print("\n| collective | a step | transfer µs | wait µs | bytes | alg GB/s | bus GB/s |")
    print("|---|---|---|---|---|---|---|")
    for one in group["collectives"]:
        rates = [one[k] for k in ("algorithm_gb_s", "bus_gb_s")]
        shown = " | ".join("n/a" if v is None else f"{v:.3f}" for v in rates)
        print(
            f"| {one['name']} | {one['per_step']:.1f} | {one['transfer_us']:.2f}"
            f" | {one['wait_us']:.2f} | {one['bytes']} | {shown} |"
        )
    print("\n| GPU | W | MiB | SM MHz | DRAM % | SM active % | NVLink GB/s | held back |")
    print("|---|---|---|---|---|---|---|---|")
    for gpu in group["gpus"]:
        keys = ("power_w", "memory_used_mib", "sm_clock_mhz", "dram_pct", "sm_active_pct")
        cells = [gpu[k] if gpu[k] is not None else gpu[f"{k}_reason"] for k in keys]
        link = gpu["nvlink_gb_s"]
        print(f"| {gpu['device']} | {' | '.join(map(str, cells))} | {link} | {gpu['throttle']} |")
