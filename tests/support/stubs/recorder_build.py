"""The recorder, the stub driver and a program for them, compiled for a test session."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmprof.native import build

SUPPORT = Path(__file__).parent
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@dataclass(frozen=True)
class Built:
    folder: Path
    recorder: Path
    program: Path
    payloads: Path
    """Attaches payloads to NVTX ranges."""

    def environment(self, spools: Path, **more: str) -> dict[str, str]:
        """As ``llmprof record`` sets it, with the stub driver on the library path."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.folder),
            "CUDA_INJECTION64_PATH": str(self.recorder),
            "NVTX_INJECTION64_PATH": str(self.recorder),
            "LLMPROF_RECORD_DIR": str(spools),
            # The stub libraries keep what they made until the process ends.
            "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_abort=0",
            **more,
        }


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def make(folder: Path, flags: tuple[str, ...] = SANITIZE) -> Built:
    cc = compiler()
    assert cc is not None
    recorder = folder / build.NAME
    build.compile_with([cc], recorder, flags)

    def compile_(*arguments: str) -> None:
        subprocess.run([cc, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", *flags, *arguments],
                       check=True)  # fmt: skip

    shared = ("-shared", "-fPIC", "-pthread")
    libraries = (("cuda_stub.c", "libcuda.so.1"), ("cupti_stub.c", "libcupti.so.13"))
    for source, name in libraries:
        compile_(*shared, "-o", str(folder / name), f"-Wl,-soname,{name}", str(SUPPORT / source))
    program = folder / "recorded_program"
    compile_("-o", str(program), str(SUPPORT / "recorded_program.c"),
             *(str(folder / name) for _, name in libraries), "-ldl")  # fmt: skip
    payloads = folder / "payload_program"
    compile_("-o", str(payloads), str(SUPPORT / "payload_program.c"), "-ldl")
    return Built(folder, recorder, program, payloads)
