"""A run: its engines, rounds, samples, devices, and what is missing.

All times are integer nanoseconds of CLOCK_MONOTONIC (``time.monotonic_ns``), which every process
of one machine shares; the run file stores them relative to ``RunInfo.t0_ns``.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

from llmprof.records.processes import RankProcess, RecordedProcess
from llmprof.records.steps import StepLabel, StepsFound, StepsFrom

PassName = Literal["timing", "traced", "sampled"]
"""``timing``: nothing attached, the reported numbers. ``traced``: tracers attached. ``sampled``:
rounds while the parent samples the GPU's counters, kernels traced or not (``BandwidthLevel``)."""

LOST_RECORDS = "GPU records"
"""Name of the ``Missing`` row of a run whose tracer says that it lost records."""
EngineState = Literal["pending", "loading", "warmup", "ready", "running", "finished", "failed"]
RunState = Literal["running", "finished", "interrupted", "failed"]
TraceLevel = Literal["steps", "kernels", "full", "all"]
"""``full``: launches, copies and waits of the API besides kernels; ``all``: every API call."""
Source = Literal["driven", "recorded", "opened"]
"""``driven``: engines that llmprof decoded with. ``recorded``: a program that ran by itself
(``llmprof record``). ``opened``: a file that another tool made."""
BandwidthLevel = Literal["kernels", "steps", "off"]
"""What PM samples are taken beside: ``kernels``: sampled rounds record kernels too, so that the
bandwidth of each can be told; ``steps``: one sampled round with nothing attached."""
Provenance = Literal["measured", "modelled"]


@dataclass(frozen=True)
class Unavailable:
    """A value that could not be had. Shown as ``n/a``, ``null`` + reason in JSON, never 0."""

    reason: str

    def __bool__(self) -> bool:
        return False


Maybe = float | Unavailable


@dataclass(frozen=True)
class RunInfo:
    """What one run file says about itself."""

    t0_ns: int
    """CLOCK_MONOTONIC at the start of the run; zero of every time in the file."""
    t0_utc_ns: int
    """Wall clock at the same moment, ns since the epoch."""
    tool_version: str
    tool_commit: str | None
    command: list[str]
    workload: dict[str, Any]
    """``Workload.to_dict()``."""
    environment: dict[str, Any]
    """``environment.collect()``; unavailable values are ``{"value": None, "reason": …}``."""
    trace_level: TraceLevel
    state: RunState = "running"
    schedule: str = "interleaved"
    """``interleaved``, ``blocks`` (GPU memory could not hold all engines) or ``single``."""
    message: str = ""
    """Why the run was interrupted or failed."""
    source: Source = "driven"

    @property
    def tool(self) -> str:
        """Name of the program that made the file (``tool_version`` is its version)."""
        return str(self.environment.get("source") or "llmprof") if self.opened else "llmprof"

    @property
    def opened(self) -> bool:
        return self.source == "opened"


@dataclass
class EngineInfo:
    """What an engine says about itself after loading (``Engine.describe``).

    Sizes are bytes; ``None`` where the engine cannot know it (give the reason in ``notes``).
    """

    versions: dict[str, str] = field(default_factory=dict)
    """Package → version, e.g. ``{"torch": "2.13.0"}``."""
    model: str = ""
    """The model's name or path as loaded."""
    model_format: str = ""
    """``gguf Q4_1``, ``safetensors fp16``, ``random fp16``, …"""
    architecture: str = "llama"
    """Empty: not known."""
    parameters: int | None = None
    bits_per_weight: float | None = None
    """Packed size of the weights a step reads × 8 / their count."""
    weight_bytes_per_step: int | None = None
    """Weights read by one decode step at their packed size (batch 1 or B: once)."""
    kv_bytes_per_token: int | None = None
    """K and V of all layers for one position of one sequence."""
    context_limit: int | None = None
    vocab_size: int | None = None
    device: str = "cpu"
    """``cpu``, ``cuda:0``."""
    dtype: str = ""
    """Arithmetic type of activations."""
    drive: str = ""
    """``generator``: the engine's own recommended loop; ``forward``: the bare forward."""
    sampling: str = "greedy"
    """Empty: not known."""
    cuda_graph: bool | None = None
    """Does a decode step replay CUDA graphs; ``None`` on a CPU."""
    synchronous: bool = True
    """Does ``decode_step`` return only when its token is on the host."""
    warmup_min_steps: int = 0
    """Decode steps the engine needs before it is as fast as it gets."""
    warmup_lengths: str = ""
    """What a step does the first time that it meets a number of KV positions, and never again (a
    plan, a CUDA graph): warm-up then makes one whole round, whatever the time. Empty: nothing."""
    threads: int | None = None
    options: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    weights_id: str | None = None
    """Equal for two engines that hold the same real weights; ``None`` for random ones."""
    projections: dict[str, list[int]] | None = None
    """Matrices that a decode step multiplies by, as the engine holds them: those of the first layer
    in its order, then the output head. Name without the layer → [outputs, inputs, packed bytes].
    What a kernel is for follows from its order in the step and these; ``None``: not known."""
    op_tracer: str | None = None
    """``torch`` where the operator tracer can record this engine."""
    ranks: int = 1
    """Processes or GPUs that compute a step together. Sizes above are one rank's."""
    collective_bytes: dict[str, int] = field(default_factory=dict)
    """Collective (``AllReduce``) → bytes of each one in a decode step, as nccl-tests count them;
    empty where they are not known or not all of one size."""

    @classmethod
    def not_driven(cls, device: str, notes: list[str] | None = None) -> EngineInfo:
        """Of a program that llmprof did not load: its model and its sampling are not known."""
        return cls(architecture="", sampling="", device=device, notes=notes or [])


