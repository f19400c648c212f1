"""What the simulated engines of the A/A and power series decode with: small tables of real runs.

    python benchmarks/step_distributions.py NAME=RUN.sqlite:LABEL … > step_distributions.json

Of each engine: quantiles of a step relative to its round's median step, how alike neighbouring
steps are (lag-1 correlation of their normal scores), the median step, TTFT, and the spread of round
medians (log, standard deviation of what two neighbouring rounds do not share).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np

from llmprof.analysis.timing.compare import find_engine
from llmprof.analysis.timing.steps import timing_rounds
from llmprof.runfile.reader import RunFileReader

SHARES = [0, 0.01, 0.05, *np.arange(0.1, 0.91, 0.1).round(2).tolist(), 0.95, 0.98, 0.99, 0.995,
          0.999, 1]  # fmt: skip


def table(path: Path, label: str) -> dict[str, object]:
    with RunFileReader(path) as reader:
        data = reader.run_data()
    rounds = [r for r in timing_rounds(data, find_engine(data, label)) if r.complete and r.step_ns]
    steps = [np.array(r.step_ns, dtype=float) for r in rounds]
    medians = np.array([np.median(s) for s in steps])
    relative = np.concatenate([s / m for s, m in zip(steps, medians, strict=True)])
    ranks = (np.argsort(np.argsort(relative)) + 0.5) / len(relative)
    scores = np.array([NormalDist().inv_cdf(float(p)) for p in ranks])
    cuts = np.cumsum([len(s) for s in steps])[:-1]
    pairs = [(part[:-1] * part[1:]).mean() for part in np.split(scores, cuts)]
    unshared = np.diff(np.log(medians)).std(ddof=1) / np.sqrt(2) if len(medians) > 2 else 0.0
    return {
        "step_ms": round(float(np.median(medians)) / 1e6, 4),
        "ttft_ms": round(float(np.median([r.ttft_ns or 0 for r in rounds])) / 1e6, 3),
        "quantiles": [[p, round(float(np.quantile(relative, p)), 4)] for p in SHARES],
        "neighbours": round(float(np.mean(pairs)), 3),
        "round_spread": round(float(unshared), 5),
        "rounds": len(rounds),
        "steps": len(relative),
    }


def main() -> int:
    found = {}
    for argument in sys.argv[1:]:
        name, _, place = argument.partition("=")
        path, _, label = place.partition(":")
        found[name] = table(Path(path), label)
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
