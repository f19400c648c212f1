"""What a program's file says about whether a recorder can get into it."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

from llmprof.plaintext import one_line

_HEADER = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
"""``Elf64_Ehdr``, elf.h."""
_SEGMENT = struct.Struct("<IIQQQQQQ")
"""``Elf64_Phdr``."""
_LOADER = 3
"""``PT_INTERP``."""
_PROGRAM, _POSITION_INDEPENDENT = 2, 3
"""``ET_EXEC``, ``ET_DYN``."""


def obstacle(command: str) -> str:
    """Why the CUDA driver, and with it the recorder, does not get into a program: one line that
    begins with its name. Empty where nothing is known to be in the way."""
    found = shutil.which(command)
    if found is None:
        return ""
    path = Path(found)
    name = one_line(path.name, 80)
    try:
        facts = path.stat()
        loader = _loader(path)
    except (OSError, struct.error):
        return ""
    if facts.st_mode & stat.S_ISUID and facts.st_uid != os.geteuid():
        return f"{name} runs setuid, and a recorder writes nothing where another user may say where"
    if loader == "":
        return f"{name} is linked statically: it loads neither the CUDA driver nor a recorder"
    if loader and Path(loader).name.startswith("ld-musl-"):
        return (
            f"{name} runs on musl ({one_line(loader, 80)}), and NVIDIA's driver and the recorder on"
            " glibc only"
        )
    return ""


def _loader(path: Path) -> str | None:
    """The ELF file's loader, empty for a static program; ``None``: it is none of the kind that
    is looked at (a script, another byte order).

    Raises:
        OSError: it cannot be read.
        struct.error: it is torn.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if head[:6] != b"\x7fELF\x02\x01":
            return None
        _, _, _, _, _, kind, _, _, _, at, _, _, _, size, count, *_ = _HEADER.unpack(head)
        if kind not in (_PROGRAM, _POSITION_INDEPENDENT) or size != _SEGMENT.size:
            return None
        file.seek(at)
        table = file.read(size * min(count, 256))
        for segment in range(len(table) // size):
            what, _, offset, _, _, length, *_ = _SEGMENT.unpack_from(table, segment * size)
            if what == _LOADER:
                file.seek(offset)
                return file.read(min(length, 4096)).rstrip(b"\0").decode(errors="replace")
    return ""
