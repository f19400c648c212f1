"""Build the ExLlama packages' CUDA extensions without a GPU.

    PYTHON build_extensions.py DIR [exllama] [exllamav2] [exllamav3]

nvcc is that of the system or, without one, of NVIDIA's wheels in this environment. Extensions are
kept under DIR as ``LLMPROF_EXTENSIONS_DIR=DIR`` looks for them, one real file for all architectures
of ``TORCH_CUDA_ARCH_LIST`` and a link for each further one.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import time
from importlib import import_module, metadata
from pathlib import Path

from llmprof.engines.exllama.extension_build import (
    extension_folder,
    extension_import,
    keep_extension,
)

# package → (its extension, the module whose import builds it)
PACKAGES = {
    "exllama": ("exllama_ext", "exllama.model"),
    "exllamav2": ("exllamav2_ext", "exllamav2"),
    "exllamav3": ("exllamav3_ext", "exllamav3"),
}


def architectures(text: str) -> list[tuple[int, int]]:
    """``"8.0;9.0a 12.0+PTX"`` → ``[(8, 0), (9, 0), (12, 0)]``."""
    found = re.findall(r"(\d+)\.(\d)[a-z]?(?:\+PTX)?(?=[;\s]|$)", text)
    if not found:
        sys.exit(f"TORCH_CUDA_ARCH_LIST={text!r}: expected something like 8.0;9.0")
    return [(int(major), int(minor)) for major, minor in found]


def toolkit_of_wheels(site_packages: Path) -> Path | None:
    """NVIDIA's CUDA 13 wheels share one tree that is a toolkit but for two names; they are added.

    torch links with ``-L$CUDA_HOME/lib64 -lcudart``.
    """
    home = site_packages / "nvidia/cu13"
    runtimes = sorted((home / "lib").glob("libcudart.so.*"))
    if not (home / "bin/nvcc").exists() or not runtimes:
        return None
    for link, target in ((home / "lib64", "lib"), (home / "lib/libcudart.so", runtimes[0].name)):
        if not link.exists():
            link.symlink_to(target)
    return home


def main() -> None:
    target = Path(sys.argv[1])
    chosen = sys.argv[2:] or list(PACKAGES)
    if unknown := set(chosen) - set(PACKAGES):
        sys.exit(f"no such package: {' '.join(sorted(unknown))}; there are {' '.join(PACKAGES)}")
    wanted = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if shutil.which("nvcc") is None:
        home = toolkit_of_wheels(Path(sysconfig.get_path("purelib")))
        if home is not None:
            os.environ["CUDA_HOME"] = str(home)  # read when torch is imported, below
    for package in chosen:
        extension, module = PACKAGES[package]
        begin = time.monotonic()
        version = metadata.version(package)
        folders = [extension_folder(package, version, capability) for capability in wanted]
        with extension_import(package, extension, folders[0], lambda phase, share: None):
            import_module(module)
        real = keep_extension(extension, folders[0], target)
        for folder in folders[1:]:
            link = target / folder / real.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("..", folders[0], real.name))
        size_mib = real.stat().st_size / 2**20
        seconds = time.monotonic() - begin
        print(f"{package} {version}: {size_mib:.0f} MiB in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
