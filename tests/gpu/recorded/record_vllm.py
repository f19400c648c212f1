"""A vLLM program that knows nothing of llmprof, to be recorded or run alone.

    python3 tests/gpu/recorded/record_vllm.py eager|graphs|warm [--layers 8] [--tokens 60]
        [--child] [--profile OUT | --both OUT]

Dummy weights in Llama shapes, token ids in and out. One request warms up; then ``--repeats``
requests, each a phase. It prints ``TRUTH`` and one JSON object: each phase with its decode steps
and its begin and end (CLOCK_MONOTONIC), and when each iteration of vLLM's engine came back.
``--child`` leaves the engine core in a process of its own, vLLM's default. With ``--profile``
torch.profiler watches each phase instead (not of a child), and kernels by name are in the truth.
``--both``: first torch.profiler, which then gives CUPTI back, then five ranges ``step N`` and the
same requests once more, for a recorder whose window opens with them: one process, two tools.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import turns

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("eager", "graphs", "warm"), help="warm: fills its caches")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--profile", help="name of files for torch.profiler's traces")
    parser.add_argument("--both", help="the same, and then the requests once more")
    args = parser.parse_args()
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_ENABLE_V1_MULTIPROCESSING="1" if args.child else "0",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    if args.both:
        os.environ["TEARDOWN_CUPTI"] = "1"
    began = time.monotonic()
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        document = {**SHAPE, "num_hidden_layers": args.layers}
        (Path(folder) / "config.json").write_text(json.dumps(document))
        understood(folder)
        if args.mode == "warm":
            return
        turns.take()
        if args.profile or args.both:
            attach_profiler()
        graphs = {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 2],
        }
        llm = vllm.LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=1024,
            max_num_seqs=2,
            gpu_memory_utilization=0.3,
            enable_prefix_caching=False,
            seed=0,
            **({"enforce_eager": True} if args.mode == "eager" else {"compilation_config": graphs}),
        )
        print(f"vLLM started in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        truth = requests(vllm, llm, args)
        truth |= {"vllm": vllm.__version__, "mode": args.mode, "child": args.child}
        print("TRUTH", json.dumps(truth), flush=True)


def understood(folder: str) -> None:
    """vLLM looks at a model's class in a process of its own, and keeps what it saw: before the
    turn, since it needs no GPU and takes as long as the import."""
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(model=folder, skip_tokenizer_init=True, max_model_len=1024).create_model_config()


def requests(vllm: Any, llm: Any, args: argparse.Namespace) -> dict[str, Any]:
    params = vllm.SamplingParams(
        max_tokens=args.tokens, ignore_eos=True, temperature=0.0, detokenize=False
    )
    prompt = {"prompt_token_ids": [5 + (7 * n) % 30000 for n in range(100)]}
    stamps: list[int] = []
    iterate = llm.llm_engine.step

    def stamped() -> Any:
        found = iterate()
        stamps.append(time.monotonic_ns())
        return found

    def request() -> int:
        (found,) = llm.generate([prompt], [params], use_tqdm=False)
        return len(found.outputs[0].token_ids)

    llm.llm_engine.step = stamped
    request()
    profiled = []
    if args.profile or args.both:
        # The first session behind one that gave CUPTI back (attach_profiler) records nothing.
        for _ in range(args.repeats + bool(args.both)):
            profiled.append(watched(request, f"{args.profile or args.both}.vllm"))
            time.sleep(0.05)
    if args.both:
        del profiled[0]
        hand_over()
    phases: list[list[Any]] = []
    returned: list[list[int]] = []
    for _ in range(0 if args.profile else args.repeats):
        stamps.clear()
        begin = time.monotonic_ns()
        tokens = request()
        phases.append(["generate", tokens - 1, begin, time.monotonic_ns()])
        returned.append(list(stamps))
        time.sleep(0.05)  # the recording sees a pause between two requests
    return {"phases": phases, "returned": returned, "generate": profiled}


def hand_over() -> None:
    """Kineto gives CUPTI back within a call into CUDA; the recorder comes with five steps."""
    import torch

    for _ in range(20):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        time.sleep(0.05)
    for number in range(5):
        torch.cuda.nvtx.range_push(f"step {number}")
        torch.cuda.nvtx.range_pop()
    for _ in range(20):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        time.sleep(0.1)


def attach_profiler() -> None:
    """CUPTI has to be attached before a graph is captured."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def watched(work: Any, path: str) -> dict[str, list[float]]:
    """Its kernels: name → µs of each launch, in their order."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    seen.export_chrome_trace(path)
    events = json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"]
    kernels: dict[str, list[float]] = {}
    for event in sorted(
        (e for e in events if e.get("cat") == "kernel"), key=lambda e: float(e["ts"])
    ):
        kernels.setdefault(event["name"], []).append(float(event["dur"]))
    return kernels


if __name__ == "__main__":
    main()
