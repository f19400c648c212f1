"""The SQLite file under the writer: creation, transactions, lazy tables, interned strings.

A rollback journal (no WAL) because nsys opens files with ``immutable=1`` and would not see a WAL;
it also lets a process be killed at any time: the next one to open the file undoes the last call.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line
from llmprof.runfile import schema
from llmprof.runfile.codec import clean
from llmprof.runfile.locks import writable
from llmprof.runfile.pages.bound import insert_bound

if TYPE_CHECKING:
    from llmprof.runfile.pages.transfer import PageTransfer

_BUGS = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)
"""Subclasses of DatabaseError that mean a wrong call, not a disk in trouble."""

_PAGE = 16384
"""The largest that a file has."""


@dataclass
class Written:
    """What the file holds already; taken back with the transaction that wrote it."""

    tables: set[str] = field(default_factory=set)
    processes: dict[int, str] = field(default_factory=dict)
    """pid → label."""
    threads: set[int] = field(default_factory=set)
    domains: set[tuple[str, int]] = field(default_factory=set)
    """(name, pid)."""
    metric_types: set[tuple[int, int]] = field(default_factory=set)
    """(device, source)."""
    strings: int = 0
    rounds: int = 0
    stop_ns: int = 0
    """Latest time in the file, since the start of the run."""

    def copy(self) -> Written:
        return replace(
            self,
            tables=set(self.tables),
            processes=dict(self.processes),
            threads=set(self.threads),
            domains=set(self.domains),
            metric_types=set(self.metric_types),
        )


class RunDatabase:
    """An empty SQLite file at ``path``, and the state that must roll back with it."""

    def __init__(self, path: Path, unmarked: bool = False) -> None:
        """Create the file.

        Args:
            unmarked: a large trace without rounds of its own, of a recorded program or of another
                profiler.

        Raises:
            RunFileError: it exists and is not empty, its folder is missing or can't be written.
        """
        self.path = path
        self.written = Written()
        self._unmarked = unmarked
        self._strings: dict[str, int] = {}
        self._better: dict[str, str] = {}
        self._batch: Written | None = None
        """What the file held before the open batch wrote; set with its transaction."""
        self._batching = False
        self._size_before = 0
        self._pages: PageTransfer | None = None
        self._created = _claim(path)
        self._owner = threading.get_ident()
        self._sql = writable(path, check_same_thread=False)  # ``PageTransfer`` has a thread
        try:
            if unmarked:
                # A row takes 7 % less time than with SQLite's own 4096; a small file is larger.
                self._sql.execute("PRAGMA page_size = 16384")
            self._sql.execute("PRAGMA journal_mode = DELETE")
            # Enough for a killed process and a full disk; FULL would add an fsync to each round.
            self._sql.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as why:
            self.abandon()
            raise RunFileError(f"{one_line(str(path))}: cannot be created: {why}") from why

    @property
    def sql(self) -> sqlite3.Connection:
        """Raises ``sqlite3.Error``: rows of the open transaction could not be written."""
        return self._sql if self._pages is None else self._pages.sql

    def close(self) -> None:
        if self._pages is not None:
            self._pages.close()
        self._sql.close()

    def check_ours(self) -> None:
        """Inside the first transaction, which holds the lock: nobody else has written the file.

        Two programs may find the same empty file.

        Raises:
            RunFileError: somebody has.
        """
        (tables,) = self.sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            self._created = False
            raise _exists(one_line(str(self.path)))

    def abandon(self) -> None:
        """Close, and remove the file if it is ours: nothing was ever committed to it."""
        self.close()
        if self._created:
            with suppress(OSError):
                self.path.unlink()

    def string_id(self, text: str) -> int:
        """The id of ``text`` in StringIds; its row comes with the next transaction."""
        return self._strings.setdefault(clean(text), len(self._strings) + 1)

    def texts(self) -> list[str]:
        """All that ``string_id`` was asked for."""
        return list(self._strings)

    def rename(self, names: Mapping[str, str]) -> None:
        """Write other texts under the ids of these; to be called before the transaction ends."""
        self._better.update({clean(old): clean(new) for old, new in names.items()})

    def require(self, table: str) -> None:
        if table not in self.written.tables:
            for statement in schema.statements()[table]:
                self.sql.execute(statement)
            self.written.tables.add(table)

    def insert(
        self, table: str, rows: Sequence[Mapping[str, Any]], *, or_replace: bool = False
    ) -> None:
        """Rows that all have the same columns."""
        if rows:
            self.require(table)
            insert = insert_sql(table, rows[0], or_replace)
            self.sql.executemany(insert, [tuple(r.values()) for r in rows])

    def insert_columns(
        self,
        table: str,
        bound: Mapping[str, Any],
        fixed: Mapping[str, int],
        count: int,
        zero_is_null: Collection[str] = (),
    ) -> None:
        """``count`` rows, given column by column; ``fixed`` holds what is the same in every row.

        Rows of numpy columns go into the file as pages (``runfile.pages``), at the latest when the
        transaction ends. All others, and where SQLite does not allow it, are inserted.

        Args:
            bound: lists of Python values, or numpy arrays of integers.
            zero_is_null: columns whose 0 is written as NULL.
        """
        done = 0
        if self._pages is None and any(hasattr(column, "dtype") for column in bound.values()):
            from llmprof.runfile.pages.transfer import PageTransfer

            self._pages = PageTransfer(self._sql)
        if self._pages is not None:
            definition = schema.statements()[table][0]
            columns = {**bound, **fixed}
            done = self._pages.add(table, definition, columns, count, zero_is_null)
            if done < count and self._pages.waits(table):
                self._pages.settle()
        if done < count:
            insert_bound(self.sql, table, bound, fixed, range(done, count), zero_is_null)

    def replace_all(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Let ``rows`` be all that the table holds; without any, it is not created for it."""
        if table in self.written.tables:
            self.sql.execute(f"DELETE FROM {quoted(table)}")
        self.insert(table, rows)

    def check_columns(self, table: str, given: set[str]) -> None:
        """Raises ``ValueError``: an unknown column, or a required one left out."""
        columns, required = _columns_of(table)
        if unknown := given - columns:
            raise ValueError(f"{table}: no column {', '.join(sorted(unknown))}")
        if left_out := required - given:
            raise ValueError(f"{table}: needs column {', '.join(sorted(left_out))}")

    @contextmanager
    def batch(self) -> Iterator[None]:
        """The transactions within are one: a commit waits for the disk. All or nothing, at its end
        or at the first that fails; none is opened before there is something to write.

        Raises:
            RunFileError: as ``transaction``.
        """
        if self._batching:
            raise ValueError("a batch within a batch")
        self._batching = True
        try:
            yield
        except BaseException:
            if self._batch is not None:
                self.written, self._batch = self._batch, None
                self._roll_back()
            raise
        finally:
            self._batching = False
            if self._batch is not None:
                before, self._batch = self._batch, None
                self._commit(before)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing.

        Raises:
            RunFileError: disk full, I/O error, or another program holds the file.
        """
        if threading.get_ident() != self._owner:
            raise sqlite3.ProgrammingError("the run file was opened in another thread")
        before = self.written.copy() if self._batch is None else self._batch
        try:
            if self._batch is None:
                self.sql.execute("BEGIN IMMEDIATE")
                self._size_before = self._size()
                if self._batching:
                    self._batch = before
            yield
        except BaseException as why:
            self._undo(before, why, 0)
            raise
        if self._batch is None:
            self._commit(before)

    def _commit(self, before: Written) -> None:
        need = 0
        try:
            self._finish(before)
            need = self._size() - self._size_before + self._journal_size()
            self.sql.execute("COMMIT")
        except BaseException as why:
            self._undo(before, why, need)
            raise
        if self._pages is not None:
            self._pages.end()

    def _undo(self, before: Written, why: BaseException, need: int) -> None:
        """Raises ``RunFileError`` where the file is the cause."""
        self.written, self._batch = before, None
        self._roll_back()
        if isinstance(why, sqlite3.DatabaseError) and not isinstance(why, _BUGS):
            raise self._failure(why, need) from why

    def _finish(self, before: Written) -> None:
        """Rows that any call may have left to write: of pages, new strings, the recording's end."""
        if self._pages is not None:
            self._pages.settle()
        new = list(self._strings.items())[before.strings :]
        new = [(self._better.get(text, text), number) for text, number in new]
        self.sql.executemany("INSERT INTO StringIds (value, id) VALUES (?, ?)", new)
        self.written.strings = len(self._strings)
        if self.written.stop_ns != before.stop_ns:
            self.sql.execute(
                "UPDATE ANALYSIS_DETAILS SET duration = :ns, stopTime = startTime + :ns",
                {"ns": self.written.stop_ns},
            )

    def _size(self) -> int:
        """Bytes of the file as the open transaction sees it."""
        (pages,) = self.sql.execute("PRAGMA page_count").fetchone()
        (page_size,) = self.sql.execute("PRAGMA page_size").fetchone()
        return int(pages * page_size)

    def _file_size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _over_quota(self) -> bool:
        """SQLite tells a quota as it tells a full disk; a write of our own tells them apart."""
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as probe:
                probe.write(bytes(_PAGE))
        except OSError as why:
            return why.errno == errno.EDQUOT
        return False

    def _journal_size(self) -> int:
        try:
            return Path(f"{self.path}-journal").stat().st_size
        except OSError:
            return 0  # SQLite makes it with the first page that changes

    def _roll_back(self) -> None:
        if self._pages is not None:
            self._pages.forget()
        # SQLite has done it by itself after a full disk. If undoing fails too, the journal stays
        # and the next one to open the file does it.
        with suppress(sqlite3.Error):
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
        if self._pages is not None:
            self._pages.end()

    def _failure(self, why: sqlite3.DatabaseError, need: int) -> RunFileError:
        """``need``: bytes that file and journal wanted; 0 where it was not known yet."""
        path, rounds = one_line(str(self.path)), self.written.rounds
        kept = "1 round is kept" if rounds == 1 else f"{rounds} rounds are kept"
        if self._unmarked:
            kept = "what was written before is kept"
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as lost:
            return RunFileError(f"{path}: cannot be written: {why} ({lost.strerror}); {kept}")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and max(self._file_size(), need) + _PAGE > limit:
            return RunFileError(
                f"{path} has reached the limit on file sizes of {limit / 1e6:.2f} MB (ulimit -f);"
                f" {kept}"
            )
        if ("full" in str(why) or "I/O" in str(why)) and self._over_quota():
            return RunFileError(
                f"no room for {path}: a quota, since the disk has {free / 1e6:.0f} MB free;"
                f" use -o elsewhere; {kept}"
            )
        # A file system without room for the journal reports an I/O error, not a full disk.
        if "full" in str(why) or (free < 65536 and "I/O" in str(why)):
            wants = f"need {need / 1e6:.2f} MB, " if need > free else ""
            return RunFileError(
                f"disk full while writing {path} ({wants}{free / 1e6:.2f} MB free): "
                f"free space or use -o elsewhere; {kept}"
            )
        return RunFileError(f"{path}: cannot be written: {why}; {kept}")


