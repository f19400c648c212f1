"""Bytes of the same kernels under Nsight Compute, each replayed alone."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import planted_kernels
from checks import NCU_AIM, say
from planted_kernels import PLANTED, build

HIDDEN, INNER, VOCAB = 4096, 11008, 32000
TRUE = {
    "qkv": 3 * HIDDEN * HIDDEN * 2 / 1e6,
    "o": HIDDEN * HIDDEN * 2 / 1e6,
    "gate+up": 2 * HIDDEN * INNER * 2 / 1e6,
    "down": HIDDEN * INNER * 2 / 1e6,
    "lm_head": HIDDEN * VOCAB * 2 / 1e6,
}
"""MB, fp16."""
GEMVS = """
import torch
shapes = {"qkv": (12288, 4096), "o": (4096, 4096), "gate+up": (22016, 4096),
          "down": (4096, 11008), "lm_head": (32000, 4096)}
like = {"device": "cuda", "dtype": torch.float16}
w = {n: [torch.randn(s, **like) for _ in range(3)] for n, s in shapes.items()}
x = {n: torch.randn(1, s[1], **like) for n, s in shapes.items()}
for i in range(3):
    for n in shapes:
        torch.nn.functional.linear(x[n], w[n][i])
torch.cuda.synchronize()
"""


def ncu(folder: Path) -> None:
    """Bytes of the same kernels, each replayed alone."""
    found = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(found).exists():
        print("\nncu is not there: no comparison")
        return
    print("\n### Under Nsight Compute (kernels replayed one by one)\n")
    print("| kernel | grid | known MB | ncu MB read | written |\n|---|---|---|---|---|")
    library = folder / "planted.so"
    if not library.exists():
        library = build(folder)
    planted_command = [sys.executable, planted_kernels.__file__, str(library), "", "1"]
    rows = ncu_rows(found, planted_command)
    for (name, grid), (true, _, _) in PLANTED.items():
        mine = [r for r in rows if r[0].startswith(name) and r[1] == grid]
        if not mine:
            say(False, f"ncu {name} {grid}: not seen")
            continue
        read, written = (sorted(r[i] for r in mine)[len(mine) // 2] for i in (2, 3))
        print(f"| {name} | {grid} | {true:.2f} | {read:.2f} | {written:.2f} |")
        say(abs(read / true - 1) <= NCU_AIM, f"ncu {name} {grid}: {read:.2f} of {true} MB")
    script = folder / "gemvs.py"
    script.write_text(GEMVS)
    rows = ncu_rows(found, [sys.executable, str(script)])
    for name, true in TRUE.items():
        near = [r for r in rows if abs(r[2] / true - 1) < 0.1]
        for r in {(r[0], r[1]): r for r in near}.values():
            print(f"| {name}: {r[0][:44]} | {r[1]} | {true:.2f} | {r[2]:.2f} | {r[3]:.2f} |")
            say(abs(r[2] / true - 1) <= NCU_AIM, f"ncu {name}: {r[2]:.2f} of {true:.2f} MB")


def ncu_rows(program: str, command: list[str]) -> list[tuple[str, int, float, float]]:
    """Name, grid x, MB read, MB written of each kernel."""
    metrics = "dram__bytes_read.sum,dram__bytes_write.sum"
    done = subprocess.run(
        [program, "--csv", "--page", "raw", "--print-units", "base", "--metrics", metrics,
         *command],
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    table: list[tuple[str, int, float, float]] = []
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        try:
            grid = int(row["Grid Size"].strip("()").split(",")[0])
            read, written = (float(row[m].replace(",", "")) / 1e6 for m in metrics.split(","))
        except (KeyError, ValueError):
            continue  # the row of units
        table.append((row["Kernel Name"], grid, read, written))
    if not table:
        print("ncu said:", (done.stdout + done.stderr)[-1500:])
    return table
