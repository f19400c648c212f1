"""vLLM as it comes (``record_vllm.py``), recorded: steps, kernels and what llmprof says about them.

Part ``vllm`` of ``run_record.py``.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from recorded_truth import Recorded, agree, bounded, clock, matched_share, phases_of, say, told

from llmprof.records.processes import RecordedProcess
from llmprof.records.steps import counted

VLLM = str(Path(__file__).with_name("record_vllm.py"))
VLLM_RUNS = {"eager": ["eager"], "graphs": ["graphs"], "child": ["graphs", "--child"]}


class Vllm:
    """vLLM's programs, recorded and under torch.profiler; on a thread where a GPU is to spare."""

    def __init__(self, folder: Path, gpu: str | None) -> None:
        self.folder = folder
        self.environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self.recorded: dict[str, Recorded] = {}
        self.seen: dict[str, dict[str, Any] | None] = {}
        self.why = ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is None:
            self._run()
        else:
            self._thread.join()

    def _run(self) -> None:
        try:
            code, _, said = bounded([sys.executable, "-c", "import vllm"], self.environment)
            if code:
                self.why = (said.strip().splitlines() or [f"import vllm: exit {code}"])[-1][:200]
                return
            for name, words in VLLM_RUNS.items():
                command = [sys.executable, VLLM, *words]
                label = f"vllm-{name}"
                self.recorded[name] = Recorded(self.folder, label, *command, **self.environment)
                if "--child" not in words:
                    out = str(self.folder / f"profile-{name}")
                    self.seen[name] = told([*command, "--profile", out], **self.environment)
        except Exception as why:  # noqa: BLE001 - the other checks are still worth it
            traceback.print_exc()
            say(False, f"vllm: {type(why).__name__}: {str(why)[:300]}")


def judge(runs: Vllm) -> None:
    runs.wait()
    if runs.why:
        print(f"skip vllm: {runs.why}", flush=True)
        return
    for name, run in runs.recorded.items():
        truths = run.truths()
        if not truths or not run.processes or run.data is None:
            why = [m.reason for m in run.data.missing] if run.data else ""
            say(False, f"vllm {name}: processes with kernels {len(run.processes)}: {why}")
            continue
        process = max(run.processes, key=lambda p: p.kernels)
        told_pids = ", ".join(f"{p.label} ({p.kernels:,} kernels)" for p in run.processes)
        print(f"       vllm {name}: {truths[0]['vllm']}: {told_pids}", flush=True)
        vllm_steps(f"vllm {name}", run, process, truths[0])
        rows = run.rows(process)
        say(
            matched_share(rows) == 1.0,
            f"vllm {name}: kernels with their launching call {matched_share(rows):.4f}"
            f" of {process.kernels}",
        )
        clock(rows, f"vllm {name}")
        seen = runs.seen.get(name)
        if seen is not None:
            ours = phases_of(run, rows, truths[0], "generate")
            agree(f"vllm {name}", [ours], [seen["generate"]])
    report(runs)


def vllm_steps(name: str, run: Recorded, process: RecordedProcess, truth: dict[str, Any]) -> None:
    """Steps of the opened recording against the tokens that each request got, and against the
    times at which vLLM's engine returned them."""
    assert run.data is not None
    data = run.data
    engine = next(e for e in data.engines if e.engine_id == process.engine_id)
    found = data.steps_found.get(engine.engine_id)
    print(f"       {name}: {found.source}: {found.words}" if found else "", flush=True)
    starts: list[int] = []
    ends: list[int] = []
    for one in data.rounds_of(engine.engine_id, "traced"):
        for i, decode in enumerate(counted(one.labels, one.steps)):
            if decode:
                starts.append(one.stamps_ns[i])
                ends.append(one.stamps_ns[i + 1])
    start, end = np.array(starts, np.int64), np.array(ends, np.int64)
    order = np.argsort(start)
    start, end = start[order], end[order]
    t0 = data.info.t0_ns
    rows = run.rows(process)
    counts, steps_ns, theirs_ns, a_step = [], [], [], []
    for (_, _, begin, last), returned in zip(truth["phases"], truth["returned"], strict=True):
        inside = (start >= begin - t0) & (start < last - t0)
        counts.append(int(inside.sum()))
        steps_ns += (end - start)[inside].tolist()
        theirs_ns += np.diff(returned)[1:-1].tolist()
        first = np.searchsorted(rows.kernels.start_ns, start[inside])
        a_step += (np.searchsorted(rows.kernels.start_ns, end[inside]) - first).tolist()
    expected = [phase[1] for phase in truth["phases"]]
    say(
        all(abs(a - b) <= 1 for a, b in zip(counts, expected, strict=True)),
        f"{name}: decode steps {counts}, of {expected} a request",
    )
    if not steps_ns or not theirs_ns:
        say(False, f"{name}: no step within a request")
        return
    ratio = float(np.median(steps_ns)) / float(np.median(theirs_ns))
    say(
        abs(ratio - 1) < 0.03,
        f"{name}: median step {np.median(steps_ns) / 1e6:.3f} ms, {ratio:.4f} of the time between"
        " two returns of vLLM's engine",
    )
    (most, times) = Counter(a_step).most_common(1)[0]
    say(
        times / len(a_step) > 0.9,
        f"{name}: kernels a step {most} in {100 * times / len(a_step):.1f} % of {len(a_step)} steps"
        f" ({min(a_step)} to {max(a_step)})",
    )


def report(runs: Vllm) -> None:
    """What a user reads."""
    llmprof = [sys.executable, "-m", "llmprof"]
    eager = str(runs.folder / "vllm-eager.sqlite")
    graphs = str(runs.folder / "vllm-graphs.sqlite")
    commands = [["--headless", "--from", eager], ["compare", eager, graphs]]
    _, listed, _ = bounded([*llmprof, "--help"], {})
    if "findings" in listed:
        commands.insert(1, ["findings", eager])
    for words in commands:
        code, out, said = bounded([*llmprof, *words], {})
        print(f"$ llmprof {' '.join(Path(w).name for w in words)}  (exit {code})", flush=True)
        print("\n".join((out or said).splitlines()[:90]), flush=True)
