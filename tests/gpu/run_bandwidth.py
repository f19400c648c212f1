"""DRAM bandwidth of single kernels on a real GPU, against what is known about them.

    python3 tests/gpu/run_bandwidth.py [--wheels DIR] [--mlc-library LIB.so] [--keep DIR]
                                       [--only planted|torch|quantised|ncu]
    python3 tests/gpu/run_bandwidth.py --tables RUN.sqlite …    # the tables once more, anywhere

Needs torch for CUDA, numpy, nvcc; ncu for the comparison. ``--wheels`` is a folder of wheels that
the interpreter lacks (nvtx, platformdirs, nvidia-ml-py, threadpoolctl; exllama, exllamav2, ninja,
rich; apache-tvm): they are unpacked, nothing is installed. Where exllama and exllamav2 are there,
their extensions are built beside the first parts, which takes two minutes on 16 cores.
Three minutes on an H100. Prints markdown tables; exit code 1 if a check failed.

* planted: kernels of our own that read a known number of bytes at a known time
* torch: Llama-2-7B in fp16 in a CUDA graph; bytes a launch against the weights' shapes
* quantised: the same for ExLlama v1 and v2 (GPTQ, EXL2), and for q4f16_1 in TVM's virtual machine
  with ``--mlc-library`` (``bandwidth/mlc_library.py`` makes one)
* ncu: the same kernels under Nsight Compute, replayed
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).with_name("bandwidth"))]

import engine_products  # noqa: E402
import planted_kernels  # noqa: E402
import replayed  # noqa: E402
from checks import failed, guarded  # noqa: E402
from extensions import Extensions  # noqa: E402

PARTS = ("planted", "torch", "quantised", "ncu")


def unpacked(wheels: Path) -> str:
    """A folder with the contents of the wheels, for sys.path."""
    folder = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for script in Path(folder).glob("*.data/scripts/*"):  # ninja
        script.chmod(0o755)
        os.environ["PATH"] = f"{script.parent}:{os.environ['PATH']}"
    return folder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path, action="append", default=[])
    parser.add_argument("--mlc-library", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--tables", type=Path, nargs="+", metavar="RUN.sqlite",
                        help="only the tables of runs that are there; needs no GPU")  # fmt: skip
    parser.add_argument("--layers", type=int, default=32, help="of the engines of --tables")
    given = parser.parse_args()
    if given.tables:
        for file in given.tables:
            if file.stem == "planted":
                planted_kernels.tables(file)
            else:
                engine_products.again(file.resolve(), given.layers)
        return 1 if failed else 0
    chosen = given.only or PARTS
    paths = [str(ROOT), *map(unpacked, given.wheels)]
    sys.path += paths[1:]
    os.environ["PYTHONPATH"] = ":".join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(":")
    folder = given.keep or Path(tempfile.mkdtemp(prefix="bandwidth-"))
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("nvidia-smi") is None:
        sys.exit("no NVIDIA GPU here: nvidia-smi was not found")
    query = "name,driver_version,clocks.max.mem"
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print("GPU:", smi.stdout.strip(), "| python", sys.version.split()[0])
    extensions = Extensions(folder) if "quantised" in chosen else None
    if "planted" in chosen:
        guarded("planted", planted_kernels.planted, folder)
    if "torch" in chosen:
        guarded("torch", engine_products.torch, folder)
    if "ncu" in chosen:
        guarded("ncu", replayed.ncu, folder)
    if extensions is not None:
        library = given.mlc_library.resolve() if given.mlc_library else None
        guarded("quantised", lambda at: engine_products.quantised(at, library, extensions), folder)
    print("\nfailed:", failed or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