@dataclass
class EngineRecord:
    """One engine of a run: what was asked for, what it became."""

    engine_id: int
    label: str
    """Unique in a run: ``torch``, ``torch#2``, or the user's ``label=`` option."""
    name: str
    python: str
    options: dict[str, str]
    state: EngineState = "pending"
    failure_kind: str | None = None
    failure: str | None = None
    info: EngineInfo | None = None
    pid: int | None = None
    """Process of the timing pass."""
    traced_pid: int | None = None
    traced_ranks: list[RankProcess] = field(default_factory=list)
    """All processes of the traced pass, of an engine that has several."""
    load_ns: int | None = None
    """``None`` too where ``load_shared``."""
    load_shared: bool = False
    """The weights were loaded for an earlier run in this worker."""
    load_note: str = ""
    """What that load took, or why there was none to share."""
    warmup_steps: int | None = None
    warmup_stable: bool | None = None
    text: str | None = None
    """Decoded text of one round, where there is a tokenizer."""


@dataclass(frozen=True)
class CpuUse:
    """The CPUs that a worker may run on, during one round; ns of CPU time (see
    ``tracers.cpu_time``)."""

    wall_ns: int
    cpus: int
    busy_ns: int
    """By anybody."""
    own_ns: int
    """By the worker and llmprof."""
    steal_ns: int
    """Given to other virtual machines."""
    periods: int = 0
    """Of the cgroup's CPU quota; 0 without one."""
    throttled: int = 0
    """Periods in which the quota stopped somebody."""
    throttled_ns: int = 0


@dataclass
class RoundRecord:
    """One prefill and N decode steps of one engine.

    ``stamps_ns[0]`` is the return of prefill (its token is on the host), ``stamps_ns[i]`` the
    return of decode step ``i``. A round that ended early holds the steps that it got.
    """

    round_id: int
    engine_id: int
    pass_name: PassName
    index: int
    """Round number within its pass; timing rounds of the same index form a pair."""
    pid: int
    tid: int
    start_ns: int
    prefill_start_ns: int
    stamps_ns: array[int]
    """``array('q')``."""
    end_ns: int
    complete: bool
    synchronous: bool = True
    """False: stamps are host issue times, only ``end_ns`` says when the GPU was done."""
    tokens: list[list[int]] = field(default_factory=list)
    """One list a sequence, first token (from prefill) included."""
    energy_mj: tuple[int, int] | None = None
    """NVML total energy at start and end of decoding, millijoule."""
    cpu: CpuUse | None = None
    """``None``: not counted."""
    prefill_energy_mj: int | None = None
    """Of the whole GPU, from the start to the end of prefill."""
    steps_from: StepsFrom = "driven"
    labels: tuple[StepLabel, ...] = ()
    """One a step where they are of several kinds; none: each is a decode step."""
    other_tids: tuple[int, ...] = ()
    """Threads of the process with steps of their own: what they launched is not of this round."""

    @property
    def prefill_end_ns(self) -> int | None:
        return self.stamps_ns[0] if len(self.stamps_ns) else None

    @property
    def steps(self) -> int:
        """Finished decode steps."""
        return max(0, len(self.stamps_ns) - 1)


@dataclass(frozen=True)
class GpuSample:
    """One NVML reading of one device. ``None``: not read this time or not supported.

    Units are in the names. GPM values change every ~100 ms, so most samples have none.
    """

    timestamp_ns: int
    device: int
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    gpu_util_pct: float | None = None
    mem_util_pct: float | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    throttle_mask: int | None = None
    """NVML clocks event reasons bit mask; ``llmprof.records.throttle`` spells it."""
    memory_used_mib: float | None = None
    gpm_dram_bw_pct: float | None = None
    gpm_sm_util_pct: float | None = None
    gpm_sm_occupancy_pct: float | None = None


@dataclass(frozen=True)
class GpuDevice:
    """Fixed facts of one GPU, from NVML. ``None`` where NVML did not say."""

    index: int
    name: str
    uuid: str
    pci_bus_id: str | None = None
    memory_total_mib: float | None = None
    bus_width_bits: int | None = None
    max_sm_clock_mhz: int | None = None
    max_mem_clock_mhz: int | None = None
    power_limit_w: float | None = None
    sm_count: int | None = None
    compute_capability: tuple[int, int] | None = None
    nvlink_gb_s: float | None = None
    """What all its active NVLinks carry in one direction, GB/s (1e9)."""

    @property
    def peak_bandwidth_gb_s(self) -> float | None:
        """Max memory clock × bus width × 2 (double data rate), GB/s (1e9).

        2619 MHz × 5120 bit × 2 / 8 = 3352 GB/s on an H100 SXM.
        """
        if not self.max_mem_clock_mhz or not self.bus_width_bits:
            return None
        return self.max_mem_clock_mhz * 1e6 * (self.bus_width_bits / 8) * 2 / 1e9


