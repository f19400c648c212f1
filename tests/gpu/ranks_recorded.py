"""Programs of several ranks that ``llmprof record`` records, as a part of ``run_ranks.py``."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ranks_checks import check, heading, kept, show
from ranks_programs import SAFE

ROOT = Path(__file__).resolve().parents[2]


def recorded(world: int, what: str, *patterns: str) -> list[list[dict[str, Any]]]:
    """The groups of a program under torchrun that was recorded, of the steps of each pattern."""
    program = Path(__file__).resolve().with_name("ranks_programs.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.sqlite"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [
                sys.executable, "-m", "llmprof", "record", "--headless", "-o", str(file), "--",
                *torchrun, "--nproc-per-node", str(world), str(program), what,
            ],
            capture_output=True, cwd=ROOT, env={**os.environ, **SAFE}, timeout=90, check=False,
        )  # fmt: skip
        said = (done.stdout + done.stderr).decode(errors="replace")[-1500:]
        if done.returncode or not file.exists():
            raise RuntimeError(f"record ended with {done.returncode}: {said}")
        if target := os.environ.get("OUT"):
            packed = lzma.compress(file.read_bytes(), preset=1)
            if len(packed) < 8 << 20:
                (Path(target) / f"{what}-{world}.sqlite.xz").write_bytes(packed)
        found = [groups_in(file, Path(folder) / f"{n}.json", p) for n, p in enumerate(patterns)]
    kept[what] = found
    return found


def groups_in(file: Path, out: Path, pattern: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "llmprof", "export", str(file), "--to", "json", "-o", str(out)]
    subprocess.run(
        [*command, "--step-range", pattern], cwd=ROOT, timeout=60, check=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    document: dict[str, Any] = json.loads(out.read_text())
    if not document["ranks"]:
        raise RuntimeError(f"no ranks of {pattern}: {document.get('ranks_missing')}")
    groups: list[dict[str, Any]] = document["ranks"]
    print(f"\n{pattern}: {len(groups)} groups\n")
    for group in groups:
        show(group)
    return groups


def from_nccl(world: int) -> None:
    heading(f"A recorded program of {world} ranks: bytes from what NCCL says of its calls")
    found: dict[tuple[str, int | None], float | None] = {}
    for groups in recorded(world, "recorded", "decode [1-3][0-9]", "decode [4-7][0-9]"):
        check(len(groups) == 1, f"one group: {[len(group['ranks']) for group in groups]} ranks")
        check(len(groups[0]["ranks"]) == groups[0]["world_size"] == world, f"{world} ranks")
        for one in groups[0]["collectives"]:
            found[one["kind"], one["bytes"]] = one["bus_gb_s"]
    # Launched one by one, in a graph, gathered.
    wanted = {("AllReduce", 8192), ("AllReduce", 10240), ("AllGather", 16 * world)}
    check(wanted == set(found), f"sizes: {list(found)}")
    for size in (8192, 10240):
        spot = kept.get(f"on_the_spot {world}", {}).get(str(size))
        seen = found.get(("AllReduce", size))
        if spot and seen:
            kernel = spot["kernel_bus_gb_s"]
            check(
                kernel / 1.3 <= seen <= kernel * 1.3,
                f"bus bandwidth of {size} bytes: {seen:.3f} GB/s, {kernel:.3f} on the spot",
            )


def sub_groups(world: int) -> None:
    heading(f"{world} ranks in groups of two, recorded: a group for each communicator")
    (groups,) = recorded(world, "groups", "decode *")
    numbers = [[line["rank"] for line in group["ranks"]] for group in groups]
    check(
        sorted(numbers) == [[n, n + 1] for n in range(0, world, 2)], f"groups of ranks: {numbers}"
    )
    sizes = [group["world_size"] for group in groups]
    check(set(sizes) == {2}, f"ranks of their communicators: {sizes}")
