"""Opening a file that may be anything: read-only, nothing in it is executed.

A process killed while it wrote leaves ``FILE-journal``; the file must be brought back to its last
committed state before it can be read. SQLite does that when it may write the file and its folder,
and on a temporary copy otherwise.

A file in WAL mode (another program left it so) needs a file beside it even to be read. Where that
cannot be made, and where the file system has no locks, the file is opened as one that nobody
changes (``immutable``); with changes in its WAL, a temporary copy of both is.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from pathlib import Path

from llmprof.errors import RunFileError
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line
from llmprof.runfile.locks import locks_work
from llmprof.runfile.schema import statements

_MAGIC = b"SQLite format 3\0"
_UNCHANGED = "mode=ro&immutable=1"
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""Last bytes of a journal that names a super-journal (sqlite.org/fileformat2.html)."""


class OpenFile:
    """A read-only connection, ``sql``, and the temporary copy it may read from.

    Raises:
        RunFileError: missing, no file, not SQLite, truncated, damaged, or unfit to be read safely.
    """

    def __init__(self, path: Path) -> None:
        self.name = one_line(str(path))
        self._copy: OwnFolder | None = None
        _sniff(path, self.name)
        try:
            found = path.resolve()
            if _size(_journal(found)):
                found = self._recovered(found)
            try:
                self.sql = self._checked(found, "mode=ro")
            except sqlite3.OperationalError as why:
                again = self._other_way(found, why)
                if again is None:
                    raise
                self.sql = self._checked(*again)
        except OSError as why:
            self._drop_copy()
            raise RunFileError(f"{self.name}: cannot be read: {why.strerror}") from None
        except UNREADABLE as why:
            # SQLite names a broken schema in its message, and the name may be no text.
            self._drop_copy()
            broken = why if isinstance(why, sqlite3.Error) else sqlite3.DatabaseError(str(why))
            raise damaged(path, broken) from why
        except BaseException:
            self._drop_copy()
            raise

    def close(self) -> None:
        self.sql.close()
        self._drop_copy()

    def _other_way(self, path: Path, why: sqlite3.Error) -> tuple[Path, str] | None:
        """The path and SQLite's parameters to try next; ``None``: the error is what it is."""
        if "locked" in str(why) and not locks_work(path):
            if _size(_journal(path)):
                raise _unprotected(self.name, _journal(path))
            return path, _UNCHANGED
        if not _is_wal(path):
            return None
        wal = path.with_name(path.name + "-wal")
        if not _size(wal):
            return path, _UNCHANGED
        self._copy = OwnFolder("llmprof-copy-")
        copy = self._copy.path / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, copy.with_name(copy.name + "-wal"))
        return copy, "mode=rw"

    def _checked(self, path: Path, parameters: str) -> sqlite3.Connection:
        sql = _connect(path, parameters)
        try:
            self._check(sql, path)
        except BaseException:
            sql.close()
            raise
        return sql

    def _check(self, sql: sqlite3.Connection, path: Path) -> None:
        sql.execute("BEGIN")
        _refuse_code(sql, self.name)
        # The read lock keeps a commit from growing the file between header and size. SQLite itself
        # notices a lost page, but not a lost part of the last one.
        if missing := _cut_off(path):
            raise RunFileError(_truncated(self.name, missing))
        sql.execute("ROLLBACK")

    def _drop_copy(self) -> None:
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _recovered(self, path: Path) -> Path:
        """The file after SQLite undid an unfinished transaction, if the journal is one's.

        While the writer lives it holds a lock, and SQLite leaves its journal alone.
        """
        journal = _journal(path)
        try:
            with journal.open("rb") as file:
                file.seek(max(0, _size(journal) - len(_SUPER_JOURNAL)))
                tail = file.read()
        except FileNotFoundError:
            return path  # a live writer has just committed
        if tail == _SUPER_JOURNAL:
            # Undoing it may delete the file that the journal names. No run needs one.
            raise RunFileError(
                f"{self.name}: refused: {one_line(journal.name)} is no journal of llmprof"
            )
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            self._copy = OwnFolder("llmprof-copy-")
            copy = self._copy.path / path.name
            shutil.copyfile(path, copy)
            shutil.copyfile(journal, _journal(copy))
            path = copy
        if not locks_work(path):
            raise _unprotected(self.name, journal)
        sql = _connect(path, "mode=rw")
        try:
            sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            sql.close()
        return path


UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises: names of its columns may be no UTF-8."""


def damaged(path: Path, why: Exception) -> RunFileError:
    """What to tell about a file that SQLite fails on."""
    name, text = one_line(str(path)), str(why)
    if "locked" in text:
        if not locks_work(path):
            return RunFileError(
                f"{name}: its file system has no file locks: copy the file to a local disk"
            )
        return RunFileError(f"{name}: another program is writing it; try again")
    if "readonly" in text and _is_wal(path):
        return RunFileError(
            f"{name}: is in WAL mode and its folder cannot be written: copy it to another folder"
        )
    if missing := _cut_off(path):
        return RunFileError(_truncated(name, missing))
    return RunFileError(f"{name}: damaged: {one_line(text)}; copy it again from where it was made")


def _unprotected(name: str, journal: Path) -> RunFileError:
    return RunFileError(
        f"{name}: its file system has no locks, and {one_line(journal.name)} beside it has changes"
        " of a writer: copy both to a local disk when it has ended"
    )


def _truncated(name: str, missing: str) -> str:
    return f"{name}: truncated: {missing}; copy it again from where it was made"


def _sniff(path: Path, name: str) -> None:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            if (path / "sweep.json").is_file():
                raise RunFileError(
                    f"{name}: a sweep, not a run: llmprof open shows it alone; its runs are in"
                    f" {name}/runs"
                )
            raise RunFileError(f"{name}: is a folder, not a run file")
        if not stat.S_ISREG(path.stat().st_mode):
            raise RunFileError(f"{name}: is not a regular file")
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        raise RunFileError(f"{name}: no such file") from None
    except OSError as why:
        raise RunFileError(f"{name}: cannot be read: {why.strerror}") from None
    if not head:
        raise RunFileError(f"{name}: is empty: nothing was recorded")
    if not head.startswith(_MAGIC[: len(head)]):
        raise RunFileError(f"{name}: is no SQLite file; expected a run file made by llmprof")
    if len(head) < 100:
        raise RunFileError(f"{name}: truncated: {len(head)} bytes, not even a header")


def _cut_off(path: Path) -> str:
    """``N of M bytes`` if the file is shorter than its header says (fileformat2.html, 1.3)."""
    try:
        with path.open("rb") as file:
            head, size = file.read(100), os.fstat(file.fileno()).st_size
    except OSError:
        return ""
    page_size = int.from_bytes(head[16:18], "big")
    expected = int.from_bytes(head[28:32], "big") * (65536 if page_size == 1 else page_size)
    valid = head[24:28] == head[92:96]
    return f"{size} of {expected} bytes" if valid and size < expected else ""


def _refuse_code(sql: sqlite3.Connection, name: str) -> None:
    """A view, trigger or virtual table in place of a table would run what the file's author wrote.

    ``trusted_schema = OFF`` already keeps any expression in the schema from having side effects.
    """
    ours = {table.lower() for table in statements()}
    rows = sql.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    for kind, label, table, definition in rows:
        virtual = str(definition).upper().startswith("CREATE VIRTUAL")
        if (kind in ("view", "trigger") or virtual) and (
            {str(label).lower(), str(table).lower()} & ours
        ):
            what = f"{'virtual ' if virtual else ''}{kind} {label}"
            raise RunFileError(f"{name}: refused: it holds a {one_line(what, 80)}, no run has that")


def _is_wal(path: Path) -> bool:
    """By the versions of the format that reading needs (fileformat2.html, 1.3.3)."""
    try:
        with path.open("rb") as file:
            return file.read(20)[18:20] == b"\x02\x02"
    except OSError:
        return False


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    name = f"{path.as_uri()}?{parameters}"
    sql = sqlite3.connect(name, uri=True, isolation_level=None, timeout=2)
    sql.text_factory = lambda data: data.decode("utf-8", "replace")
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        sql.execute(f"PRAGMA {pragma}").fetchall()
    if "mode=ro" in parameters:
        sql.execute("PRAGMA query_only = ON")
    return sql


def _journal(path: Path) -> Path:
    return path.with_name(path.name + "-journal")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
