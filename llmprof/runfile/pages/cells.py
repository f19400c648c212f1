"""Columns of integers to cells of a table's leaf pages, many rows at once.

https://www.sqlite.org/fileformat2.html: a cell (1.6, "Table B-Tree Leaf Cell") is the payload's
length, the rowid and the payload; the payload is a record (2.1): the length of its header, a serial
type for each column, the values. Lengths, rowids and serial types are varints. Each column has one
serial type in all rows of a block where it is not NULL, so rows with the same NULLs have cells of
one length: a structured array.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_NULL, _ZERO, _ONE = 0, 8, 9
_WIDTHS = {_NULL: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, _ZERO: 0, _ONE: 0}
"""Serial type → bytes of the value: integers are big-endian two's complement."""
_WORDS: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((0, 1, 0),),
    2: ((0, 2, 0),),
    3: ((0, 1, 2), (1, 2, 0)),
    4: ((0, 4, 0),),
    6: ((0, 2, 4), (2, 4, 0)),
    8: ((0, 8, 0),),
}
"""Width → the words that make a value: where in it, bytes, where in a little-endian integer."""
MOST_COLUMNS = 64
"""The header's length is then a varint of one byte, as the serial types are."""
MOST_NULLABLE = 3
"""Columns of a block that are NULL in some rows: eight kinds of rows."""
MOST_ROWS = 1 << 19
"""Of one table in one image."""
_FIRST_ROWID, _ROWID_BYTES = 1 << 14, 3
"""Rowids from here to 2²¹ are varints of three bytes. SQLite gives the rows new ones."""


class Column(NamedTuple):
    """One column of a block."""

    serial: int = _NULL
    values: Array | None = None
    """Contiguous native integers of at least the serial type's width; ``None``: all rows have
    ``value``."""
    value: int = 0
    nulls: Array | None = None
    """bool, where it is NULL; ``None``: nowhere, or everywhere (the serial type says so)."""


ALL_NULL = Column()


def constant(value: int) -> Column:
    """A column that is the same in every row.

    Raises:
        OverflowError: not an integer of SQLite's.
    """
    if value in (0, 1):
        return Column(_ONE if value else _ZERO)
    return Column(_serial(value, value), value=value)


def varying(values: Array, zero_is_null: bool = False) -> Column:
    """Integers of any type, at least one.

    Raises:
        OverflowError: an unsigned one above SQLite's.
    """
    values = np.ascontiguousarray(values)
    serial = _serial(int(values.min()), int(values.max()))
    if values.dtype.itemsize < _WIDTHS[serial] or not values.dtype.isnative:
        values = values.astype(np.int64)
    nulls = values == 0 if zero_is_null else None
    if nulls is not None and not nulls.any():
        nulls = None
    return Column(serial, values, nulls=nulls)


def _serial(low: int, high: int) -> int:
    for serial in range(1, 7):
        most = 1 << 8 * _WIDTHS[serial] - 1
        if -most <= low and high < most:
            return serial
    raise OverflowError("an integer does not fit into 64 bits")


class Shape(NamedTuple):
    """What cells with the same columns that are NULL have in common."""

    dtype: np.dtype[Any]
    """``rowid``, and each word of the values that vary: ``"column.word"``."""
    template: Array
    """One cell as void, with all that does not vary."""

    @property
    def length(self) -> int:
        return self.dtype.itemsize


def shape_of(columns: Sequence[Column]) -> Shape:
    """Of cells with these columns, in the order of the table's definition, none of them NULL."""
    return _shape(tuple((c.serial, c.values is not None, c.value) for c in columns))


@lru_cache(maxsize=64)
def _shape(columns: tuple[tuple[int, bool, int], ...]) -> Shape:
    header = bytes([1 + len(columns), *(serial for serial, _, _ in columns)])
    length = len(header) + sum(_WIDTHS[serial] for serial, _, _ in columns)
    lead = varint(length)
    names, formats, offsets = ["rowid"], [f"V{_ROWID_BYTES}"], [len(lead)]
    at, body = len(lead) + _ROWID_BYTES + len(header), b""
    for number, (serial, varies, value) in enumerate(columns):
        width = _WIDTHS[serial]
        body += value.to_bytes(width, "big", signed=True)
        for where, size, low in _WORDS[width] if varies else ():
            names.append(f"{number}.{low}")
            formats.append(f">u{size}")
            offsets.append(at + where)
        at += width
    spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": at}
    dtype = np.dtype(spec)  # type: ignore[call-overload]
    return Shape(dtype, np.frombuffer(lead + bytes(_ROWID_BYTES) + header + body, f"V{at}"))


def fill(
    cells: Array, form: Shape, columns: Sequence[Column], rows: slice | Array, rowids: Array
) -> None:
    """Write cells.

    Args:
        cells: where to: of the type ``form.dtype``, of any shape and strides.
        form: ``shape_of(columns)``.
        rows: of the columns; as many as there are cells.
        rowids: of ``rowid_varints``, as many.
    """
    cells.view(form.template.dtype)[...] = form.template[0]
    cells["rowid"] = rowids.reshape(cells.shape)
    for number, column in enumerate(columns):
        if column.values is None:
            continue
        values = column.values[rows]
        for _, size, low in _WORDS[_WIDTHS[column.serial]]:
            part = values.view(f"<u{size}")[low // size :: values.dtype.itemsize // size]
            cells[f"{number}.{low}"] = part.reshape(cells.shape)


def kinds_of(columns: Sequence[Column], rows: slice) -> list[tuple[list[Column], Array]]:
    """Rows with the same NULLs: their columns, and which of ``rows`` they are, from 0."""
    masks = {n: c.nulls[rows] for n, c in enumerate(columns) if c.nulls is not None}
    kind: Array = sum(mask.astype(np.uint8) << k for k, mask in enumerate(masks.values()))  # type: ignore[assignment]
    found = []
    for bits in np.flatnonzero(np.bincount(kind)).tolist():
        null = {number for k, number in enumerate(masks) if bits >> k & 1}
        its = [ALL_NULL if n in null else c._replace(nulls=None) for n, c in enumerate(columns)]
        found.append((its, np.flatnonzero(kind == bits)))
    return found


@cache
def rowid_varints() -> Array:
    """Rowids of the first, second, … row of a table as void of three bytes: seven bits a byte, the
    highest first, the top bit set in all but the last."""
    numbers = rowid_of(np.arange(MOST_ROWS, dtype=np.uint32))
    made = np.empty((MOST_ROWS, _ROWID_BYTES), np.uint8)
    made[:, 0] = numbers >> 14 | 0x80
    made[:, 1] = numbers >> 7 & 0x7F | 0x80
    made[:, 2] = numbers & 0x7F
    return made.view(f"V{_ROWID_BYTES}").reshape(-1)


def rowid_of(row: Any) -> Any:
    """Rowid of a table's row, counted from 0."""
    return row + _FIRST_ROWID


def varint(number: int) -> bytes:
    """https://www.sqlite.org/fileformat2.html#varint, below 2⁵⁶."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))
