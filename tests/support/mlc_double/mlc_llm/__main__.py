"""The command line of mlc_llm/cli reduced to what a preparation uses; the work is done for real by
``mlc_tiny``. ``MLC_DOUBLE_FAILS=STEP`` makes a step fail as Python does,
``MLC_DOUBLE_UNUSED=NAMES`` warns of tensors as loader/utils.py does, and
``MLC_DOUBLE_ENCODING=f32-to-bf16`` stores as the real one."""

import argparse
import json
import os
import sys
from pathlib import Path


def gen_config(words: list[str]) -> None:
    parser = argparse.ArgumentParser("MLC LLM Configuration Generator")
    parser.add_argument("config")
    parser.add_argument("--quantization", required=True)
    parser.add_argument("--conv-template", required=True, choices=["LM", "llama-2"])
    parser.add_argument("--context-window-size", type=int)
    parser.add_argument("--max-batch-size", type=int, default=128)
    parser.add_argument("--output", "-o", type=Path, required=True)
    given = parser.parse_args(words)
    config = json.loads((Path(given.config) / "config.json").read_text())
    given.output.mkdir(parents=True, exist_ok=True)
    context = given.context_window_size or config["max_position_embeddings"]
    document = {
        "model_type": "llama",
        "quantization": given.quantization,
        "vocab_size": config["vocab_size"],
        "context_window_size": context,
        "sliding_window_size": -1,
        "prefill_chunk_size": min(context, 2048),
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "conv_template": {"name": given.conv_template},
        "model_config": {
            **config,
            "prefill_chunk_size": min(context, 2048),
            "max_batch_size": given.max_batch_size,
        },
    }
    (given.output / "mlc-chat-config.json").write_text(json.dumps(document))
    print("[2026-07-23 10:00:00] INFO gen_config.py:255: Dumping configuration file")


def convert_weight(words: list[str]) -> None:
    parser = argparse.ArgumentParser("MLC AutoLLM Quantization Framework")
    parser.add_argument("config")
    parser.add_argument("--quantization", required=True)
    parser.add_argument("--source-format", default="auto", choices=["huggingface-safetensor"])
    parser.add_argument("--output", "-o", type=Path, required=True)
    given = parser.parse_args(words)
    import mlc_tiny
    from safetensors.numpy import load_file
    from tvm.contrib import tvmjs

    # loader/huggingface_loader.py reads by the index, which support/auto_weight.py may have made.
    folder = Path(given.config)
    table = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for name in sorted(set(table.values())):
        tensors |= load_file(str(folder / name))
    if unused := os.environ.get("MLC_DOUBLE_UNUSED"):
        print(f"[2026-07-23 10:00:01] WARNING utils.py:31: Unused extern parameters: {unused}")
    weights = mlc_tiny.weights_from_hf(tensors, mlc_tiny.CONFIG, "float32")
    for share in (0, 50, 100):
        print(f"{share:3d}%|#####     | {share}/100 [00:00<00:00]", end="\r", file=sys.stderr)
    tvmjs.dump_tensor_cache(
        (item for item in weights.items()),
        str(given.output),
        os.environ.get("MLC_DOUBLE_ENCODING", "raw"),
        show_progress=False,
    )


def compile_model(words: list[str]) -> None:
    parser = argparse.ArgumentParser("mlc_llm compile")
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", "-o", type=Path, required=True)
    given = parser.parse_args(words)
    if given.device != "cpu":
        raise ValueError(f"Device is not found on your local environment: {given.device}")
    import mlc_tiny

    print("Running TVM Dlight low-level optimizations")
    mlc_tiny.compile_library(mlc_tiny.Build(), given.output)
    print("Compilation complete! Exporting to disk")


if __name__ == "__main__":
    step = sys.argv[1]
    if os.environ.get("MLC_DOUBLE_FAILS") == step:
        raise ValueError(f"the double was told to fail in {step}")
    {"gen_config": gen_config, "convert_weight": convert_weight, "compile": compile_model}[step](
        sys.argv[2:]
    )
