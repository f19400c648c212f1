"""Several runs side by side: one snapshot, one trace, lanes of all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmprof.analysis.timing.compare import compare_runs
from llmprof.analysis.view.frames.live import RunDataSource
from llmprof.analysis.view.frames.snapshot import EngineView, PairView, Snapshot
from llmprof.analysis.view.traced import RunTrace, Tell, quiet
from llmprof.errors import LlmprofError
from llmprof.plaintext import one_line
from llmprof.records import RunData, Unavailable


class SeveralRuns:
    """Frames of runs that are over, as if all their engines were of one run.

    Engines that are in several runs under one label get their file's name, or its place, behind it.
    The first engine of the first run is the baseline of the ratios across runs.
    """

    live = False

    def __init__(self, runs: Sequence[RunData]) -> None:
        self._runs = list(runs)
        self.paths = [data.path for data in runs]
        self._sources = [RunDataSource(data) for data in runs]
        self._labels = _labels(runs)
        self._snapshot: Snapshot | None = None
        self._trace: RunTrace | Unavailable | None = None

    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self._join()
        return self._snapshot

    def _join(self) -> Snapshot:
        shots = [source.snapshot() for source in self._sources]
        engines: list[EngineView] = []
        pairs: list[PairView] = []
        warnings: list[str] = []
        for shot, labels in zip(shots, self._labels, strict=True):
            named = dict(zip((e.label for e in shot.engines), labels, strict=True))
            for engine, label in zip(shot.engines, labels, strict=True):
                engines.append(replace(engine, engine_id=len(engines), label=label))
            for pair in shot.pairs:
                a, b = named.get(pair.a, pair.a), named.get(pair.b, pair.b)
                pairs.append(replace(pair, a=a, b=b))
            warnings += shot.warnings
        first, *others = self._runs
        for number, data in enumerate(others, 1):
            for record, label in zip(data.engines, self._labels[number], strict=True):
                found = compare_runs(first, first.engines[0].label, data, record.label, force=True)
                ratio, base = found.tok_s_ratio, self._labels[0][0]
                verdict = _renamed(one_line(found.verdict), {found.a: base, found.b: label})
                pairs.append(
                    PairView(
                        base, label, ratio.value, ratio.low, ratio.high, found.difference_seen,
                        verdict,
                    )
                )  # fmt: skip
                warnings += [one_line(f"{base}, {label}: {text}") for text in found.warnings]
        gpus = [gpu for shot in shots for gpu in shot.gpus if gpu.device is not None]
        workloads = list(dict.fromkeys(shot.workload for shot in shots))
        states = {shot.state for shot in shots}
        return replace(
            shots[0],
            title=" | ".join(one_line(Path(data.shown_path).stem, 40) for data in self._runs),
            state="finished" if states == {"finished"} else shots[0].state,
            message="; ".join(filter(None, (shot.message for shot in shots))),
            workload=" | ".join(workloads),
            what=" | ".join(dict.fromkeys(s.what for s in shots if s.what)),
            elapsed_s=max(shot.elapsed_s for shot in shots),
            engines=tuple(engines),
            gpus=tuple(gpus) or shots[0].gpus,
            pairs=tuple(pairs),
            warnings=tuple(dict.fromkeys(warnings)),
            log=tuple(line for shot in shots for line in shot.log),
            file=", ".join(one_line(data.shown_path) for data in self._runs),
        )

    def outline(self) -> RunTrace | None:
        traces = [RunTrace.outline(Path(data.path), data) for data in self._runs]
        return RunTrace.joined(traces, self._labels)

    def trace(self, tell: Tell = quiet) -> RunTrace | Unavailable:
        if self._trace is None:
            try:
                traces = [RunTrace(Path(data.path), data, tell) for data in self._runs]
            except LlmprofError as why:
                self._trace = Unavailable(str(why))
            else:
                self._trace = RunTrace.joined(traces, self._labels)
        return self._trace

    def stop(self) -> None:
        """Nothing runs."""


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Both names at once: one may be a part of the other."""
    longest = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), lambda m: names[m[0]], text)


def _labels(runs: Sequence[RunData]) -> list[list[str]]:
    """Unique over all runs."""
    count = Counter(engine.label for data in runs for engine in data.engines)
    stems = [one_line(Path(data.shown_path).stem, 16) for data in runs]
    if len(set(stems)) < len(stems):
        stems = [str(number) for number in range(1, len(runs) + 1)]
    return [
        [e.label if count[e.label] == 1 else f"{e.label} ({stem})" for e in data.engines]
        for data, stem in zip(runs, stems, strict=True)
    ]
