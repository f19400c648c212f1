"""The fit of an engine's kernels as it is kept in the run file, so that opening does not fit again.

A document is JSON of ``KernelBandwidth``, or of the reason why there is none. It is taken where
its version is this one's, its sampled rounds are those of the file, and every value is of its type;
else the rounds are fitted again, as for a file without one. Categories are told anew, by the rules
of whoever opens the file.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from llmprof.analysis.bandwidth.kernels import (
    KernelBandwidth,
    kernel_bandwidth,
    kernel_category,
    with_categories,
)
from llmprof.analysis.device.naming.categories import Rule, shipped_rules
from llmprof.plaintext import one_line
from llmprof.records import EngineRecord, RunData, Unavailable
from llmprof.runfile.reader import RunFileReader

VERSION = 3
"""Of document and estimator: raised with each change of what is fitted, or of a field."""
TEXT = 1000
"""Characters of a name that are kept."""


@dataclass(frozen=True)
class _Kept:
    rounds: tuple[tuple[int, int, int, int], ...]
    """Sampled rounds of the engine when it was fitted: number, first and last stamp, steps. Those
    of a recorded program are found when it is opened, and may be others then."""
    found: KernelBandwidth | Unavailable


def fitted(
    reader: RunFileReader, data: RunData, engine: EngineRecord, say: Callable[[str], None]
) -> str | None:
    """The document of a new fit; ``None`` where nothing was sampled.

    Raises:
        RunFileError: the file is damaged.
    """
    if not data.rounds_of(engine.engine_id, "sampled"):
        return None
    say(f"{engine.label}: fitting DRAM samples to kernels")
    return document(data, engine, kernel_bandwidth(reader, data, engine, shipped_rules()))


def document(data: RunData, engine: EngineRecord, found: KernelBandwidth | Unavailable) -> str:
    """What ``RunFileWriter.put_dram_fit`` keeps."""
    return json.dumps(asdict(_Kept(_rounds(data, engine), found)), allow_nan=False)


def measured_bandwidth(
    reader: RunFileReader, data: RunData, engine: EngineRecord, rules: Sequence[Rule]
) -> KernelBandwidth | Unavailable:
    """As the file keeps it, else fitted.

    Raises:
        RunFileError: the file is damaged.
    """
    kept = kept_bandwidth(reader, data, engine)
    if kept is None:
        return kernel_bandwidth(reader, data, engine, rules)
    if isinstance(kept, Unavailable):
        return kept
    categories = [
        # A rule may ask for what was cut off.
        k.category if len(k.name) >= TEXT else kernel_category(k.name, engine.name, rules)
        for k in kept.kernels
    ]
    return with_categories(kept, categories)


def kept_bandwidth(
    reader: RunFileReader, data: RunData, engine: EngineRecord
) -> KernelBandwidth | Unavailable | None:
    """``None``: none is kept, or not one that can be used."""
    row = reader.dram_fit(engine.engine_id)
    if row is None or row[0] != VERSION:
        return None
    try:
        kept = _made(_Kept, json.loads(row[1]))
    except (ValueError, RecursionError):
        return None
    return cast("_Kept", kept).found if kept.rounds == _rounds(data, engine) else None


def _rounds(data: RunData, engine: EngineRecord) -> tuple[tuple[int, int, int, int], ...]:
    rounds = [r for r in data.rounds_of(engine.engine_id, "sampled") if len(r.stamps_ns)]
    return tuple((r.round_id, r.stamps_ns[0], r.stamps_ns[-1], r.steps) for r in rounds)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _made(hint: Any, value: Any) -> Any:
    """A value of that type from JSON.

    Raises:
        ValueError: it is of another.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return _one_of(get_args(hint), value)
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(value, dict):
        if value.keys() != {f.name for f in fields(hint)}:
            raise ValueError(f"not the fields of {hint}")
        kind = cast("Any", hint)
        hints = _hints(kind)
        return kind(**{k: _made(hints[k], v) for k, v in value.items()})
    if origin is tuple and isinstance(value, list):
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_made(a, v) for a, v in zip(each, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {one_line(k, TEXT): _made(args[1], v) for k, v in value.items()}
    if hint is str and isinstance(value, str):
        return one_line(value, TEXT)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is int and type(value) is int:
        return value
    if hint is type(None) and value is None:
        return None
    raise ValueError(f"{value!r:.60} is not of type {hint}")


def _one_of(hints: Sequence[Any], value: Any) -> Any:
    for hint in hints:
        try:
            return _made(hint, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r:.60} is none of {hints}")
