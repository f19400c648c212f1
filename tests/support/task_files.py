"""The files of ``docs/tasks.md``, each with one answer planted in it.

python tests/support/task_files.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    import rooms  # noqa: F401

import dram_factory  # noqa: E402
import kineto_factory  # noqa: E402
import ranks_factory  # noqa: E402
import rundata_factory  # noqa: E402
import sweep_factory  # noqa: E402
from ranks_run import run_of  # noqa: E402
from runfile_factory import write_run  # noqa: E402

FIXTURES = HERE.parent / "fixtures"
SLOW = 9
"""The step of the vLLM trace that a call of cudaMalloc holds up."""


def make(folder: Path) -> Path:
    """All of them, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    kineto_factory.write(folder / "vllm.json.gz", kineto_factory.document(_vllm()))
    for name, source in (("engines", "h100_graph"), ("host", "h100_host")):
        shutil.copy(FIXTURES / f"{source}.sqlite", folder / f"{name}.sqlite")
    kinds = [
        replace(kind, name=f"gemv_{name}")
        for kind, name in (
            (dram_factory.READ_FIRST, "down"),
            (dram_factory.EVEN, "qkv"),
            (dram_factory.SPIN_FIRST, "o"),
        )
    ]
    norm = dram_factory.NORM
    made = dram_factory.strobe((norm, kinds[1], dram_factory.SHORT, kinds[0], norm, kinds[2]),
                               steps=120)  # fmt: skip
    dram_factory.dram_run(folder / "memory.sqlite", made)
    members = ranks_factory.group(2, 12, host_ns={1: 400_000})
    run_of(folder / "ranks.sqlite", members)
    for name, factor in (("old", 1.0), ("new", 0.9)):
        write_run(folder / f"{name}.sqlite", _version(factor))
    sweep_factory.made_store(folder / "sweep")
    return folder


def _vllm(steps: int = 16, kernels: int = 60) -> list:
    """Decode steps of four requests, each a CUDA graph; ``SLOW`` waits for memory before it."""
    host, found, at = 77, [], kineto_factory.BASE_US
    event = kineto_factory.event
    for n in range(steps):
        late = 6_000.0 if n + 1 == SLOW else 0.0
        kv = 4 * (n + 100)
        text = f"execute_4_context_0(sq0sk0sqsq0sqsk0)_generation_4(sq4sk{kv}sqsq4sqsk{kv})"
        found.append(event("user_annotation", text, at, 3_900.0 + late, host, host))
        if late:
            found.append(event("cuda_runtime", "cudaMalloc", at + 40, late, host, host,
                               correlation=90_000))  # fmt: skip
        launch = at + 60 + late
        found.append(event("cuda_runtime", "cudaGraphLaunch", launch, 200.0, host, host,
                           correlation=n + 1))  # fmt: skip
        start = launch + 120
        for i in range(kernels):
            name = ("nvjet_tst_64x8", "flash_fwd_splitkv_kernel", "rms_norm_kernel")[i % 3]
            length = (80.0, 40.0, 5.0)[i % 3]
            found.append(event(
                "kernel", name, start, length, 0, 7, device=0, context=1, stream=7,
                correlation=n + 1, grid=[132, 1, 1], block=[128, 1, 1],
                **{"registers per thread": 128, "shared memory": 49152, "graph node id": i + 1},
            ))  # fmt: skip
            start += length + 1.0
        found.append(event("cuda_runtime", "cudaStreamSynchronize", launch + 210,
                           start - launch - 200, host, host, correlation=80_000 + n))  # fmt: skip
        at += 4_000.0 + late
    return found


def _version(factor: float):  # type: ignore[no-untyped-def]
    """One engine, eight rounds, ``factor`` times the speed."""
    rounds = [
        rundata_factory.decode_round(
            0, index, [(10 + 0.01 * (index % 3)) / factor] * 32, start_ms=1000.0 * index
        )
        for index in range(8)
    ]
    return rundata_factory.run_data([rundata_factory.engine(0, "torch")], rounds)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
