"""Traces of the ranks of one run, as one file: a process each, on one time axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmprof.runfile.foreign.source import Source
from llmprof.runfile.reader import RunFileReader
from llmprof.runfile.writing.copying import merge_files
from llmprof.runfile.writing.export_writer import set_source
from llmprof.traces.cache import converted


@dataclass(frozen=True)
class Opened:
    """A file as the user named it and as it is read."""

    named: Path
    read: Path


def joined(files: Sequence[Opened], progress: Callable[[str, float | None], None]) -> list[Path]:
    """The files to read: where several say that they are ranks of one world, one for all of them.

    Files of unlike worlds, of one rank twice, or without a wall clock stay runs of their own.
    """
    worlds: dict[tuple[str, int], dict[int, tuple[Opened, Source]]] = {}
    apart: set[tuple[str, int]] = set()
    for file in files:
        source = None if file.named == file.read else _source(file.read)
        if source is None or source.ranks is None or source.ranks[1] < 2:
            continue
        rank, world = source.ranks
        members = worlds.setdefault((source.format, world), {})
        if rank in members:
            apart.add((source.format, world))
        members[rank] = (file, source)
    found, done = [], set[Path]()
    groups = {
        member.read: members
        for key, members in worlds.items()
        if len(members) > 1 and key not in apart
        for member, _ in members.values()
    }
    for file in files:
        members = groups.get(file.read, {})
        if not members:
            found.append(file.read)
        elif file.read not in done:
            done |= {member.read for member, _ in members.values()}
            found.append(_merged([members[rank] for rank in sorted(members)], progress))
    return found


def _source(path: Path) -> Source | None:
    with RunFileReader(path) as reader:
        source, clock = reader.source()
        return source if clock else None


def _merged(
    members: Sequence[tuple[Opened, Source]], progress: Callable[[str, float | None], None]
) -> Path:
    files = [file for file, _ in members]
    first, last = files[0].named, files[-1].named
    source = Source(
        format=members[0][1].format,
        version=members[0][1].version,
        file=f"{first} … {last.name} ({len(files)} ranks)",
    )

    def make(part: Path) -> None:
        part.unlink()  # SQLite is to make it
        merge_files(
            [file.read for file in files], part, lambda share: progress("joining ranks", share)
        )
        set_source(part, source)

    return converted([file.named for file in files], make)
