"""One engine of a session: its worker, its warm-up, its rounds."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmprof.analysis.timing.conditions import gpu_index, gpu_indices
from llmprof.engines.base import rank_spool
from llmprof.errors import EngineFailure
from llmprof.plaintext import one_line
from llmprof.records import (
    LOST_RECORDS,
    CpuUse,
    EngineInfo,
    EngineRecord,
    Missing,
    NvtxEvent,
    PassName,
    RoundRecord,
    Unavailable,
)
from llmprof.records.processes import RankProcess
from llmprof.runfile.schema import OP_DOMAIN
from llmprof.session.client import Reply, WorkerClient
from llmprof.session.host_sampling import HostSampling
from llmprof.session.plan import Plan
from llmprof.session.recorder import Recorder
from llmprof.tracers.cpu_time import between, read_cpu


class EngineRun:
    """Keeps the ``EngineRecord`` true while its worker works."""

    def __init__(
        self,
        plan: Plan,
        record: EngineRecord,
        recorder: Recorder,
        cancelled: Callable[[], bool],
        energy_between: Callable[[int, int, int], tuple[int, int] | None],
        variables: Mapping[str, str],
    ) -> None:
        self.plan = plan
        self._variables = variables
        self._energy_between = energy_between
        self.record = record
        self._recorder = recorder
        self._cancelled = cancelled
        self._client: WorkerClient | None = None
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._spool: Path | None = None
        self._longest = plan.workload
        """As asked for: rounds may become shorter, what an engine reserves does not."""
        self.warmup_max_s = plan.warmup_max_s
        self.round_s: float | None = None
        """Rounds will be shortened to this; ``None``: they will not."""
        self.traced_steps = plan.workload.traced_steps
        self.loading_s = 0.0
        """All loads so far; starting the process is in it."""
        self.warmup_s = 0.0
        """The last one."""
        self.prefill_s = self.step_s = 0.0
        """At the end of warm-up."""

    @property
    def alive(self) -> bool:
        return self.record.state != "failed"

    def shorten(self, decode_len: int) -> None:
        """Decode steps of all rounds from here on."""
        workload = replace(self.plan.workload, decode_len=decode_len)
        self.plan, self.round_s = replace(self.plan, workload=workload), None

    def start(self, trace: str | None, captured: bool = False) -> None:
        """Spawn a worker, load, warm up.

        Args:
            trace: tracers to switch on before the engine loads; ``None`` for a timed worker.
            captured: run under ``plan.capture``, with no tracer library of ours beside it.

        Raises:
            EngineFailure: with kind ``oom`` the caller may try again alone.
        """
        spec, length = self.plan.engines[self.record.engine_id], self._longest.decode_len
        begin = time.monotonic()
        self._set_state("loading")
        self._folders = [tempfile.TemporaryDirectory(prefix="llmprof-", dir=_shared_memory())]
        folder = Path(self._folders[0].name)
        self._spool = self._make_spool() if trace in ("kernels", "full", "all") else None
        label = self.record.label
        under = self._capture_command() if captured else []
        try:
            client = WorkerClient(label, spec.python, folder, length, under, self._variables)
            self._client = client
            reply = self._load(client, trace)
        finally:
            loaded = time.monotonic()
            self.loading_s += loaded - begin
        self._loaded(reply, "captured" if captured else trace)
        self._warm_up("captured" if captured else trace)
        self.warmup_s = time.monotonic() - loaded

    def _load(self, client: WorkerClient, trace: str | None) -> Reply:
        workload, spec = self._longest, self.plan.engines[self.record.engine_id]
        client.wait_ready(self._cancelled)
        options = {k: v for k, v in spec.options.items() if k not in ("label", "model")}
        return self._ask(
            {
                "do": "load",
                "engine": spec.name,
                "model": self.plan.models[self.record.engine_id],
                "options": options,
                "batch": workload.batch,
                "max_positions": workload.max_positions,
                "seed": workload.seed,
                "prompt": [list(row) for row in workload.prompt_ids],
                "steps": workload.decode_len,
                "stamps": str(client.stamps_path),
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
        folder = tempfile.TemporaryDirectory(prefix=".llmprof-", dir=self.plan.output.parent)
        self._folders.append(folder)
        return Path(folder.name) / "spool"

    def _loaded(self, reply: Reply, trace: str | None) -> None:
        assert self._client is not None
        info = EngineInfo(**reply.facts["info"])
        if trace in (None, "steps"):
            self.record.info = info
            self.record.pid = self._client.pid
            self.record.load_ns = reply.facts["load_ns"]
        if trace is not None:
            self.record.traced_pid = self._client.pid
            self.record.traced_ranks = [RankProcess(**rank) for rank in reply.facts["ranks"]]
        missing = reply.facts.get("unavailable", {})
        label = self.record.label
        self._recorder.missing([Missing(label, k, one_line(v)) for k, v in missing.items()])

    def _warm_up(self, trace: str | None) -> None:
        self._set_state("warmup")
        info = self.record.info
        reply = self._ask(
            {
                "do": "warmup",
                "steps": self.plan.workload.decode_len,
                "min_steps": info.warmup_min_steps if info else 0,
                "max_s": self.warmup_max_s,
                "round_s": self.round_s,
            }
        )
        self.prefill_s, self.step_s = reply.facts["prefill_ns"] / 1e9, reply.facts["step_ns"] / 1e9
        if trace in (None, "steps"):
            self.record.warmup_steps = reply.facts["steps"]
            self.record.warmup_stable = reply.facts["stable"]
        if not reply.facts["stable"]:
            self._recorder.warning(
                self.record.label,
                f"warm-up ended after {reply.facts['steps']} steps without a stable step time",
            )
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
                record = self._round_record(pass_name, index, serial, steps, reply, use)
                if record is not None:
                    self._recorder.round(record)
                if host is not None:
                    self._keep_host(host, record)
            finally:
                if host is not None:
                    host.close()
        assert record is not None
        self._keep_operators(reply)
        self._keep_trace(reply, record)
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
        return HostSampling(plan.host, Path(self._folders[0].name), self._client.pid)

    def _keep_host(self, host: HostSampling, record: RoundRecord | None) -> None:
        label, further = self.record.label, self.record.traced_ranks[1:]
        lacking = host.finish(self._recorder, record, further)
        missing = [
            Missing(label, f"host of rank {rank}", one_line(why)) for rank, why in lacking.items()
        ]
        if host.why is not None:
            missing.append(Missing(label, "host", one_line(host.why.reason)))
        self._recorder.missing(missing)

    def _round_record(
        self,
        pass_name: PassName,
        index: int,
        serial: int,
        steps: int,
        reply: Reply | None,
        cpu: CpuUse | None,
    ) -> RoundRecord | None:
        assert self._client is not None
        seen, start_ns, prefill_ns, stamps = self._client.board.read()
        if seen != serial or not prefill_ns:
            return None  # it ended before this round's first clock read
        facts: dict[str, Any] = reply.facts if reply else {}
        prefill = self._energy(prefill_ns, stamps[0] if len(stamps) else None)
        return RoundRecord(
            round_id=serial,
            engine_id=self.record.engine_id,
            pass_name=pass_name,
            index=index,
            pid=self._client.pid,
            tid=self._client.tid,
            start_ns=start_ns,
            prefill_start_ns=prefill_ns,
            stamps_ns=stamps,
            end_ns=facts.get("end_ns", stamps[-1] if len(stamps) else prefill_ns),
            complete=reply is not None and len(stamps) == steps + 1,
            synchronous=facts.get("synchronous", True),
            tokens=facts.get("tokens", []),
            energy_mj=self._energy(stamps[0] if len(stamps) else None, facts.get("end_ns")),
            cpu=cpu,
            prefill_energy_mj=None if prefill is None else max(0, prefill[1] - prefill[0]),
        )

    def _energy(self, start_ns: int | None, end_ns: int | None) -> tuple[int, int] | None:
        """NVML's counters of all its GPUs at both moments; ``None`` on a CPU."""
        devices = gpu_indices(self.record)
        if not devices or start_ns is None or end_ns is None:
            return None
        spent = [self._energy_between(device, start_ns, end_ns) for device in devices]
        known = [pair for pair in spent if pair is not None]
        if len(known) < len(devices):
            return None  # of one GPU it is not known
        return sum(begin for begin, _ in known), sum(end for _, end in known)

    def _keep_operators(self, reply: Reply) -> None:
        """Write the operator ranges that came with a traced round."""
        assert self._client is not None
        for message, blob in reply.extra:
            if message["is"] == "ops":
                names = [one_line(str(name), 200) for name in message["names"]]
                flat = array("q", blob)
                rows = zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
                self._recorder.operators(
                    [
                        NvtxEvent(start, end, names[number], self._client.pid, tid, OP_DOMAIN)
                        for number, start, end, tid in rows
                    ]
                )

    def _keep_trace(self, reply: Reply, record: RoundRecord) -> None:
        """Bring the raw GPU trace of a traced round into the run file."""
        told = [m["cupti"] for m, _ in reply.extra if m["is"] == "tracing" and "cupti" in m]
        if self._spool is None or not told or gpu_index(self.record) is None:
            return
        label = self.record.label
        if "unavailable" in told[0]:
            reason = one_line(str(told[0]["unavailable"]))
            self._recorder.missing([Missing(label, "kernels", reason)])
            return
        self._recorder.progress(self.record.engine_id, "decoding the trace", None)
        done = self._recorder.trace(record, self._spool)
        if isinstance(done, Unavailable):
            self._recorder.missing([Missing(label, "kernels", done.reason)])
            return
        for text in done.lost:
            self._recorder.warning(label, f"the trace is incomplete: {text}")
        if done.lost:
            self._recorder.missing([Missing(label, LOST_RECORDS, "; ".join(done.lost))])
        said: dict[str, str] = {}
        for message, _ in reply.extra:
            if message["is"] == "tracing":
                said.update(message.get("ranks", {}))
        for one in self.record.traced_ranks[1:]:
            self._keep_rank(record, one, str(said.get(str(one.rank), "")))

    def _keep_rank(self, record: RoundRecord, one: RankProcess, wrong: str) -> None:
        """Bring in the kernels of a rank behind 0; what is wrong with them is recorded."""
        assert self._spool is not None
        path = Path(rank_spool(str(self._spool), one.rank))
        done = self._recorder.trace(record, path, one.pid, one.rank)
        if isinstance(done, Unavailable):
            reason = one_line(wrong or done.reason)
            missing = Missing(self.record.label, f"kernels of rank {one.rank}", reason)
            self._recorder.missing([missing])
            return
        for text in [*done.lost, *([one_line(wrong)] if wrong else [])]:
            text = f"the trace of rank {one.rank} is incomplete: {text}"
            self._recorder.warning(self.record.label, text)

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
        """End the worker if there is one, and keep its log."""
        if self._client is not None:
            if kill:
                self._client.kill()
            else:
                self._client.close()
            log = self._client.log_tail()
            self._client = None
            self._recorder.worker_log(self.record.label, log)
        self.abandon()


def _shared_memory() -> str | None:
    """Stamps in memory, not on a disk whose write-back could stall a step."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
