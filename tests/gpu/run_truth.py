"""How long a verdict takes on a GPU: precision 0.5 % against 16 rounds as before; and A/A.

    python tests/gpu/run_truth.py [--seconds 60] [--aa 6] [--save DIR]

Two pairs, an engine against itself and against a slower one, each by ``--rounds 16`` and by
``--precision 0.5%``. ``--aa N``: then N short sessions of an engine against itself, eight process
pairs each where ``--aa-processes 8`` says so. Fails where the slower one is called faster, where an
engine differs from itself more than once in twenty sessions (at least once is let pass), or where a
pass takes longer than its time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRECISE = "precision 0.5 %"


@dataclass
class Seen:
    """One session."""

    outcome: str
    verdict: str
    wall_s: float
    load_s: float
    pass_s: float
    """From the first timed round's start to the last one's end."""
    verdict_s: float
    """Wall time without the loads: warm-up, rounds, start and end of processes."""
    rounds: int
    ended_by: str
    half_width: float | None
    between: float | None


def session(engines: list[str], options: list[str], folder: Path) -> Seen:
    command = [sys.executable, "-m", "llmprof", "--json", "--traced-steps", "0"]
    for number, engine in enumerate(engines):
        command += ["--engine", f"{engine}{',' if ':' in engine else ':'}label={'AB'[number]}"]
    begin = time.monotonic()
    out = folder / f"{len(list(folder.iterdir()))}.sqlite"
    done = subprocess.run(
        [*command, *options, "-o", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    wall = time.monotonic() - begin
    if done.returncode or not done.stdout:
        sys.exit(f"{' '.join(command)} {options}: {done.returncode}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    pair, goal = found["pairs"][0], found["workload"].get("goal", {})
    rounds = [r for e in found["engines"] for r in e["rounds"]]
    start = min(r["start_ns"] for r in rounds)
    end = max(r["start_ns"] + r["ttft_ns"] + r["decode_ns"] for r in rounds)
    load = sum(e["load_s"] for e in found["engines"])
    ratio = pair["tok_s_ratio"]
    low, high = ratio["low"], ratio["high"]
    return Seen(
        pair["outcome"],
        pair["verdict"],
        round(wall, 2),
        round(load, 2),
        round((end - start) / 1e9, 2),
        round(wall - load, 2),
        found["workload"]["rounds"],
        goal.get("ended_by", ""),
        None if low is None or high is None else (high / low) ** 0.5 - 1,
        pair["process_share"],
    )


def show(pair: str, way: str, seen: Seen) -> None:
    width = "n/a" if seen.half_width is None else f"{seen.half_width:.2%}"
    between = "" if seen.between is None else f"; {seen.between:.0%} between processes"
    print(f"{pair:<8} {way:<16} {seen.wall_s:7.1f} {seen.load_s:6.1f} {seen.verdict_s:9.1f}"
          f" {seen.pass_s:7.1f} {seen.rounds:6d} {seen.ended_by:>9} {width:>7}"
          f"  {seen.verdict}{between}", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--prompt-len", default="128")
    parser.add_argument("--engine", default="torch:cuda_graph=1")
    parser.add_argument("--slower", default="torch")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--pairs", default="A/A,A/B", help="empty: none")
    parser.add_argument("--aa", type=int, default=0, help="further sessions of A/A")
    parser.add_argument("--aa-seconds", type=int, default=10)
    parser.add_argument("--aa-processes", default="1")
    parser.add_argument("--save", type=Path, help="results as JSON, in this folder")
    args = parser.parse_args()
    common = ["--model", args.model, "--prompt-len", args.prompt_len]
    ways = {
        "16 rounds": ["--rounds", "16", "--decode-len", "64"],
        PRECISE: ["--precision", "0.5%", "--processes", "1", "--max-time", f"{args.seconds}s"],
    }
    engines = {"A/A": [args.engine, args.engine], "A/B": [args.engine, args.slower]}
    kept: list[dict[str, object]] = []
    bad = differ = sessions = 0
    print(f"{'pair':<8} {'way':<16} {'wall s':>7} {'load s':>6} {'verdict s':>9} {'pass s':>7}"
          f" {'rounds':>6} {'ended by':>9} {'+-':>7}  verdict", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        todo = [(p, w, ways[w]) for p in filter(None, args.pairs.split(",")) for w in ways]
        short = ["--max-time", f"{args.aa_seconds}s", "--processes", args.aa_processes]
        todo += [("A/A", f"{n}", [*short, "--seed", f"{n}"]) for n in range(1, args.aa + 1)]
        for pair, way, options in todo:
            seen = session(engines[pair], [*common, *options], Path(name))
            show(pair, way, seen)
            kept.append({"pair": pair, "way": way, **vars(seen)})
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                (args.save / "truth.json").write_text(json.dumps(kept, indent=1), "utf-8")
            if pair == "A/A":
                sessions += 1
                differ += seen.outcome in ("faster", "slower")
            elif seen.outcome == "faster":
                bad += 1
                print("  the slower engine is called faster")
            if way == PRECISE and seen.pass_s > args.seconds:
                bad += 1
                print("  longer than its time")
    print(f"A/A: {differ} of {sessions} called different")
    bad += differ > max(1, sessions / 20)
    print("ok" if not bad else f"{bad} failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
