"""The session: load, warm up, interleave the timing rounds, trace, and leave a run file."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmprof import __version__, environment
from llmprof.analysis.timing.conditions import gpu_index, gpu_indices
from llmprof.errors import EngineFailure, LlmprofError
from llmprof.goal import SHORTEST
from llmprof.machine import unavailable, worker_variables
from llmprof.plaintext import one_line, printable
from llmprof.records import (
    EngineRecord,
    GpuDevice,
    Missing,
    PassName,
    RoundRecord,
    RunInfo,
    RunState,
    Unavailable,
)
from llmprof.runfile.writing.writer import RunFileWriter
from llmprof.session.client import Cancelled
from llmprof.session.engine_run import EngineRun
from llmprof.session.events import SessionObserver
from llmprof.session.kept import KeptWorkers
from llmprof.session.passes.clock import RunClock
from llmprof.session.passes.sampled import Length, sampled_length
from llmprof.session.passes.timing import TimingPass
from llmprof.session.plan import Plan
from llmprof.session.recorder import Recorder
from llmprof.tracers.copy_bandwidth import measure_copy_bandwidth
from llmprof.tracers.nvml.tracer import NvmlTracer
from llmprof.tracers.pm.tracer import PmTracer

PM_INTERVAL_NS = 200_000
"""A sample takes the sampler 55–80 µs to evaluate: at 200 µs it keeps up with half a core."""


TRACED_SLOWER = 1.3
"""A traced step is taken to be this much slower, for the time."""
MIN_WARM_UP_S = 2.0
"""Of a traced pass for which the time is up."""


class Session:
    """One run. ``run()`` may be called from any one thread; ``stop()`` from any other.

    Args:
        decode: token ids → text, where the model has a tokenizer.
        kept: workers of the runs before this one in a series, where it leaves its own. Runs of
            several processes or under ``capture`` take and leave none.
    """

    def __init__(
        self,
        plan: Plan,
        observers: Sequence[SessionObserver] = (),
        decode: Callable[[list[int]], str] | None = None,
        kept: KeptWorkers | None = None,
    ) -> None:
        goal = plan.goal
        if kept is not None and (plan.capture or (goal.processes or 1) > 1):
            kept.drop()
            kept = None
        if kept is not None:
            # Several processes would each load: what a series is there to spare.
            plan = replace(plan, goal=replace(goal, processes=1))
        self._kept = kept
        self._plan = plan
        self._observers = observers
        self._decode = decode
        self._stop = threading.Event()
        self._serial = 0 if kept is None else kept.serial
        self.engines = [
            EngineRecord(i, label, spec.name, spec.python, spec.options)
            for i, (label, spec) in enumerate(zip(plan.labels, plan.engines, strict=True))
        ]

    def stop(self) -> None:
        """End the run soon, keeping all that was recorded."""
        self._stop.set()

    def run(self) -> RunState:
        """Do it all.

        Returns:
            How the run ended; ``engines`` says how each engine did.

        Raises:
            RunFileError: the run file cannot be written (its finished rounds are kept).
            KeyboardInterrupt: passed on after everything was closed.
        """
        nvml = NvmlTracer(
            on_samples=lambda samples: self._recorder.take_samples(samples),
            on_warning=lambda scope, text: self._recorder.hear_warning(scope, text),
        )
        reason = nvml.probe()
        devices = reason if isinstance(reason, Unavailable) else nvml.devices()
        variables = worker_variables(os.environ)
        info = RunInfo(
            t0_ns=time.monotonic_ns(),
            t0_utc_ns=time.time_ns(),
            tool_version=__version__,
            tool_commit=environment.tool_commit(),
            command=list(self._plan.command),
            workload={**self._plan.workload.to_dict(), "goal": self._plan.goal.to_dict()},
            environment={
                **environment.collect(devices),
                "worker_variables": variables,
                "copy_gb_s": self._copies(devices),
            },
            trace_level=self._plan.trace_level,
            schedule="interleaved" if len(self.engines) > 1 else "single",
        )
        writer = RunFileWriter(self._plan.output, info)
        self._recorder = Recorder(writer, self._observers)
        self._runs = [
            EngineRun(
                self._plan,
                engine,
                self._recorder,
                self._stop.is_set,
                nvml.energy_between,
                variables,
                self._kept,
            )
            for engine in self.engines
        ]
        state: RunState = "failed"
        message = ""
        try:
            self._recorder.started(info, self.engines, str(self._plan.output))
            self._recorder.gpu_devices(devices)
            if not isinstance(devices, Unavailable):
                nvml.start()
            self._all_passes()
            state = "finished" if any(run.alive for run in self._runs) else "failed"
            message = "" if state == "finished" else "every engine failed"
        except (Cancelled, KeyboardInterrupt) as why:
            state, message = "interrupted", "stopped by the user"
            if isinstance(why, KeyboardInterrupt):
                raise
        except LlmprofError as why:
            message = str(why)
            raise
        finally:
            if not isinstance(devices, Unavailable):
                nvml.stop()
            self._close(writer, nvml.missing(), state, message)
        return state

    def _copies(self, devices: list[GpuDevice] | Unavailable) -> dict[str, Any]:
        """What a copy reaches on each GPU that is asked for, before anything is loaded."""
        if isinstance(devices, Unavailable):
            return {}
        if self._kept is not None and self._kept.copies is not None:
            return self._kept.copies
        named = {spec.options.get("device", "cuda:0") for spec in self._plan.engines}
        found: dict[str, Any] = {}
        for device in devices:
            name = f"cuda:{device.index}"
            if name in named or (device.index == 0 and "cuda" in named):
                copy = measure_copy_bandwidth(device.index)
                if isinstance(copy, Unavailable):
                    found[name] = unavailable(copy.reason)
                else:
                    found[name] = copy.gb_s
        if self._kept is not None:
            self._kept.copies = found
        return found

    def _close(
        self, writer: RunFileWriter, missing: list[Missing], state: RunState, message: str
    ) -> None:
        """End the workers first: a full disk must not leave one behind."""
        try:
            for run in self._runs:
                run.end(kill=state != "finished")
            self._recorder.missing(missing)
            self._recorder.save_samples()
            self._recorder.finished(state, message)
        finally:
            for run in self._runs:
                run.abandon()
            writer.close()

    # -- passes ------------------------------------------------------------------------------

    def _all_passes(self) -> None:
        plan = self._plan
        own_workers = self._traces() and (plan.trace_level != "steps" or bool(plan.capture))
        timed_trace = "steps" if self._traces() and not own_workers else None
        self._clock = RunClock(plan.goal, self._runs)
        timing = TimingPass(
            self._runs,
            plan.goal,
            plan.workload.seed,
            self._clock,
            self._recorder,
            lambda run, index: self._round(run, "timing", index),
            self._guard,
            self._traces(),
            plan.adapt,
        )
        if timing.start(timed_trace):
            timing.settle()
            timing.take_turns(timed_trace)
            for run in self._runs:
                if run.alive:
                    self._guard(run, partial(self._after_timing, run, timed_trace))
        else:
            self._recorder.schedule("blocks")
            self._recorder.warning(
                "run",
                "the engines do not fit into memory together: they ran one after the other, "
                "so slow drift of clocks or temperature is not cancelled",
            )
            for run in self._runs:
                self._guard(run, partial(self._timing_block, timing, run, timed_trace))
            timing.end_blocks()
        if own_workers:
            for run in self._runs:
                run.end()
            if self._kept is None:  # in a series a load is paid once for many runs
                self._clock.loading_counts(self._clock.kept_for_loading())
            for run in self._runs:
                if run.alive:
                    self._guard(run, partial(self._traced_alone, run))
        for run in self._runs:
            run.end()
            if run.alive:
                run.finish()

    def _traces(self) -> bool:
        return self._plan.workload.traced_steps > 0

    def _after_timing(self, run: EngineRun, trace: str | None) -> None:
        """Rounds in the timed worker: what they attach is not in it, or next to nothing."""
        self._sampled(run)
        if trace is not None:
            self._fit_traced(run)
            self._round(run, "traced", 0)

    def _sampled(self, run: EngineRun) -> None:
        """One round while the parent samples the GPU's counters: nothing runs in the worker."""
        plan = self._plan
        if plan.trace_level == "steps" or not self._traces():
            return
        if plan.bandwidth == "off":
            reason = "PM sampling was switched off (--bandwidth off)"
            self._recorder.missing([Missing(run.record.label, "pm", reason)])
        elif plan.bandwidth == "steps" or plan.capture:
            # nsys has the traced worker to itself.
            self._sampled_rounds(run, Length(1, 60.0), kernels=False)

    def _sampled_rounds(self, run: EngineRun, length: Length, kernels: bool) -> None:
        """Rounds while a child samples each GPU; what could not be had is recorded with its
        reason."""
        devices, label = gpu_indices(run.record), run.record.label
        if not devices:
            return
        tracers = {d: PmTracer(d, PM_INTERVAL_NS, further=kernels) for d in devices}
        why: dict[int, str] = {}
        try:
            for index in range(length.rounds):
                sampling = [d for d in devices if d not in why]
                for device in sampling:
                    refused = tracers[device].start_round(length.round_s)
                    if refused is not None:
                        why[device] = refused.reason
                if devices[0] in why:
                    break
                record = self._round(run, "sampled", index, length.rounds, kernels)
                for device in sampling:
                    if device in why:
                        continue
                    samples = tracers[device].stop_round()
                    if isinstance(samples, Unavailable):
                        why[device] = samples.reason
                    else:
                        self._recorder.pm_samples(record, device, devices[0], samples)
                if devices[0] in why:
                    break
        finally:
            for tracer in tracers.values():
                tracer.close()
        counted = tracers[devices[0]].facts.get("refused", {})
        missing = [Missing(label, f"pm.{k}", one_line(str(v))) for k, v in counted.items()]
        for device, reason in why.items():
            name = "pm" if device == devices[0] else f"pm of GPU {device}"
            missing.append(Missing(label, name, reason))
        self._recorder.missing(missing)

    def _timing_block(self, timing: TimingPass, run: EngineRun, trace: str | None) -> None:
        run.start(trace)
        timing.alone(run)
        self._after_timing(run, trace)
        run.end()

    def _share_s(self, run: EngineRun) -> float:
        """What is left of the run's time for this engine's traced pass; unbounded where rounds end
        the run."""
        if self._plan.goal.rounds is not None:
            return math.inf
        later = sum(r.alive and r.record.engine_id >= run.record.engine_id for r in self._runs)
        return max(0.0, self._clock.left()) / max(1, later)

    def _fit_traced(self, run: EngineRun) -> None:
        """Fewer traced steps where those asked for take longer than the rest of the time."""
        room = self._share_s(run)
        if math.isfinite(room) and run.step_s > 0:
            fitting = int((room - run.prefill_s) / (TRACED_SLOWER * run.step_s))
            run.traced_steps = min(self._plan.workload.traced_steps, max(SHORTEST, fitting))

    def _traced_alone(self, run: EngineRun) -> None:
        """The traced pass has workers of its own: a timed worker never holds a tracer library."""
        if self._plan.capture:
            # CUPTI serves one tool at a time: nsys' kernels are in nsys' file.
            run.start("steps", captured=True)
            self._fit_traced(run)
            self._round(run, "traced", 0)
            run.end_captured()
            return
        # A point of a sweep is there for its categories too: it may take longer than it was given.
        if self._kept is None and self._clock.late():
            reason = "the time was up (--max-time): more of it, or fewer engines"
            self._recorder.missing([Missing(run.record.label, "kernels", reason)])
            return
        left = max(MIN_WARM_UP_S, self._share_s(run) / 3)
        run.warmup_max_s = min(self._plan.warmup_max_s, left)
        run.start(self._plan.trace_level)
        self._fit_traced(run)
        record = self._round(run, "traced", 0)
        if self._plan.bandwidth == "kernels" and gpu_index(run.record) is not None:
            length = sampled_length(record, run.plan.workload.decode_len, self._share_s(run))
            self._recorder.say(
                f"{run.record.label}: {length.rounds} rounds with kernels and DRAM samples at once"
                f" for the bandwidth of each kernel, about {length.rounds * length.round_s:.0f} s"
            )
            self._sampled_rounds(run, length, kernels=True)
        run.end()
        self._recorder.dram_fit(run.record)

    def _round(
        self,
        run: EngineRun,
        pass_name: PassName,
        index: int,
        total: int | None = None,
        kernels: bool = False,
    ) -> RoundRecord:
        self._serial += 1
        if self._kept is not None:
            self._kept.serial = self._serial
        if total is None:
            total = (self._plan.goal.rounds or 0) if pass_name == "timing" else 1
        record = run.round(pass_name, index, total, self._serial, kernels)
        self._recorder.save_samples()
        if run.record.text is None and self._decode is not None and record.tokens:
            run.record.text = printable(self._decode(record.tokens[0]))
        return record

    def _guard(self, run: EngineRun, action: Callable[[], object]) -> None:
        """An engine's failure ends that engine; the others go on."""
        try:
            action()
        except EngineFailure as why:
            run.fail(why)
