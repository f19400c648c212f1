"""How well steps are found in device work alone, and how long that takes.

    python benchmarks/step_detection.py [--events 10000000] [--seeds 3] [--first 101] [--file FILE]

A table of made-up programs (``tests/support/made_traces/step_factory.py``), with the names of their
kernels and without: precision and recall of the borders of their steps, and what was refused. The
same for programs drawn at random (``decode_worlds.py`` there), for seeds from ``--first`` on. Then
the recordings of an H100 in ``tests/fixtures`` with their stamps hidden, then any ``--file``: its
ranges are hidden, and what is found is shown. Last the time for many events, beside the time in
which numpy sorts as many numbers: of servers that change programs, and the slowest of all made-up
programs where each is repeated exactly. The limit is 5 s of CPU time.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS / "support" / "made_traces"))

import decode_worlds  # noqa: E402
import step_factory  # noqa: E402

from llmprof.analysis.steps.detect import Detection, detect  # noqa: E402
from llmprof.analysis.steps.events import Events, events_of  # noqa: E402
from llmprof.runfile.reader import RunFileReader  # noqa: E402

LIMIT_S = 5.0
SEVERAL = "three of them in one process"


def borders(found: Detection) -> np.ndarray:
    return np.unique(np.concatenate([found.begin, found.end]))


def programs(seeds: int) -> tuple[float, float]:
    """Precision and recall over all borders of all programs."""
    right = seen = true = 0
    print(f"{'program':<34}{'names':>7}{'rows':>8}{'steps':>7}{'precision':>11}{'recall':>8}")
    for name in step_factory.SCENARIOS:
        for hidden in (False, True):
            sums, rows, why = np.zeros(3, int), 0, ""
            for seed in range(seeds):
                events, truth = step_factory.make(name, seed, hidden)
                found = detect(events)
                sums += step_factory.quality(borders(found), truth)
                rows += len(events)
                why = why or found.reason
            good, got, there = sums.tolist()
            right, seen, true = right + good, seen + got, true + there
            print(
                f"{name:<34}{'hidden' if hidden else 'shown':>7}{rows // seeds:>8}"
                f"{there // seeds:>7}{good / max(1, got):>11.3f}{good / max(1, there):>8.3f}  {why}"
            )
    return right / max(1, seen), right / max(1, true)


def drawn(first: int, seeds: int) -> dict[bool, tuple[float, float]]:
    """Names hidden? → precision and recall over all borders of programs drawn at random."""
    kept = {}
    print(f"\n{'drawn at random':<34}{'names':>7}{'steps':>7}{'precision':>11}{'recall':>8}")
    for hidden in (False, True):
        sums = np.zeros(3, int)
        for name in (*decode_worlds.WORLDS, *decode_worlds.LATER, SEVERAL):
            one, why = np.zeros(3, int), ""
            for seed in range(first, first + seeds):
                if name == SEVERAL:
                    events, truth = decode_worlds.make_several(seed, hidden)
                else:
                    events, truth = decode_worlds.make(name, seed, hidden)
                found = detect(events)
                one += truth.judge(events, found)
                why = why or found.reason
            good, got, there = one.tolist()
            sums += one
            print(
                f"{name:<34}{'hidden' if hidden else 'shown':>7}{there:>7}"
                f"{good / max(1, got):>11.3f}{good / max(1, there):>8.3f}  {why}"
            )
        right, seen, true = sums.tolist()
        kept[hidden] = right / max(1, seen), right / max(1, true)
    return kept


def fixtures() -> bool:
    """Are all borders of the recordings found, and no other?"""
    exact = True
    for path in sorted((TESTS / "fixtures").glob("h100_*.sqlite")):
        with RunFileReader(path) as reader:
            data = reader.run_data()
            for record in data.rounds:
                if record.pass_name != "traced":
                    continue
                events = events_of(reader.trace_rows(record))
                found = detect(events)
                stamps = np.searchsorted(events.start_ns, record.stamps_ns).tolist()
                same = borders(found).tolist() == stamps
                exact &= same
                label = data.engines[record.engine_id].label
                evidence = found.evidence
                words = found.reason if evidence is None else ", ".join(evidence.signs)
                print(f"{path.stem} {label}: {record.steps} steps, exact: {same}; {words}")
    return exact


def show(path: Path) -> None:
    """What is found in a file, its ranges hidden."""
    with RunFileReader(path) as reader:
        data = reader.run_data()
        for record in data.rounds:
            if record.pass_name == "traced":
                found = detect(events_of(reader.trace_rows(record, calls=False)))
                label = data.engines[record.engine_id].label
                if found.evidence is None:
                    print(f"{path.name} {label}: refused: {found.reason}")
                else:
                    print(f"{path.name} {label}: {found.evidence}")


def many(count: int) -> Events:
    """Programs one after the other until there are so many rows."""
    programs = ("400 steps", "graph and eager", "continuous batching", "400 steps")
    made = [step_factory.make(name, seed)[0] for seed, name in enumerate(programs)]
    names: list[str] = []
    columns: dict[str, list[np.ndarray]] = {f.name: [] for f in fields(Events)}
    columns.pop("names")
    now = rows = 0
    while rows < count:
        for part in made:
            for key, parts in columns.items():
                values = getattr(part, key)
                if key in ("start_ns", "end_ns"):
                    values = values - part.start_ns[0] + now
                elif key == "name":
                    values = values + 100 * made.index(part)
                elif key == "launch":
                    values = values + rows
                parts.append(values)
            now += int(part.end_ns.max() - part.start_ns[0]) + 50_000_000
            rows += len(part)
    for part in made:
        names += [*part.names, *("-",) * (100 - len(part.names))]
    joined = {key: np.concatenate(parts)[:count] for key, parts in columns.items()}
    return Events(names=names, **joined)


def repeated(part: Events, count: int) -> Events:
    """One program again and again, without any difference."""
    times = count // len(part) + 1
    turn = np.arange(count) // len(part)
    span = int(part.end_ns.max() - part.start_ns[0]) + 50_000_000
    columns = {
        f.name: np.tile(getattr(part, f.name), times)[:count]
        for f in fields(Events)
        if f.name != "names"
    }
    for key in ("start_ns", "end_ns"):
        columns[key] = columns[key] + turn * span
    columns["launch"] = columns["launch"] + turn * len(part)
    return Events(names=part.names, **columns)


def timed(events: Events) -> tuple[Detection, float, float]:
    """What is found, wall s, CPU s: one thread, and others may use the machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = detect(events)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def slowest(count: int) -> tuple[float, str]:
    """(CPU s, program) over all made-up programs repeated exactly."""
    worst = (0.0, "")
    for name in step_factory.SCENARIOS:
        events = repeated(step_factory.make(name)[0], count)
        found, _, took = timed(events)
        if found.reason:
            print(f"{name}, repeated: refused: {found.reason}")
        worst = max(worst, (took, name))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=101, help="seed of what is drawn at random")
    parser.add_argument("--file", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    precision, recall = programs(arguments.seeds)
    print(f"\nall programs: precision {precision:.4f}, recall {recall:.4f} (at least 0.99)\n")
    for hidden, (right, whole) in drawn(arguments.first, arguments.seeds).items():
        names = "hidden" if hidden else "shown"
        print(f"drawn at random, names {names}: precision {right:.4f}, recall {whole:.4f}")
    exact = fixtures()
    for path in arguments.file:
        show(path)
    events = many(arguments.events)
    found, took, cpu = timed(events)
    begin = time.perf_counter()
    np.sort(np.random.default_rng(0).integers(0, 2**62, len(events)))
    sort = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{len(events):,} events: {len(found):,} cycles in {cpu:.1f} s of CPU time"
        f" (limit {LIMIT_S:g} s), {took:.1f} s in all, {took / sort:.1f} sorts, peak"
        f" {memory:.1f} GiB, load {os.getloadavg()[0]:.1f}; {found.reason}"
    )
    worst, name = slowest(arguments.events)
    print(f"repeated exactly, the slowest program ({name}): {worst:.1f} s of CPU time")
    good = precision >= 0.99 and recall >= 0.99 and exact and len(found) > 0
    return 0 if good and max(cpu, worst) <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
