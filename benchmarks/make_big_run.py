"""A run file of many kernels: the traced steps of a recorded run, over and over.

    python benchmarks/make_big_run.py OUT.sqlite [--kernels 10000000] [--of RUN.sqlite]

Every repetition is shifted by the length of the recorded steps, so that steps, graph launches and
gaps are as on the GPU; only their number is made up.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import sys
from pathlib import Path

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "h100_graph.sqlite"
_CORRELATIONS = 1_000_000
"""Ids that one repetition may use."""


def repeat(sql: sqlite3.Connection, round_id: int, times: int) -> None:
    """Append the decode steps of a traced round ``times`` times."""
    pid, stamps = sql.execute(
        "SELECT pid, (SELECT json_group_array(end_ns) FROM (SELECT end_ns FROM LLMPROF_STEP"
        " WHERE round_id = r.round_id ORDER BY step)) FROM LLMPROF_ROUND r WHERE round_id = ?",
        (round_id,),
    ).fetchone()
    ends = [int(t) for t in stamps.strip("[]").split(",")]
    steps, first, last = len(ends) - 1, ends[0], ends[-1]
    period = last - first
    series = f"WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {times})"
    sql.execute(
        f"{series} INSERT INTO LLMPROF_STEP (round_id, step, start_ns, end_ns)"
        f" SELECT round_id, step + n * {steps}, start_ns + n * {period}, end_ns + n * {period}"
        " FROM k, LLMPROF_STEP"
        " WHERE round_id = ? AND step > 0 ORDER BY n, step",
        (round_id,),
    )
    sql.execute(
        "UPDATE LLMPROF_ROUND SET end_ns = end_ns + ? WHERE round_id = ?",
        (times * period, round_id),
    )
    for table in ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY"):
        names = [str(row[1]) for row in sql.execute(f"PRAGMA table_info({table})")]
        moved = {
            "start": f"t.start + n * {period}",
            "end": f't."end" + n * {period}',
            "correlationId": f"t.correlationId + n * {_CORRELATIONS}",
        }
        values = ", ".join(moved.get(name, f't."{name}"') for name in names)
        columns = ", ".join(f'"{name}"' for name in names)
        sql.execute(
            f"CREATE TEMP TABLE seed AS SELECT * FROM {table}"
            " WHERE (globalPid >> 24) & 0xFFFFFF = ? AND start >= ? AND start < ?",
            (pid, first, last),
        )
        sql.execute(
            f"{series} INSERT INTO {table} ({columns}) SELECT {values} FROM k, seed t ORDER BY n"
        )
        sql.execute("DROP TABLE seed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--kernels", type=int, default=10_000_000)
    parser.add_argument("--of", default=str(FIXTURE))
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if out.exists():
        print(f"{out} is there already", file=sys.stderr)
        return 2
    shutil.copyfile(arguments.of, out)
    sql = sqlite3.connect(out)
    sql.execute("PRAGMA journal_mode = OFF")
    sql.execute("PRAGMA synchronous = OFF")
    traced = [
        r for (r,) in sql.execute("SELECT round_id FROM LLMPROF_ROUND WHERE pass_name = 'traced'")
    ]
    (now,) = sql.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
    for round_id in traced:
        repeat(sql, round_id, max(1, -(-arguments.kernels // now)))
    sql.commit()
    (kernels,) = sql.execute("SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
    (steps,) = sql.execute("SELECT count(*) FROM LLMPROF_STEP").fetchone()
    sql.close()
    print(f"{out}: {kernels:,} kernels, {steps:,} steps, {out.stat().st_size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
