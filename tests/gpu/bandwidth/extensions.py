"""The CUDA extensions of the ExLlama packages, built while something else runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from checks import ROOT
from planted_kernels import capability


class Extensions:
    """Those of the packages that are there; what an earlier run left in ``folder`` is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        os.environ["LLMPROF_EXTENSIONS_DIR"] = str(folder)
        self._building: dict[str, subprocess.Popen[bytes] | None] = {}
        builder = [
            "nice",
            sys.executable,
            str(ROOT / "docker" / "build_extensions.py"),
            str(folder),
        ]
        # A builder that found a ready-made one would copy it onto itself.
        env = {k: v for k, v in os.environ.items() if k != "LLMPROF_EXTENSIONS_DIR"}
        env.setdefault("MAX_JOBS", "16")
        major, minor = capability()
        env.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
        for package in ("exllama", "exllamav2"):
            if importlib.util.find_spec(package) is None:
                continue
            self._building[package] = None
            if not list(folder.glob(f"{package}-*/*.so")):
                with self._log(package).open("wb") as log:
                    self._building[package] = subprocess.Popen(
                        [*builder, package], env=env, stdout=log, stderr=subprocess.STDOUT
                    )

    @property
    def packages(self) -> list[str]:
        return list(self._building)

    def built(self, package: str) -> bool:
        """Waits until its extension is there."""
        if package not in self._building:
            return False
        process, begin = self._building[package], time.monotonic()
        done = process is None or process.wait() == 0
        print(
            f"(waited {time.monotonic() - begin:.0f} s for the extension of {package})", flush=True
        )
        if not done:
            print(self._log(package).read_text(errors="replace")[-3000:])
        return done

    def _log(self, package: str) -> Path:
        return self._folder / f"{package}.log"