@dataclass(frozen=True)
class NvtxEvent:
    """A push/pop range of one thread, as nsys stores it."""

    start_ns: int
    end_ns: int
    text: str
    pid: int
    tid: int
    domain: str = "llmprof"
    values: str = ""
    """A JSON object of what the program attached (NVTX's payload extension)."""


@dataclass(frozen=True)
class ClockReading:
    """CUPTI, monotonic and wall clock read together; ``error_ns`` bounds the offset."""

    engine_id: int
    round_id: int | None
    where: str
    monotonic_ns: int
    wall_ns: int
    cupti_ns: int | None
    error_ns: int


@dataclass(frozen=True)
class PmRound:
    """How one ``sampled`` round was sampled (PM sampling, see ``tracers.pm``)."""

    round_id: int
    device: int
    interval_ns: int
    """Achieved."""
    clock: str
    """``pm_clock.Placement.method``."""
    clock_error_ns: int | None
    """Sample times are off by at most this; ``None``: not known."""
    dropped: int
    overflow: bool


@dataclass(frozen=True)
class HostRound:
    """How the host stacks of one traced round were sampled (py-spy, see ``tracers.pyspy``)."""

    round_id: int
    rate_hz: int
    """Asked for."""
    native: bool
    blocking: bool
    samples: int
    undated: int
    """Left out, since it is not known well enough when they were taken."""
    errors: int
    """Stacks that could not be read."""
    error_ns: int
    """A sample was taken at most this long before its time."""
    tick_ns: int
    """Median tick of the process that dates the samples."""
    first_ns: int
    last_ns: int
    cpu_wall_ns: int = 0
    """What ``cpu_ns`` was counted over: from just before the round to just after it."""
    cpu_ns: dict[str, int] = field(default_factory=dict)
    """Thread id → processor time, of every thread of the worker."""
    threads: dict[str, str] = field(default_factory=dict)
    """Thread id → name in Python."""


@dataclass(frozen=True)
class HostFrame:
    """One place in the code that was seen on a stack. All text is untrusted."""

    frame_id: int
    function: str
    file: str
    line: int
    """0 for a native frame without debug information."""
    source: str
    """That line of the file, where it could be read when it was recorded; else empty."""


@dataclass(frozen=True)
class Missing:
    """Something the run could not measure: which, for whom, why."""

    scope: str
    """``run``, ``gpu0``, or an engine's label."""
    name: str
    """``nvml.power_w``, ``kernels``, ``gpm``…"""
    reason: str


@dataclass(frozen=True)
class Warned:
    """A condition that weakens the result: throttling, clock drift, unstable warm-up."""

    scope: str
    text: str


@dataclass
class RunData:
    """All small rows of one run; kernels and other bulk rows stay in the file.

    The reader fills one from a file, ``analysis.live.LiveFold`` grows one while the session runs:
    the same analysis serves both. Times are ns since ``info.t0_ns`` when read from a file, and
    absolute CLOCK_MONOTONIC while live (``origin_ns`` is what to subtract).
    """

    info: RunInfo
    engines: list[EngineRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)
    """Warm-up is no round. Ordered by start."""
    gpu_devices: list[GpuDevice] = field(default_factory=list)
    gpu_samples: list[GpuSample] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    clocks: list[ClockReading] = field(default_factory=list)
    processes: list[RecordedProcess] = field(default_factory=list)
    """Of a recorded run."""
    logs: dict[str, str] = field(default_factory=dict)
    """Engine label → tail of its worker's stdout and stderr."""
    steps_found: dict[int, StepsFound] = field(default_factory=dict)
    """Engine id → how its steps are known, where llmprof did not drive it."""
    path: str = ""
    """What is read."""
    source_file: str = ""
    """What the user opened, where ``path`` is its conversion."""
    origin_ns: int = 0

    @property
    def shown_path(self) -> str:
        """The file as the user knows it."""
        return self.source_file or self.path

    def why_missing(self, scope: str, name: str) -> str | None:
        """The reason why that could not be had, where one is recorded."""
        return next((m.reason for m in self.missing if (m.scope, m.name) == (scope, name)), None)

    def no_traced_pass(self, label: str) -> Unavailable:
        """For an engine without a traced round, and why it has none."""
        reason = self.why_missing(label, "kernels")
        return Unavailable(f"no traced pass: {reason}" if reason else "no traced pass")

    def rounds_of(self, engine_id: int, pass_name: PassName = "timing") -> list[RoundRecord]:
        return [r for r in self.rounds if r.engine_id == engine_id and r.pass_name == pass_name]