@cache
def _columns_of(table: str) -> tuple[frozenset[str], frozenset[str]]:
    """All columns of a table, and those that must not be NULL."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.execute(schema.statements()[table][0])
        # cid, name, type, not null, default, key
        columns = empty.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return frozenset(c[1] for c in columns), frozenset(c[1] for c in columns if c[3])


def _claim(path: Path) -> bool:
    """Make sure that ``path`` is an empty file of ours; True if it was not there before."""
    name = one_line(str(path))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        return True
    except FileExistsError:
        pass
    except FileNotFoundError:
        folder = one_line(str(path.parent))
        raise RunFileError(
            f"{name}: folder {folder} does not exist: create it or use -o elsewhere"
        ) from None
    except OSError as why:
        raise RunFileError(
            f"{name}: cannot be created ({why.strerror}): use -o with a folder you can write to"
        ) from None
    try:
        found = path.stat()
    except OSError as why:
        raise RunFileError(f"{name}: cannot be used ({why.strerror}): use -o elsewhere") from None
    if not stat.S_ISREG(found.st_mode):
        raise RunFileError(f"{name}: is not a regular file: use -o with another name")
    if found.st_size:
        raise _exists(name)
    if not os.access(path, os.W_OK):
        raise RunFileError(f"{name}: cannot be written (no permission): use -o elsewhere")
    return False


def _exists(name: str) -> RunFileError:
    return RunFileError(f"{name}: exists already: remove it or use -o with another name")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def insert_sql(table: str, columns: Iterable[str], or_replace: bool = False) -> str:
    names = [quoted(c) for c in columns]
    verb = "INSERT OR REPLACE" if or_replace else "INSERT"
    marks = ", ".join("?" * len(names))
    return f"{verb} INTO {quoted(table)} ({', '.join(names)}) VALUES ({marks})"
