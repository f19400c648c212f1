"""Whatever file a user names, as one that ``runfile.reader`` opens."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.runfile.foreign.nsys_rep import readable as nsys_readable
from llmprof.runfile.writing.export_writer import ExportWriter
from llmprof.traces.cache import converted

Progress = Callable[[str, float | None], None]

_SQLITE, _GZIP = b"SQLite format 3\0", b"\x1f\x8b"
_OTHERS = (
    (b"PK\x03\x04", "a ZIP archive: unpack it and open what is in it"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it (zstd -d) and open the result"),
    (b"\xfd7zXZ", "packed with xz: unpack it (xz -d) and open the result"),
    (b"BZh", "packed with bzip2: unpack it (bzip2 -d) and open the result"),
    (b"\x89HDF", "an HDF5 file: export with nsys export -t sqlite and open that"),
    (b"PAR1", "a Parquet file: llmprof opens run files and traces"),
    (b"\x7fELF", "a program or a library: nothing is recorded in it"),
    (b"GGUF", "a GGUF model: give it to an engine as model=FILE"),
)


def silent(_what: str, _share: float | None) -> None:
    """Nobody waits."""


def readable(path: Path, progress: Progress = silent) -> Path:
    """``path`` itself if it is SQLite, else what it was converted to.

    Raises:
        RunFileError: nothing that can be read; the text says what it is and what to do.
        UsageError: a ``.nsys-rep`` and no nsys.
    """
    if path.suffix == ".nsys-rep":
        return nsys_readable(path)
    if not path.is_file():
        return path  # the reader says what is wrong
    head = _head(path)
    if not head or head.startswith(_SQLITE[: len(head)]):
        return path
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return converted([path], lambda part: _convert(path, part, progress))
    raise RunFileError(f"{one_line(str(path))}: {_what(path, head)}")


def readable_all(paths: Sequence[Path], progress: Progress = silent) -> list[Path]:
    """The same for several files; those of the ranks of one run become one."""
    from llmprof.traces.ranks import Opened, joined

    files = [Opened(path, readable(path, progress)) for path in paths]
    return [f.read for f in files] if len(files) == 1 else joined(files, progress)


def _head(path: Path) -> bytes:
    """The first bytes of what is in it."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(_GZIP):
            with gzip.open(path) as unpacked:
                return unpacked.read(4096) or head
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return head
    except OSError as why:
        raise RunFileError(f"{one_line(str(path))}: cannot be read: {why.strerror}") from None
    return head


def _what(path: Path, head: bytes) -> str:
    """What a file is that cannot be opened, and what to do."""
    for magic, text in _OTHERS:
        if head.startswith(magic):
            return text
    if head.startswith(_GZIP):
        return "packed with gzip, but not whole: copy it again from where it was made"
    if head[:1] == b"\x0a" and (path.suffix in (".pftrace", ".perfetto-trace") or _packets(head)):
        return (
            "a Perfetto trace: open it in ui.perfetto.dev; llmprof reads the profiler's own file"
            " (torch.profiler: export_chrome_trace; rocprofv3: --output-format json)"
        )
    if path.suffix in (".qdstrm", ".ncu-rep"):
        return f"Nsight's own {path.suffix} file: export it with nsys export -t sqlite"
    return (
        "no SQLite file and no JSON: llmprof opens run files, exports of Nsight Systems (nsys"
        " export -t sqlite), and traces of torch.profiler and rocprofv3 (JSON, also .gz)"
    )


def _packets(head: bytes) -> bool:
    """Field 1, length-delimited, again and again: ``Trace.packet`` of Perfetto's protocol."""
    at = count = 0
    while at < len(head) and head[at] == 0x0A:
        size = shift = 0
        at += 1
        while at < len(head):
            byte = head[at]
            size |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if byte < 0x80 or shift > 28:
                break
        at += size
        count += 1
    return count > 1 or at > len(head)


def _convert(path: Path, part: Path, progress: Progress) -> None:
    from llmprof.traces.kineto.convert import convert as kineto
    from llmprof.traces.rocprof.convert import convert as rocprof
    from llmprof.traces.rocprof.convert import is_rocprof

    with ExportWriter(part).writing() as out:
        (rocprof if is_rocprof(path) else kineto)(path, out, progress)
