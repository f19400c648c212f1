"""Which texts a rule need not be tried on: those without any of the words that it must find.

A name has up to 4096 characters and is tried on some thirty rules. A search for fixed words costs a
hundredth of one for a regular expression, and most rules are of words.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from typing import Any

SHORTEST = 3
"""Characters of a word that is worth looking for."""
MOST = 64
"""Words of one rule; more cost as much as the rule."""

Gate = tuple[str, ...]
"""Small letters; a text with none of them (in small letters) cannot match. Empty: try always."""


def gate_of(pattern: re.Pattern[str]) -> Gate:
    """The words of a rule, where each of its alternatives has one."""
    try:
        parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
        words = _alternatives(parser.parse(pattern.pattern, pattern.flags))
    except (ImportError, AttributeError, TypeError, ValueError, RecursionError, re.error):
        return ()  # another interpreter's parser: the rule is tried on everything
    if words is None or len(words) > MOST:
        return ()
    # A word that holds another one is found with it.
    kept = [w for w in words if not any(o != w and o in w for o in words)]
    return tuple(sorted(set(kept)))


def may_match(gate: Gate, small: str) -> bool:
    """Whether a text, given in small letters, has to be tried."""
    return not gate or any(word in small for word in gate)


def _alternatives(parsed: Any) -> list[str] | None:
    """A word for each alternative of a sequence; ``None``: one of them has none."""
    best: list[str] | None = None
    run = ""
    runs: list[str] = []
    for kind, value in [*parsed, (None, None)]:
        name = str(kind)
        if name == "LITERAL":
            run += chr(value)
            continue
        runs.append(run)
        run = ""
        inner = None
        if name == "BRANCH":
            inner = _each(value[1])
        elif name == "SUBPATTERN":
            inner = _alternatives(value[-1])
        elif name in ("MAX_REPEAT", "MIN_REPEAT") and value[0] >= 1:
            inner = _alternatives(value[2])
        if inner is not None and (best is None or _worth(inner) > _worth(best)):
            best = inner
    longest = max(runs, key=len)
    if len(longest) >= SHORTEST and (best is None or len(longest) >= _worth(best)):
        # Small letters of ASCII only: others may change their length.
        return [longest.lower()] if longest.isascii() else best
    return best


def _each(branches: Any) -> list[str] | None:
    found: list[str] = []
    for branch in branches:
        words = _alternatives(branch)
        if words is None:
            return None
        found += words
    return found


def _worth(words: list[str]) -> int:
    return min(map(len, words), default=0)
