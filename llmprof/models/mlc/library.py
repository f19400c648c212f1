"""A compiled library, judged by its bytes before anything loads it. Standard library only.

Loading a library runs its code, and a library for other hardware may end the process.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from llmprof.errors import ModelError
from llmprof.plaintext import one_line

_FATBIN = b"\x50\xed\x55\xba"
"""Magic of a CUDA fat binary, 0xBA55ED50 little-endian."""
_PTX, _ELF = 1, 2
_MACHINES = {62: "x86-64", 183: "aarch64"}


@dataclass(frozen=True)
class Library:
    """``binaries`` and ``ptx`` hold compute capabilities as major·10 + minor."""

    path: Path
    machine: str
    binaries: frozenset[int]
    ptx: frozenset[int]
    needs_cudart: bool
    """It registers its kernels with the CUDA runtime (FlashInfer), which must be loaded before."""

    @property
    def shown(self) -> str:
        return one_line(str(self.path))

    @property
    def cuda(self) -> bool:
        return bool(self.binaries or self.ptx or self.needs_cudart)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """A binary runs on its own major version from its minor on, PTX from its version on."""
        have = 10 * capability[0] + capability[1]
        if not self.binaries and not self.ptx:
            return True
        return any(b // 10 == have // 10 and b <= have for b in self.binaries) or any(
            p <= have for p in self.ptx
        )


def inspect_library(path: str) -> Library:
    """What kind of library ``path`` is.

    Raises:
        ModelError: no such file, or no shared library.
    """
    file = Path(path).expanduser()
    shown = one_line(str(file))
    try:
        with file.open("rb") as stream:
            header = stream.read(64)
            if header[:4] != b"\x7fELF" or len(header) < 20:
                raise ModelError(
                    f"{shown}: no shared library of Linux; give the .so that mlc_llm compile wrote"
                )
            kind, machine = struct.unpack_from("<HH", header, 16)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                end = _end(data)
                if end > len(data):
                    # The loader maps what is not there, and the process ends by SIGBUS.
                    raise ModelError(
                        f"{shown}: cut off: {len(data)} bytes, its tables name {end}; copy or"
                        " compile it again"
                    )
                binaries, ptx = _architectures(data)
                needs = data.find(b"__cudaRegisterFatBinary") >= 0
                tvm = data.find(b"__tvm_ffi") >= 0 or data.find(b"__tvm_") >= 0
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise ModelError(f"library {shown}: {reason}") from None
    if kind != 3 or not tvm:
        raise ModelError(f"{shown}: a library, but not one that TVM compiled")
    return Library(
        file,
        _MACHINES.get(machine, f"machine {machine}"),
        frozenset(binaries),
        frozenset(ptx),
        needs,
    )


def _end(data: mmap.mmap) -> int:
    """Where the last segment, section or table of a 64-bit ELF file ends (elf.h): section headers
    lie at the end of what a linker writes."""
    if len(data) < 64 or data[4] != 2:
        raise ValueError("no 64-bit ELF header")
    segments, sections = struct.unpack_from("<QQ", data, 32)
    size, count, entry, entries = struct.unpack_from("<HHHH", data, 54)
    end: int = max(segments + size * count, sections + entry * entries)
    for place in range(segments, segments + size * count, max(size, 1)):
        if size >= 56 and place + 56 <= len(data):
            offset, length = struct.unpack_from("<Q16xQ", data, place + 8)
            end = max(end, offset + length)
    return end


def _architectures(data: mmap.mmap) -> tuple[set[int], set[int]]:
    """Of all fat binaries inside. Header: magic u32, version u16, header size u16, size u64; each
    entry: kind u16, version u16, header size u32, payload size u64, …, architecture u32 at 28."""
    binaries: set[int] = set()
    ptx: set[int] = set()
    at = 0
    while (at := data.find(_FATBIN, at)) >= 0:
        if at + 16 > len(data):
            break
        version, header, size = struct.unpack_from("<HHQ", data, at + 4)
        end = min(at + header + size, len(data))
        entry = at + header
        while version == 1 and entry + 32 <= end:
            kind, _, entry_header, payload = struct.unpack_from("<HHIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            if entry_header < 32 or kind not in (_PTX, _ELF):
                break
            (ptx if kind == _PTX else binaries).add(architecture)
            entry += entry_header + payload
        at += len(_FATBIN)
    return binaries, ptx
