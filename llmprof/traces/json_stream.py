"""A large JSON document read piece by piece: the elements of some arrays, and all other values.

The scanner is the standard library's, called once an element on a window of text. That is twice
as fast as ijson on yajl (``benchmarks/open_kineto.py``), and what is broken can be left out:
profilers have written bare ``inf``, unescaped backslashes, and files that end in the middle.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmprof.errors import RunFileError
from llmprof.plaintext import one_line

_GZIP = b"\x1f\x8b"
CHUNK = 1 << 20
"""Bytes read at a time."""
LONGEST = 1 << 26
"""Characters of one element, or of one value beside the array."""
FREE = 1 << 30
"""Bytes that any compressed file may become."""
RATIO = 200
"""More than that many times its compressed size is no trace: real ones are 10 to 40."""

_BLANK = re.compile(r"[\s,]*")
_ENDS = frozenset(',]}:"[{ \n\r\t')
"""What may follow a value."""
_NEXT = re.compile(r"\}\s*,\s*(?=\{)")
_BARE = re.compile(r"(?<=[:\[,])(\s*)-?(?:inf|nan|Inf|-?nan\(ind\))(?=\s*[,\]}])")
_ESCAPE = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')
_REPAIR = 1 << 17
"""Characters of a broken element that are mended."""


class NotJson(ValueError):
    """The text says what was found instead."""


@dataclass
class Document:
    """One file; ``values`` and what was wrong are known when ``elements`` has come to its end."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    """Everything beside the arrays, by its name from the top down."""
    broken: int = 0
    """Elements left out because they are no JSON."""
    cut: str = ""
    """Why the file ends before its end; empty where it is whole."""
    done_bytes: int = 0
    """Of the file as it lies on disk, for progress."""

    def elements(
        self,
        targets: Collection[str],
        exact: bool = False,
        advance: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, Any]]:
        """(target, element) of the arrays at ``targets``, in the order of the file.

        Args:
            targets: names from the top down, ``buffer_records.kernel_dispatch``. An array of
                objects on the way counts as its objects; a document that is an array is "".
            exact: numbers with many digits come as ``Decimal``: a double holds µs since 1970 to
                0.25 µs only.
            advance: called after each chunk that is read.

        Raises:
            NotJson: it does not begin like JSON.
            RunFileError: the file cannot be read, or it expands without end.
        """
        ways = {target[:at] for target in targets for at, c in enumerate(target) if c == "."}
        with _Window(self, exact, advance) as window:
            head = window.peek()
            if head == "[":
                window.step()
                for element in window.array():
                    yield "", element
            elif head == "{":
                yield from self._members(window, "", targets, ways)
            else:
                raise NotJson(repr(head) if head else "nothing")

    def _members(
        self, window: _Window, prefix: str, targets: Collection[str], ways: Collection[str]
    ) -> Iterator[tuple[str, Any]]:
        """What an object holds; ``window`` stands at its opening brace."""
        window.step()
        while (mark := window.peek()) == '"':
            try:
                name = prefix + str(window.value())
                if window.peek() != ":":
                    raise ValueError("no colon")
                window.step()
                inside = window.peek()
                if name in targets and inside == "[":
                    window.step()
                    for element in window.array():
                        yield name, element
                elif name in ways and inside == "{":
                    yield from self._members(window, f"{name}.", targets, ways)
                elif name in ways and inside == "[":
                    window.step()
                    while window.peek() == "{":
                        yield from self._members(window, f"{name}.", targets, ways)
                    if window.peek() == "]":
                        window.step()
                else:
                    self.values[name] = window.value()
            except ValueError:
                if not self.values and not window.ended:
                    raise NotJson("no name with a value") from None
                self.cut = self.cut or "a name without a whole value"
                return
            if self.cut:
                return
        if mark == "}":
            window.step()
            return
        if mark and not self.values:
            raise NotJson(repr(mark))
        self.cut = self.cut or "its end is missing"


class _Window(AbstractContextManager["_Window"]):
    """Text of the file from the place that is being looked at."""

    def __init__(self, document: Document, exact: bool, advance: Callable[[], None]) -> None:
        self._document = document
        self._advance = advance
        self._name = one_line(str(document.path))
        decoder: Any = json.JSONDecoder(strict=False, parse_float=_exact if exact else None)
        self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once
        self._text, self._at = "", 0
        self._rest = b""
        self.ended = False
        self._total = 0
        try:
            self._raw: IO[bytes] = document.path.open("rb")
            self._size = document.path.stat().st_size
        except OSError as why:
            raise RunFileError(f"{self._name}: cannot be read: {why.strerror}") from None
        magic = self._raw.read(2)
        self._raw.seek(0)
        self._file: Any = _Unpacked(self._raw) if magic == _GZIP else self._raw

    def __exit__(self, *_why: object) -> None:
        self._raw.close()

    def step(self) -> None:
        """Over one character."""
        self._at += 1

    def peek(self) -> str:
        """The next character that is no blank and no comma; empty at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """One value of any kind.

        Raises:
            ValueError: none, or not a whole one.
        """
        self.peek()
        while True:
            try:
                found, at = self._scan(self._text, self._at)
            except (StopIteration, ValueError, RecursionError):
                if self._long() or not self._more():
                    raise ValueError("no whole value") from None
                continue
            if self._text[at : at + 1] not in _ENDS and self._more():
                continue  # a number may go on in the next chunk: 0 of 0.5, 1 of 1e+5
            self._at = at
            return found

    def array(self) -> Iterator[Any]:
        """Elements up to the closing bracket, broken ones left out."""
        document, scan = self._document, self._scan
        while True:
            mark = self.peek()
            if mark in ("]", ""):
                self._at += 1
                if not mark:
                    document.cut = document.cut or "its end is missing"
                return
            try:
                while True:
                    found, at = scan(self._text, self._at)
                    yield found
                    text = self._text
                    # The usual ways to go on, without a regular expression.
                    while at < len(text) and text[at] in ", \n\r\t":
                        at += 1
                    self._at = at
                    if at >= len(text) or text[at] == "]":
                        break
            except (StopIteration, ValueError, RecursionError) as why:
                if self._may_be_cut(why) and not self._long() and self._more():
                    continue
                mended = self._mended()
                if mended is not None:
                    yield mended
                elif self._skip():
                    document.broken += 1
                else:
                    document.cut = document.cut or "the last event is not whole"
                    return

    def _may_be_cut(self, why: BaseException) -> bool:
        """The text ends too early, rather than being wrong."""
        if isinstance(why, RecursionError):
            return False
        if isinstance(why, json.JSONDecodeError):
            return why.msg.startswith("Unterminated") or why.pos >= len(self._text) - 16
        return True

    def _long(self) -> bool:
        return len(self._text) - self._at > LONGEST

    def _mended(self) -> Any:
        """The element after a repair; ``None``: it cannot be repaired."""
        end = _NEXT.search(self._text, self._at, self._at + _REPAIR)
        stop = end.start() + 1 if end else min(len(self._text), self._at + _REPAIR)
        piece = _ESCAPE.sub(r"\\\\", _BARE.sub(r"\1null", self._text[self._at : stop]))
        try:
            found, used = self._scan(piece, 0)
        except (StopIteration, ValueError, RecursionError):
            found, used = None, 0
        if isinstance(found, dict) and (end or piece[used:].lstrip()[:1] in ("]", ",")):
            self._at = stop if end else stop - len(piece) + used
            return found
        return None

    def _skip(self) -> bool:
        """Step over a broken element; False at the end of the file."""
        while True:
            found = _NEXT.search(self._text, self._at)
            if found is not None:
                self._at = found.end()
                return True
            self._at = max(self._at, len(self._text) - 64)
            if not self._more():
                return False

    def _more(self) -> bool:
        """Another chunk; False at the end of the file, or where it cannot be read on."""
        if self.ended:
            return False
        document = self._document
        try:
            # An element that is not whole is looked at again with each reading: twice as much
            # each time makes a long one cost its length, not the square of it.
            data = self._file.read(max(CHUNK, len(self._text) - self._at))
        except (EOFError, zlib.error) as why:
            data, document.cut = b"", f"the compressed data ends badly ({one_line(str(why), 80)})"
        except OSError as why:
            raise RunFileError(f"{self._name}: cannot be read: {why.strerror or why}") from None
        self._total += len(data)
        if self._file is not self._raw and self._total > max(FREE, RATIO * self._size):
            raise RunFileError(
                f"{self._name}: refused: {self._size:,} bytes become more than {self._total:,};"
                " no trace is packed like that; unpack it yourself if you trust it"
            )
        with suppress(OSError):
            document.done_bytes = self._raw.tell()
        self._advance()
        data = self._rest + data
        self.ended = len(data) == len(self._rest)
        text = data.decode("utf-8", "replace")
        if self._total == len(data):
            text = text.removeprefix("\ufeff")
        self._rest = b""
        if not self.ended and text.endswith("\ufffd"):
            # A character may be cut in two; at most three bytes of it are here.
            for count in range(1, min(3, len(data)) + 1):
                if data[-count] >= 0xC0:
                    text, self._rest = data[:-count].decode("utf-8", "replace"), data[-count:]
                    break
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(text) or not self.ended


class _Unpacked:
    """A gzip file read in pieces. ``gzip.GzipFile`` loses what comes before a bad end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._engine = zlib.decompressobj(wbits=31)

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes, none at the end.

        Raises:
            EOFError: it ends in the middle.
            zlib.error: it is damaged.
        """
        while True:
            if self._engine.eof:
                rest = self._engine.unused_data or self._raw.read(1 << 16)
                if not rest.startswith(_GZIP):
                    return b""  # zeros, or what some tool put behind it
                self._engine = zlib.decompressobj(wbits=31)
            else:
                rest = self._engine.unconsumed_tail or self._raw.read(1 << 16)
            if not rest:
                raise EOFError("it ends in the middle")
            found = self._engine.decompress(rest, count)
            if found:
                return found


def _exact(text: str) -> Any:
    from decimal import Decimal

    return float(text) if len(text) < 17 else Decimal(text)
