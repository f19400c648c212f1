"""A vLLM program that knows nothing of llmprof, to be recorded or run alone.

    python3 tests/gpu/record_vllm.py eager|graphs [--layers 8] [--tokens 60] [--child]

Dummy weights in Llama shapes, token ids in and out; prints one JSON line: what it decoded, and how
many decode steps that were. ``--child`` leaves the engine core in a process of its own, vLLM's
default.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

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
    parser.add_argument("mode", choices=("eager", "graphs"))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_ENABLE_V1_MULTIPROCESSING="1" if args.child else "0",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        document = {**SHAPE, "num_hidden_layers": args.layers}
        (Path(folder) / "config.json").write_text(json.dumps(document))
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
        params = vllm.SamplingParams(
            max_tokens=args.tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )
        begin = time.monotonic()
        prompt = {"prompt_token_ids": [5 + (7 * n) % 30000 for n in range(100)]}
        (found,) = llm.generate([prompt], [params], use_tqdm=False)
        seconds = time.monotonic() - begin
        tokens = len(found.outputs[0].token_ids)
        truth = {"tokens": tokens, "decode_steps": tokens - 1, "seconds": round(seconds, 4)}
        print(json.dumps({"vllm": vllm.__version__, "mode": args.mode, **truth}), flush=True)


if __name__ == "__main__":
    main()
