"""Compile the library of engine_products' shape in q4f16_1, where TVM's compiler and nvcc are.

    python tests/gpu/bandwidth/mlc_library.py LIB.so [--arch sm_90a]

Half a minute; TVM leaves the kernels out where it finds no libcuda.so.1.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "support" / "weights"))
sys.path.insert(0, str(ROOT))

import mlc_tiny  # noqa: E402
from engine_products import LAYERS, SHAPE  # noqa: E402

from llmprof.models.mlc.library import inspect_library  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--arch", default="sm_90a")
    given = parser.parse_args()
    config = replace(SHAPE, num_hidden_layers=LAYERS, max_position_embeddings=2048)
    made = mlc_tiny.Build(
        config=config, target="cuda", arch=given.arch, quantization="q4f16_1", max_batch=1
    )
    file = mlc_tiny.compile_library(made, given.library)
    found = sorted(inspect_library(str(file)).binaries)
    if not found:
        file.unlink()
        raise SystemExit(f"{file}: no CUDA kernels came out; TVM needs libcuda.so.1 here")
    print(f"{file}: {file.stat().st_size} bytes, {found}")


if __name__ == "__main__":
    main()
