"""``--to llama-bench``: the JSON of llama.cpp's llama-bench, for whatever reads that.

A list with two tests an engine, as llama-bench has them: prompt processing (``n_gen`` 0) and text
generation (``n_prompt`` 0, ``n_depth`` the prompt's length: the tokens were generated behind it).
Fields are those of llama-bench; settings that only llama.cpp has are at its defaults, 0 or empty.
``build_commit`` tells builds apart there: here it is a digest of the engine's versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from llmprof.analysis.timing.conditions import gpu_index
from llmprof.analysis.view.report import EngineReport
from llmprof.errors import UsageError
from llmprof.exports.formats import Progress
from llmprof.exports.interchange.benchmark_report import NOTHING
from llmprof.exports.loaded import Loaded, load
from llmprof.records import EngineInfo, RunData
from llmprof.records.steps import StepChoice


def write(files: Sequence[Path], out: Path, progress: Progress, steps: StepChoice) -> None:
    """One list for all files.

    Raises:
        UsageError: no engine has a complete timing round.
    """
    rows = [row for run in load(files, progress, steps) for row in _rows(run)]
    if not rows:
        raise UsageError(NOTHING)
    out.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _rows(run: Loaded) -> list[dict[str, Any]]:
    workload = run.data.info.workload
    prompt, batch = int(workload.get("prompt_len") or 0), int(workload.get("batch") or 1)
    rows = []
    for engine in run.report.engines:
        if engine.info is None:
            continue
        common = _common(run.data, engine, engine.info, batch)
        done = [r for r in engine.steps.rounds if r.complete and r.decode_ns and r.steps]
        prefills = [r.ttft_ns for r in done if r.ttft_ns]
        if prefills and prompt:
            rows.append(
                {**common, **_test(prompt, 0, 0, prefills, [prompt * batch] * len(prefills))}
            )
        if done:
            times = [r.decode_ns or 0 for r in done]
            test = _test(0, done[0].steps, prompt, times, [r.tokens for r in done])
            rows.append({**common, **test})
    return rows


def _test(
    prompt: int, generated: int, depth: int, times_ns: list[int], tokens: list[int]
) -> dict[str, Any]:
    rates = [count / ns * 1e9 for count, ns in zip(tokens, times_ns, strict=True)]
    several = len(times_ns) > 1
    return {
        "n_prompt": prompt,
        "n_gen": generated,
        "n_depth": depth,
        "avg_ns": round(fmean(times_ns)),
        "stddev_ns": round(stdev(times_ns)) if several else 0,
        "avg_ts": fmean(rates),
        "stddev_ts": stdev(rates) if several else 0.0,
        "samples_ns": times_ns,
        "samples_ts": rates,
    }


def _common(data: RunData, engine: EngineReport, info: EngineInfo, batch: int) -> dict[str, Any]:
    versions = f"{engine.name} {json.dumps(info.versions, sort_keys=True)}"
    index = next((gpu_index(e) for e in data.engines if e.engine_id == engine.engine_id), None)
    gpu = next((d.name for d in data.gpu_devices if d.index == index), "")
    cpu = data.info.environment.get("cpu")
    model = cpu.get("model") if isinstance(cpu, dict) else cpu
    moment = datetime.fromtimestamp(data.info.t0_utc_ns / 1e9, timezone.utc)
    packed = info.weight_bytes_per_step
    return {
        "build_commit": hashlib.sha256(versions.encode()).hexdigest()[:8],
        "build_number": 0,
        "cpu_info": model if isinstance(model, str) else "",
        "gpu_info": gpu,
        "backends": engine.label,
        "model_filename": Path(info.model).name,
        "model_type": f"{info.architecture} {info.model_format}".strip(),
        "model_size": packed or 0,
        "model_n_params": info.parameters or 0,
        "n_batch": batch,
        "n_ubatch": batch,
        "n_threads": info.threads or 0,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 0,
        "type_k": info.dtype,
        "type_v": info.dtype,
        "n_gpu_layers": 0 if index is None else -1,
        "split_mode": "none",
        "main_gpu": index or 0,
        "no_kv_offload": False,
        "flash_attn": False,
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "use_mmap": False,
        "embeddings": False,
        "no_op_offload": 0,
        "test_time": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
