"""Build hook: the recorder, shell completions and the man page (from this version's parsers).

With LLMPROF_WHEEL_MACHINE=x86_64 or aarch64 the wheel has the recorder prebuilt.

    LLMPROF_WHEEL_MACHINE=x86_64 python -m build --wheel

Without it (editable installs, a wheel made from the sdist by pip) the wheel is pure Python, and the
recorder is compiled with ``cc`` at its first use.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MACHINE = os.environ.get("LLMPROF_WHEEL_MACHINE", "")


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return ["argparse-manpage>=4.6", "shtab>=1.7", *(["ziglang>=0.13"] if MACHINE else [])]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # a checkout can say: python -m llmprof.cli.shell_files FOLDER
            return
        self._made = tempfile.TemporaryDirectory()
        self._shell_files(build_data)
        if MACHINE:
            self._recorder(build_data)

    def _shell_files(self, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, self.root)
        try:
            from llmprof.cli.shell_files import FILES, write
        finally:
            sys.path.remove(self.root)
        made = Path(self._made.name) / "shell"
        write(made)
        build_data["shared_data"] |= {str(made / name): place for name, place in FILES.items()}

    def _recorder(self, build_data: dict[str, Any]) -> None:
        build = runpy.run_path(str(Path(self.root) / "llmprof/native/build.py"))
        if MACHINE not in build["TARGETS"]:
            raise SystemExit(
                f"LLMPROF_WHEEL_MACHINE={MACHINE}: one of {', '.join(build['TARGETS'])}"
            )
        library = build["prebuild"](Path(self._made.name), (MACHINE,))[0]
        place = f"llmprof/native/prebuilt/{MACHINE}/{library.name}"
        build_data["force_include"][str(library)] = place
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux2014_{MACHINE}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_made"):
            self._made.cleanup()
