"""Before the first point runs: which cannot run at all, what memory and time the others need.

Memory is modelled: weights as the engine holds them plus its KV cache; the time from bytes and
floating point operations, on assumed rates, and corrected by the points of the sweep that have
ended. Both are for planning: nothing of it goes into a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

from llmprof import machine
from llmprof.config import EngineSpec
from llmprof.engines.registry import BUILT_IN
from llmprof.errors import LlmprofError, ModelError
from llmprof.goal import MAX_S, seconds_of
from llmprof.models.gguf.header import read_header
from llmprof.models.gguf.sizes import kv_values_per_token, parameters
from llmprof.models.locate import RANDOM, ModelRef, default_model, read_json, resolve
from llmprof.models.presets import PRESETS, LlamaConfig
from llmprof.records import Unavailable
from llmprof.sweep.grid import Point, spec_of
from llmprof.sweep.loads import loads

LOAD_GB_S, START_S = 1.0, 4.0
"""Assumed: reading weights, starting an interpreter with its packages."""
GPU_GB_S, HOST_GB_S = 1500.0, 10.0
GPU_FLOP_S, CORE_FLOP_S = 2e14, 4e10
WARM_UP_ROUNDS = 3
_ELEMENT = {"fp32": 4, "fp16": 2, "bf16": 2}
_PACKED = "quantization_config"
WHOLE_PROMPT = ("torch", "transformers")
GPU_ENGINES = ("exllama", "exllamav2", "exllamav3", "vllm")


@dataclass(frozen=True)
class Place:
    """Where points will run, as far as it is known now."""

    gpu_mib: float | None
    """Memory of the smallest GPU; ``None``: none is seen here."""
    host_mib: float | None


@dataclass(frozen=True)
class Forecast:
    """``impossible`` says why the point cannot run; empty: nothing speaks against it."""

    point: Point
    impossible: str
    need_mib: float | None
    """Of all its engines, resident together; ``None``: not known for one of them."""
    seconds: float | None
    load_s: float = 0.0
    """Of ``seconds``: starting and loading its engines."""


def here() -> Place:
    """This machine."""
    from llmprof.tracers.nvml.tracer import NvmlTracer

    nvml = NvmlTracer(on_samples=lambda samples: None, on_warning=lambda scope, text: None)
    gpus: list[float] = []
    if nvml.probe() is None:
        gpus = [d.memory_total_mib for d in nvml.devices() if d.memory_total_mib]
        nvml.stop()
    ram = machine.ram_mib()
    return Place(min(gpus, default=None), float(ram) if isinstance(ram, int) else None)


def forecasts(points: Sequence[Point], place: Place | None) -> list[Forecast]:
    """One a point, in their order.

    Args:
        place: ``None``: elsewhere (a cluster), so nothing is said about memory there.
    """
    return [_forecast(point, place) for point in points]


def corrected(found: Sequence[Forecast], took: Mapping[str, float]) -> list[Forecast]:
    """With the times scaled by what points that have ended took (point id → s)."""
    ratios = [
        took[f.point.point_id] / f.seconds
        for f in found
        if f.seconds and took.get(f.point.point_id, 0) > 0
    ]
    if not ratios:
        return list(found)
    scale = median(ratios)
    return [
        replace(f, seconds=f.seconds * scale, load_s=f.load_s * scale)
        if f.seconds is not None
        else f
        for f in found
    ]


def shared(found: Sequence[Forecast]) -> list[Forecast]:
    """The same with each load in the time of one point only, as far as the engines can share it."""
    by_id = loads([f.point for f in found])
    seen: set[str] = set()
    out = []
    for item in found:
        key = by_id[item.point.point_id].key
        if key in seen and item.seconds is not None and not item.impossible:
            item = replace(item, seconds=item.seconds - item.load_s, load_s=0.0)
        elif not item.impossible:
            seen.add(key)
        out.append(item)
    return out


def _forecast(point: Point, place: Place | None) -> Forecast:
    number = _numbers(point)
    needs: list[float | None] = []
    times: list[float | None] = []
    load_s = 0.0
    for text in point.engines:
        spec = spec_of(text)
        try:
            size = _size(_model(spec, point), spec.name, _dtype(spec, place))
        except LlmprofError as why:
            if spec.name in BUILT_IN:
                return Forecast(point, f"{spec.name}: {why}", None, None)
            size = _Size(None, None, None, None, None)
        if refused := _refused(spec, number, size):
            return Forecast(point, refused, None, None)
        need = _need_mib(spec, size, number)
        room = _room(spec, place)
        if need is not None and room is not None and need > room[0]:
            text = f"{spec.name}: needs {need:,.0f} MiB, {room[1]} has {room[0]:,.0f}"
            return Forecast(point, text, need, None)
        needs.append(need)
        load = _load_s(size, number)
        load_s += load
        times.append(_decoding_s(size, number, spec, place))
    seconds = _total(times)
    if "rounds" not in point.fields:
        # Precision may end it sooner.
        seconds = seconds_of(point.fields.get("max-time", "")) or MAX_S
    total = None if seconds is None else seconds + load_s
    return Forecast(point, "", _total(needs), total, load_s)


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _numbers(point: Point) -> Callable[[str, int], int]:
    return lambda name, default: int(point.fields.get(name, default))


def _model(spec: EngineSpec, point: Point) -> str:
    return spec.options.get("model") or point.fields.get("model") or default_model()


@dataclass(frozen=True)
class _Size:
    """Bytes; ``None``: not known."""

    held: int | None
    kv_per_token: int | None
    parameters: int | None
    context_limit: int | None
    config: LlamaConfig | None
    element: int = 2
    """Bytes of an activation."""


@lru_cache(maxsize=256)
def _size(model: str, engine: str, dtype: str) -> _Size:
    """Raises ``LlmprofError`` where there is no such model."""
    if model == RANDOM:
        return _Size(None, None, None, None, None)
    ref = resolve(model)
    limit = ref.context_limit
    if ref.kind == "gguf" and ref.path is not None:
        header = read_header(Path(ref.path))
        count = parameters(header)
        values = kv_values_per_token(header)
        element = _ELEMENT[dtype] if engine in ("torch", "transformers") else 2
        held = count * element if engine in ("torch", "transformers") else _bytes(ref.path)
        kv = None if isinstance(values, Unavailable) else values * element
        return _Size(held, kv, count, limit, None)
    config = _config(ref)
    if config is None:
        return _Size(None, None, None, limit, None)
    element = _ELEMENT[dtype]
    held = config.weight_bytes(element)
    if ref.kind == "hf" and ref.path is not None and engine not in ("torch", "transformers"):
        held = _bytes(ref.path)
    kv_bytes = config.kv_bytes_per_token(element)
    return _Size(held, kv_bytes, config.parameters, limit, config, element)


def _config(ref: ModelRef) -> LlamaConfig | None:
    if ref.kind == "preset":
        return PRESETS[str(ref.preset)]
    if ref.kind in ("config", "hf") and ref.path is not None:
        path = Path(ref.path)
        try:
            data = read_json(path / "config.json" if path.is_dir() else path)
            # Of packed weights the file sizes count; the shape is that of the model.
            return LlamaConfig.from_hf({k: v for k, v in data.items() if k != _PACKED})
        except (ModelError, KeyError, ValueError):
            return None  # no Llama: its shape is not known here
    return None


def _bytes(path: str) -> int:
    where = Path(path)
    files = [where] if where.is_file() else [p for p in where.iterdir() if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _on_gpu(spec: EngineSpec, place: Place | None) -> bool:
    device = spec.options.get("device", "")
    if device:
        return not device.startswith("cpu")
    if spec.name == "llamacpp":
        return spec.options.get("n_gpu_layers", "0") not in ("0", "")
    return spec.name in GPU_ENGINES or place is None or place.gpu_mib is not None


def _dtype(spec: EngineSpec, place: Place | None) -> str:
    chosen = spec.options.get("dtype", "")
    return chosen if chosen in _ELEMENT else ("fp16" if _on_gpu(spec, place) else "fp32")


def _room(spec: EngineSpec, place: Place | None) -> tuple[float, str] | None:
    if place is None:
        return None
    if _on_gpu(spec, place):
        return None if place.gpu_mib is None else (place.gpu_mib, "the GPU")
    return None if place.host_mib is None else (place.host_mib, "this machine")


def _refused(spec: EngineSpec, number: Callable[[str, int], int], size: _Size) -> str:
    """What an engine would refuse when it loads."""
    context, steps = number("context", 128), number("decode-len", 64)
    needed = context + steps + 1
    if size.context_limit and needed > size.context_limit:
        return (
            f"{spec.name}: {context} + {steps} + 1 = {needed} positions, but the model's context"
            f" is {size.context_limit}"
        )
    drive = spec.options.get("drive", "generator")
    if spec.name == "llamacpp" and number("batch", 1) > 1 and drive == "generator":
        return "llamacpp: its generator decodes one sequence; use llamacpp:drive=forward"
    return ""


def _need_mib(spec: EngineSpec, size: _Size, number: Callable[[str, int], int]) -> float | None:
    """Weights, KV cache and, of an engine that takes a prompt in one pass, the widest moment of it:
    gate and up, the activation, their product, and the stream twice."""
    if size.held is None or size.kv_per_token is None:
        return None
    context, batch = number("context", 128), number("batch", 1)
    cache = size.kv_per_token * (context + number("decode-len", 64) + 1) * batch
    prompt = 0
    if spec.name in WHOLE_PROMPT and size.config is not None:
        width = 4 * size.config.intermediate_size + 2 * size.config.hidden_size
        prompt = context * batch * width * size.element
    return (size.held + cache + prompt) / 2**20


def _load_s(size: _Size, number: Callable[[str, int], int]) -> float:
    """Of one engine; what is not known of its weights is left out."""
    count = 2 if number("traced-steps", 32) else 1
    return count * (START_S + (size.held or 0) / 1e9 / LOAD_GB_S)


def _decoding_s(
    size: _Size, number: Callable[[str, int], int], spec: EngineSpec, place: Place | None
) -> float | None:
    """Of one engine, where rounds end the run."""
    if size.held is None or size.parameters is None:
        return None
    gpu = _on_gpu(spec, place)
    flop_s = GPU_FLOP_S if gpu else CORE_FLOP_S * (os.cpu_count() or 1)
    context, batch = number("context", 128), number("batch", 1)
    steps, rounds = number("decode-len", 64), number("rounds", 16)
    moved = size.held + (size.kv_per_token or 0) * (context + steps / 2) * batch
    step = max(moved / 1e9 / (GPU_GB_S if gpu else HOST_GB_S), 2 * size.parameters * batch / flop_s)
    prefill = max(step, 2 * size.parameters * context * batch / flop_s)
    traced = number("traced-steps", 32)
    decoding = (rounds + WARM_UP_ROUNDS) * (prefill + steps * step)
    if traced:
        decoding += WARM_UP_ROUNDS * (prefill + steps * step) + prefill + traced * step
    return decoding
