"""One engine of a session: its worker, its warm-up, its rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmprof.errors import EngineFailure
from llmprof.newfiles import OwnFolder
from llmprof.plaintext import one_line
from llmprof.records import (
    EngineInfo,
    EngineRecord,
    Missing,
    PassName,
    RoundRecord,
    Unavailable,
)
from llmprof.records.processes import RankProcess
from llmprof.session.client import Reply, WorkerClient
from llmprof.session.host_sampling import HostSampling
from llmprof.session.kept import Held, KeptWorkers
from llmprof.session.plan import Plan
from llmprof.session.recorder import Recorder
from llmprof.session.round_rows import keep_operators, keep_trace, round_record
from llmprof.session.warmed import warnings_of
from llmprof.tracers.cpu_time import between, read_cpu


class EngineRun:
    """Keeps the ``EngineRecord`` true while its worker works.

    Args:
        kept: workers of earlier runs, and where this one's go at its end; ``None``: it starts and
            ends all of its own.
    """

    def __init__(
        self,
        plan: Plan,
        record: EngineRecord,
        recorder: Recorder,
        cancelled: Callable[[], bool],
        energy_between: Callable[[int, int, int], tuple[int, int] | None],
        variables: Mapping[str, str],
        kept: KeptWorkers | None = None,
    ) -> None:
        self.plan = plan
        self._variables = variables
        self._energy_between = energy_between
        self.record = record
        self._recorder = recorder
        self._cancelled = cancelled
        self._kept = kept
        self._held: Held | None = None
        """Of a worker that may be kept at the end."""
        self._key: tuple[object, ...] = ()
        self._client: WorkerClient | None = None
        self._folders: list[OwnFolder] = []
        self._spool: Path | None = None
        self._longest = plan.workload
        """As asked for: rounds may become shorter, what an engine reserves does not."""
        self.warmup_max_s = plan.warmup_max_s
        self.round_s: float | None = None
        """Rounds will be shortened to this; ``None``: they will not."""
        self.traced_steps = plan.workload.traced_steps
        self.loading_s = 0.0
        """All loads so far; starting the process is in it, and the steps of the round that met each
        KV length first (``EngineInfo.warmup_lengths``)."""
        self.met_steps: int | None = None
        """Rounds must not be longer than that one; ``None``: none was needed."""
        self.warmup_s = 0.0
        """The last one."""
        self.prefill_s = self.step_s = 0.0
        """At the end of warm-up."""

    @property
    def alive(self) -> bool:
        return self.record.state != "failed"

    @property
    def keeps(self) -> bool:
        """Does its worker stay for the next run?"""
        return self._kept is not None

    def shorten(self, decode_len: int) -> None:
        """Decode steps of all rounds from here on."""
        workload = replace(self.plan.workload, decode_len=decode_len)
        self.plan, self.round_s = replace(self.plan, workload=workload), None

    def start(self, trace: str | None, captured: bool = False) -> None:
        """Get a worker, load, warm up.

        A worker that an earlier run has left is asked first. Where that fails, or those that are
        kept take the memory, a fresh one is tried, so that a run fails for its own reasons only.

        Args:
            trace: tracers to switch on before the engine loads; ``None`` for a timed worker.
            captured: run under ``plan.capture``, with no tracer library of ours beside it.

        Raises:
            EngineFailure: with kind ``oom`` the caller may try again alone.
        """
        if self._kept is None:
            self._start(trace, captured)
            return
        spec = self.plan.engines[self.record.engine_id]
        model, seed = self.plan.models[self.record.engine_id], self._longest.seed
        options = tuple(sorted(spec.options.items()))
        self._key = (self.record.label, spec.name, spec.python, model, options, seed, trace)
        held = self._kept.take(self._key)
        if held is not None:
            try:
                self._resume(held, trace)
                return
            except EngineFailure as why:
                if why.kind == "oom" and not self._kept.drop():
                    raise  # afresh it would need as much
                self._recorder.say(f"{why}; it is loaded again")
                self.end(kill=True)
        try:
            self._start(trace, captured)
        except EngineFailure as why:
            if why.kind != "oom" or not self._kept.drop():
                raise
            self.end(kill=True)
            self._start(trace, captured)

    def _start(self, trace: str | None, captured: bool) -> None:
        """In a fresh worker."""
        spec, length = self.plan.engines[self.record.engine_id], self._longest.decode_len
        begin = time.monotonic()
        self._set_state("loading")
        self._folders = [OwnFolder("llmprof-run-", _shared_memory())]
        folder = self._folders[0].path
        self._spool = self._make_spool() if trace in ("kernels", "full", "all") else None
        label = self.record.label
        under = self._capture_command() if captured else []
        try:
            client = WorkerClient(label, spec.python, folder, length, under, self._variables)
            self._client = client
            reply = self._load(client, trace)
        finally:
            self.loading_s += time.monotonic() - begin
        self._held = Held(client, self._folders, self._spool, reply.facts["load_ns"])
        self._loaded(reply, "captured" if captured else trace)
        self._warm_up("captured" if captured else trace)

    def _resume(self, held: Held, trace: str | None) -> None:
        """In a worker that an earlier run of the series has loaded."""
        begin = time.monotonic()
        self._set_state("loading")
        self._client, self._folders, self._spool = held.client, held.folders, held.spool
        self._held = held
        try:
            held.client.renew(self._longest.decode_len)
            reply = self._ask({"do": "reshape", **self._shape(held.client)})
        finally:
            self.loading_s += time.monotonic() - begin
        held.runs += 1
        self._loaded(reply, trace, held)
        self._warm_up(trace)

    def _shape(self, client: WorkerClient) -> dict[str, Any]:
        """What differs between the runs of a series."""
        workload = self._longest
        return {
            "batch": workload.batch,
            "max_positions": workload.max_positions,
            "prompt": [list(row) for row in workload.prompt_ids],
            "steps": workload.decode_len,
            "stamps": str(client.stamps_path),
        }

    def _load(self, client: WorkerClient, trace: str | None) -> Reply:
        spec = self.plan.engines[self.record.engine_id]
        client.wait_ready(self._cancelled)
        options = {k: v for k, v in spec.options.items() if k not in ("label", "model")}
        return self._ask(
            {
                "do": "load",
                "engine": spec.name,
                "model": self.plan.models[self.record.engine_id],
                "options": options,
                "seed": self._longest.seed,
                **self._shape(client),
                "most_batch": 0 if self._kept is None else self._kept.most_batch,
                "most_positions": 0 if self._kept is None else self._kept.most_positions,
                "spool": None if self._spool is None else str(self._spool),
                "trace": trace,
            }
        )

    def _capture_command(self) -> list[str]:
        from llmprof.session.nsys_capture import capture_path, command, nvtx_version

        target = capture_path(self.plan.output, self.record.label)
        if target.exists():
            # nsys would write over it.
            raise EngineFailure(
                f"{self.record.label}: {one_line(str(target))} exists already: remove it or use -o"
                " with another name",
                "input",
            )
        return command(self.plan.capture, target, nvtx_version(self.record.python))

    def end_captured(self) -> None:
        """End the worker and wait for nsys to write its file; a missing one is said."""
        from llmprof.session.nsys_capture import END_TIMEOUT_S, finish

        if self._client is not None:
            self._client.close(END_TIMEOUT_S)
        found = finish(self.plan.output, self.record.label)
        if isinstance(found, Unavailable):
            self._recorder.missing([Missing(self.record.label, "nsys-rep", found.reason)])
        else:
            self._recorder.say(f"{self.record.label}: nsys' report {found}")
        self.end()

    def _make_spool(self) -> Path:
        """The raw trace lies beside the run file: memory may be smaller than a trace."""
        place = self.plan.output.parent if self._kept is None else self._kept.folder
        folder = OwnFolder(".llmprof-spool-", place)
        self._folders.append(folder)
        return folder.path / "spool"

    def _loaded(self, reply: Reply, trace: str | None, shared: Held | None = None) -> None:
        assert self._client is not None
        info = EngineInfo(**reply.facts["info"])
        if trace in (None, "steps"):
            self.record.info = info
            self.record.pid = self._client.pid
            self._note_load(reply.facts["load_ns"], shared)
        if trace is not None:
            self.record.traced_pid = self._client.pid
            self.record.traced_ranks = [RankProcess(**rank) for rank in reply.facts["ranks"]]
        missing = reply.facts.get("unavailable", {})
        label = self.record.label
        self._recorder.missing([Missing(label, k, one_line(v)) for k, v in missing.items()])

    def _note_load(self, took_ns: int, shared: Held | None) -> None:
        record = self.record
        record.load_shared = shared is not None
        if shared is None:
            record.load_ns = took_ns
            refused = self._kept.refused.get(record.label) if self._kept else None
            record.load_note = f"loaded for every point: {refused}" if refused else ""
        else:
            record.load_ns = None
            record.load_note = (
                f"loaded once for several points, in {shared.load_ns / 1e9:.2f} s; this one is use"
                f" {shared.runs}, made ready in {took_ns / 1e9:.2f} s"
            )

    def _warm_up(self, trace: str | None) -> None:
        begin = time.monotonic()
        self._set_state("warmup")
        info = self.record.info
        reply = self._ask(
            {
                "do": "warmup",
                "steps": self.plan.workload.decode_len,
                "min_steps": info.warmup_min_steps if info else 0,
                "max_s": self.warmup_max_s,
                "round_s": self.round_s,
                "meet": bool(info and info.warmup_lengths),
            }
        )
        self.prefill_s, self.step_s = reply.facts["prefill_ns"] / 1e9, reply.facts["step_ns"] / 1e9
        if trace in (None, "steps"):
            self.record.warmup_steps = reply.facts["steps"]
            self.record.warmup_stable = reply.facts["stable"]
        for text in warnings_of(reply.facts, info, timed=trace in (None, "steps")):
            self._recorder.warning(self.record.label, text)
        met = reply.facts.get("met")
        self.met_steps = met["steps"] if met else None
        self.loading_s += met["decode_ns"] / 1e9 if met else 0.0
        self.warmup_s = time.monotonic() - begin
        self._set_state("ready")

    def round(
        self, pass_name: PassName, index: int, total: int, serial: int, kernels: bool = False
    ) -> RoundRecord:
        """Run one round and record it; a round cut short is recorded too.

        Args:
            kernels: trace them in a round of pass ``sampled`` too.

        Raises:
            EngineFailure, Cancelled: after recording the steps that were made.
        """
        assert self._client is not None
        workload = self.plan.workload
        steps = workload.decode_len
        if pass_name == "traced":
            steps = min(self.traced_steps, steps)
        self._set_state("running")
        self._recorder.round_started(self.record.engine_id, pass_name, index, total)
        reply: Reply | None = None
        request = {"do": "round", "pass": pass_name, "index": index, "serial": serial}
        request["kernels"] = kernels or pass_name == "traced"
        host = self._host_sampling(pass_name)
        record: RoundRecord | None = None
        before = read_cpu([self._client.pid])
        try:
            if host is not None:
                host.start(lambda request: self._ask(request).facts)
            reply = self._ask({**request, "steps": steps}, self._show_stamps)
        finally:
            try:
                use = between(before, read_cpu([self._client.pid]))
                record = round_record(
                    self._client, self.record, (pass_name, index, serial, steps), reply, use,
                    self._energy_between,
                )  # fmt: skip
                if record is not None:
                    self._recorder.round(record)
                if host is not None:
                    self._keep_host(host, record)
            finally:
                if host is not None:
                    host.close()
        assert record is not None
        keep_operators(self._recorder, self._client.pid, reply)
        keep_trace(self._recorder, self.record, self._spool, reply, record)
        self._set_state("ready")
        return record

    def _host_sampling(self, pass_name: PassName) -> HostSampling | None:
        """Only a worker that is never timed is sampled."""
        assert self._client is not None
        plan = self.plan
        if pass_name != "traced" or (plan.trace_level == "steps" and not plan.capture):
            return None
        if not plan.host.rate_hz or plan.capture:
            switched_off = "host stacks were switched off (--no-host)"
            reason = "nsys has the worker to itself (--capture)" if plan.capture else switched_off
            self._recorder.missing([Missing(self.record.label, "host", reason)])
            return None
        further = self.record.traced_ranks[1:]
        return HostSampling(plan.host, self._folders[0].path, self._client.pid, further)

    def _keep_host(self, host: HostSampling, record: RoundRecord | None) -> None:
        label = self.record.label
        host.finish(self._recorder, record)
        missing = [
            Missing(label, f"host of rank {rank}", one_line(why))
            for rank, why in host.missing.items()
        ]
        if host.why is not None:
            missing.append(Missing(label, "host", one_line(host.why.reason)))
        self._recorder.missing(missing)

    def _ask(self, request: dict[str, Any], on_poll: Callable[[], None] | None = None) -> Reply:
        assert self._client is not None
        engine_id = self.record.engine_id
        return self._client.ask(
            request,
            self.plan.stall_timeout_s,
            self._cancelled,
            lambda phase, share: self._recorder.progress(engine_id, phase, share),
            on_poll or self._recorder.show_samples,
        )

    def _show_stamps(self) -> None:
        assert self._client is not None
        self._recorder.stamps(self.record.engine_id, self._client.stamps())
        self._recorder.show_samples()

    def _set_state(self, state: Any) -> None:
        self.record.state = state
        self._recorder.engine(self.record)

    def fail(self, why: EngineFailure) -> None:
        self.record.state = "failed"
        self.record.failure_kind = why.kind
        label = f"{self.record.label}: "
        # Adapters begin with their own name too: "torch: torch: unknown option".
        said = str(why).removeprefix(label)
        for beginning in (
            f"{self.record.name}: ",
            f"{self.record.name}:",
            f"engine {self.record.name!r} ",
        ):
            said = said.removeprefix(beginning)
        self.record.failure = f"{label}{said}"
        self._recorder.engine(self.record)
        self._recorder.say(self.record.failure)
        self.end(kill=True)

    def abandon(self) -> None:
        """Kill the worker and drop its folder without writing anything."""
        if self._client is not None:
            self._client.kill()
            self._client = None
        for folder in self._folders:
            folder.cleanup()
        self._folders = []

    def finish(self) -> None:
        self.record.state = "finished"
        self._recorder.engine(self.record)

    def end(self, kill: bool = False) -> None:
        """End the worker if there is one, or leave it for the next run; keep its log."""
        if self._client is not None:
            client = self._client
            parked = not kill and self._parked()
            if kill:
                client.kill()
            elif not parked:
                client.close()
            log = client.log_tail()
            self._client = None
            if parked:
                self._folders = []
            self._recorder.worker_log(self.record.label, log)
        self._held = None
        self.abandon()

    def _parked(self) -> bool:
        """Is the worker kept for the next run of the series?"""
        kept, held = self._kept, self._held
        if kept is None or held is None or self.record.label in kept.refused:
            return False
        begin = time.monotonic()
        try:
            held.client.ask({"do": "park"}, self.plan.stall_timeout_s, lambda: False)
        except EngineFailure as why:
            if why.kind == "load-again":
                said = str(why).removeprefix(f"{self.record.label}: ")
                kept.refused[self.record.label] = said
            return False
        finally:
            self.loading_s += time.monotonic() - begin
        kept.put(self._key, held)
        return True


def _shared_memory() -> str | None:
    """Stamps in memory, not on a disk whose write-back could stall a step."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
