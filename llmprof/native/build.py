"""The recorder as a shared library: the one in the wheel, else compiled once into the cache.

Standard library only, and importable on its own: the build of a wheel runs this file before
llmprof can be imported (``python llmprof/native/build.py OUT_FOLDER``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
NAME = "libllmprof_recorder.so"
FLAGS = (
    "-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
LIBRARIES = ("-ldl", "-lpthread")
TARGETS = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17"}
"""Machine → target of ``zig cc``: the oldest glibc that manylinux2014 promises."""


class BuildError(Exception):
    """The recorder cannot be had here; one line."""


def library(cache: Path) -> Path:
    """The recorder for this machine: prebuilt in the package, or compiled at the first use.

    Args:
        cache: folder that a compiled recorder is kept in, by the hash of its sources.

    Raises:
        BuildError: neither is there, or the compiler failed.
    """
    if platform.system() != "Linux":
        raise BuildError(f"programs can be recorded on Linux only, not on {platform.system()}")
    prebuilt = SOURCES / "prebuilt" / platform.machine() / NAME
    if prebuilt.is_file():
        return prebuilt
    kept = cache / f"recorder-{_digest()}" / NAME
    if not kept.is_file():
        compile_with(_compiler(), kept)
    return kept


def sources() -> list[Path]:
    return sorted(SOURCES.glob("*.c"))


def compile_with(compiler: list[str], output: Path, flags: tuple[str, ...] = ()) -> None:
    """Compile to ``output``, which appears whole or not at all.

    Raises:
        BuildError: the compiler failed or there is no room; with its first error.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            made = Path(scratch) / output.name
            command = [*compiler, *FLAGS, *flags, "-o", str(made), *map(str, sources())]
            # Its temporary files too: a container may have no other folder that can be written.
            done = subprocess.run(
                [*command, *LIBRARIES],
                capture_output=True,
                text=True,
                env={**os.environ, "TMPDIR": scratch},
            )
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                lines = errors or done.stderr.splitlines() or ["no message"]
                raise BuildError(f"{compiler[0]} cannot compile the recorder: {lines[0].strip()}")
            made.replace(output)
    except OSError as why:
        raise BuildError(
            f"the recorder cannot be kept in {output.parent}: {why.strerror}: set XDG_CACHE_HOME"
            " to a folder that can be written, or install llmprof from its wheel"
        ) from None


def prebuild(folder: Path, machines: tuple[str, ...] = tuple(TARGETS)) -> list[Path]:
    """Cross-compile for machines of ``TARGETS`` with ``ziglang`` (from PyPI), stripped.

    Raises:
        BuildError: ziglang is not installed, or a compilation failed.
    """
    if subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True).returncode:
        raise BuildError("ziglang is not installed: pip install ziglang")
    made = []
    for machine in machines:
        output = folder / machine / NAME
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[machine]]
        compile_with(zig, output, ("-s",))
        made.append(output)
    return made


def _digest() -> str:
    """Of the sources and of what else makes the result."""
    seen = hashlib.sha256(repr((FLAGS, platform.machine(), platform.libc_ver())).encode())
    for path in [*sources(), *sorted(SOURCES.glob("*.h"))]:
        seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def _compiler() -> list[str]:
    """``CC`` where it is set, else cc, gcc or clang."""
    wanted = os.environ.get("CC", "").split()
    if wanted and shutil.which(wanted[0]):
        return wanted
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        f"no prebuilt recorder for {platform.machine()} in this installation and no C compiler:"
        " install gcc, or llmprof from its wheel"
    )


if __name__ == "__main__":
    try:
        for path in prebuild(Path(sys.argv[1])):
            print(path)
    except BuildError as why:
        sys.exit(f"build.py: {why}")
