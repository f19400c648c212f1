"""Records to rows and back: a column a field, JSON where a field is a dict, list or record.

Reading checks every value against the field's annotation, since a file may come from anywhere.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
SqlValue = int | float | str | None

_SCALARS = (int, float, str, bool, type(None))


class RowError(ValueError):
    """A value that the column cannot hold; the text says which and why."""


def clean(text: str) -> str:
    """SQLite takes UTF-8 only: a lone surrogate (a byte that was no UTF-8) becomes ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_column(value: Any) -> SqlValue:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, _SCALARS):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return clean(json.dumps(value, ensure_ascii=False, default=asdict))


def to_row(record: Any) -> dict[str, SqlValue]:
    """Field → SQL value, for any record made of the types that ``from_row`` knows."""
    return {f.name: to_column(getattr(record, f.name)) for f in fields(record)}


def from_row(kind: type[T], row: Mapping[str, Any]) -> T:
    """The record that ``to_row`` made ``row`` from.

    A field with a default may be missing: its column is younger than the file.

    Raises:
        RowError: a value is not of its field's type.
        KeyError: a column is missing.
    """
    hints = _hints(cast("Any", kind))
    optional = {
        f.name
        for f in fields(cast("Any", kind))
        if f.default is not MISSING or f.default_factory is not MISSING
    }
    return kind(
        **{
            name: from_column(hint, row[name], name)
            for name, hint in hints.items()
            if name in row or name not in optional
        }
    )


def from_column(hint: Any, value: Any, where: str) -> Any:
    """One column's value as ``hint``: JSON text is parsed where ``hint`` is no scalar.

    Raises:
        RowError: not valid JSON, or not of that type.
    """
    nested = any(h not in _SCALARS and get_origin(h) is not Literal for h in _choices(hint))
    if nested and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"{where}: not valid JSON") from None
    return _checked(hint, value, where)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _checked(hint: Any, value: Any, where: str) -> Any:
    choices = _choices(hint)
    if hint is Any or (value is None and type(None) in choices):
        return value
    kind = next(h for h in choices if h is not type(None))
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in args:
            return value
    elif kind is bool:
        if value in (0, 1):
            return bool(value)
    elif kind is float:
        if isinstance(value, (int, float)):
            return float(value)
    elif kind in (int, str):
        if type(value) is kind:
            return value
    elif origin is dict and isinstance(value, dict):
        return {k: _checked(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif origin is list and isinstance(value, list):
        return [_checked(args[0], v, where) for v in value]
    elif origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_checked(a, v, where) for a, v in zip(args, value, strict=True))
    elif is_dataclass(kind) and isinstance(value, dict):
        return _nested(kind, value, where)
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise RowError(f"{where}: {value!r:.60} is not of type {expected}")


def _nested(kind: Any, value: dict[str, Any], where: str) -> Any:
    """Unknown keys are left out, so that a field added later does not make the file unreadable."""
    for f in fields(kind):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in value:
            raise RowError(f"{where}.{f.name}: missing")
    hints = _hints(kind)
    return kind(
        **{k: _checked(hints[k], v, f"{where}.{k}") for k, v in value.items() if k in hints}
    )
