"""What an export says about itself, and what of it is not read: nothing is passed over silently."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter

from llmprof.plaintext import one_line
from llmprof.records import LOST_RECORDS, Missing, Warned
from llmprof.runfile import activity
from llmprof.runfile.database import quoted
from llmprof.runfile.foreign.source import NSYS, read_source

DIAGNOSTICS = "DIAGNOSTIC_EVENT"
WARNING = 2
"""``DIAGNOSTIC_EVENT.severity``: 1 information, 2 warning, 3 error."""
MOST = 5
"""Different texts that are shown."""
_LOST = re.compile(
    r"not all\b.*\b(events|records|data)|\b(dropped|lost|discard\w*|overflow\w*|incomplete)\b"
    r"|(events|records|data)\b.*\b(missing|not (have )?been collected)|buffers? (is|are|was) full"
    r"|out of (memory|space|order)",
    re.IGNORECASE,
)
_GPU = re.compile(r"cuda|cupti|gpu|kernel|device|events", re.IGNORECASE)


def warnings(sql: sqlite3.Connection, tables: set[str]) -> list[Warned]:
    """Warnings and errors that the profiler wrote into the file, the most frequent first."""
    counts = _diagnostics(sql, tables)
    # Of a trace that was converted, llmprof itself wrote them.
    said = "Nsight Systems says: " if read_source(sql, tables).format == NSYS else ""
    found = [
        Warned("run", f"{said}{text}" + (f" ({n} times)" if n > 1 else ""))
        for text, n in counts.most_common(MOST)
    ]
    if len(counts) > MOST:
        rest = f"{len(counts) - MOST} more warnings are in the file ({DIAGNOSTICS})"
        found.append(Warned("run", rest))
    found += _real_times(sql, tables)
    return found


def not_read(sql: sqlite3.Connection, tables: set[str]) -> list[Missing]:
    """Tables that are not read, by name; and whether the file says that records were lost."""
    found = [
        Missing("run", table, "GPU work of a kind that is not read; it may fill idle time")
        for table in activity.doubtful_tables(sql, tables)
    ]
    doubtful = {item.name for item in found}
    unknown = [t for t in activity.unknown_tables(sql, tables) if t not in doubtful]
    if unknown:
        named = ", ".join(one_line(table, 60) for table in unknown[:12])
        more = f" and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        found.append(Missing("run", "tables", f"not read, of an unknown kind: {named}{more}"))
    lost = [t for t in _diagnostics(sql, tables) if _LOST.search(t) and _GPU.search(t)]
    if lost:
        found.append(Missing("run", LOST_RECORDS, f"the file says: {lost[0]}"))
    return found


def _diagnostics(sql: sqlite3.Connection, tables: set[str]) -> Counter[str]:
    if DIAGNOSTICS not in tables:
        return Counter()
    if not {"severity", "text"} <= activity.columns(sql, DIAGNOSTICS).keys():
        return Counter()
    rows = sql.execute(
        f'SELECT "text", count(*) FROM {DIAGNOSTICS} WHERE severity >= {WARNING} GROUP BY 1'
        " LIMIT 1000"
    )
    return Counter({one_line(str(text), 300): int(n) for text, n in rows})


def _real_times(sql: sqlite3.Connection, tables: set[str]) -> list[Warned]:
    """REAL holds 53 bits: ns since 1970 are rounded to 256 ns in it."""
    found = []
    for table in sorted({activity.KERNELS, activity.CALLS, "NVTX_EVENTS"} & tables):
        declared = activity.columns(sql, table)
        if "INT" in declared.get("start", "INT"):
            continue
        query = f"SELECT max(abs(start)) FROM {quoted(table)} WHERE typeof(start) = 'real'"
        largest = sql.execute(query).fetchone()[0]
        if largest is None:
            continue
        text = f"{table}: times are REAL, not INTEGER"
        if largest > 2**53:
            text += f": rounded to {int(largest / 2**52)} ns by what wrote the file"
        found.append(Warned("run", text))
    return found
