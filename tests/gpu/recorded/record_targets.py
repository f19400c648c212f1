"""Programs that ``run_record.py`` records. They import nothing of llmprof.

    python3 tests/gpu/recorded/record_targets.py NAME [--profile OUT.json]

Each marks its steps with NVTX ranges ``decode N``, one phase after another, and prints ``TRUTH``
and a JSON object at the end. With ``--profile`` torch.profiler watches the same steps instead.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import turns

STEPS = 40
REPEATS = 5
"""Of each phase that is compared with torch.profiler's: short kernels vary."""


class Loop(torch.nn.Module):
    """A Llama-shaped decoder with a static KV cache: every step has the same kernels."""

    def __init__(self, layers: int, dim: int, device: str, world: int = 1) -> None:
        super().__init__()
        options = {"device": device, "dtype": torch.float16}
        heads, self.size = 16, dim // 16
        self.heads, self.dim, self.world = heads // world, dim, world
        width = self.heads * self.size

        def weight(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, **options) * 0.02, requires_grad=False)

        self.embedding, self.head = weight(4000, dim), weight(4000, dim)
        self.qkv = [weight(3 * width, dim) for _ in range(layers)]
        self.out = [weight(dim, width) for _ in range(layers)]
        self.up = [weight(4 * dim // world, dim) for _ in range(layers)]
        self.down = [weight(dim, 4 * dim // world) for _ in range(layers)]
        self.k = torch.zeros(layers, 1, self.heads, 256, self.size, **options)
        self.v = torch.zeros_like(self.k)
        self.token = torch.ones(1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)

    def forward(self) -> None:
        functional = torch.nn.functional
        x = self.embedding[self.token]
        for i in range(len(self.qkv)):
            n = functional.rms_norm(x, (self.dim,))
            q, k, v = (n @ self.qkv[i].T).view(3, 1, self.heads, 1, self.size)
            self.k[i].index_copy_(2, self.position, k)
            self.v[i].index_copy_(2, self.position, v)
            a = functional.scaled_dot_product_attention(q, self.k[i], self.v[i])
            a = a.reshape(1, -1) @ self.out[i].T
            if self.world > 1:
                torch.distributed.all_reduce(a)
            x = x + a
            m = functional.silu(functional.rms_norm(x, (self.dim,)) @ self.up[i].T) @ self.down[i].T
            if self.world > 1:
                torch.distributed.all_reduce(m)
            x = x + m
        self.token.copy_((x @ self.head.T).argmax(-1))
        self.position.add_(1).remainder_(256)


class Steps:
    """Runs a phase: marked by NVTX, or under torch.profiler."""

    def __init__(self, profile: str | None) -> None:
        self.profile = profile
        self.found: dict[str, Any] = {}
        self.warm: set[str] = set()

    def run(self, phase: str, step: Any, count: int = STEPS, mark: bool = True) -> None:
        """``mark=False``: the step marks its own parts."""
        for _ in range(0 if phase in self.warm else 3):
            step()
        self.warm.add(phase)
        torch.cuda.synchronize()
        begin = time.monotonic_ns()
        if self.profile is None:
            torch.cuda.nvtx.range_push(f"phase {phase}")
            for i in range(count):
                if mark:
                    torch.cuda.nvtx.range_push(f"decode {i}")
                step()
                if mark:
                    torch.cuda.nvtx.range_pop()
            torch.cuda.nvtx.range_pop()
        else:
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CUDA]) as watched:
                for _ in range(count):
                    step()
                torch.cuda.synchronize()
            path = f"{self.profile}.{phase}"
            watched.export_chrome_trace(path)
            self.found.setdefault(phase, []).append(launches_of(path))
        self.found.setdefault("phases", []).append([phase, count, begin, time.monotonic_ns()])

    def end(self, **more: Any) -> None:
        print("TRUTH", json.dumps({**self.found, **more}), flush=True)


def launches_of(trace: str) -> dict[str, list[float]]:
    """torch.profiler's kernels: name → µs of each launch, in their order."""
    events = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    found: dict[str, list[float]] = {}
    kernels = [e for e in events if e.get("cat") == "kernel"]
    for event in sorted(kernels, key=lambda e: float(e["ts"])):
        found.setdefault(event["name"], []).append(float(event["dur"]))
    return found


def warm_profiler(steps: Steps) -> None:
    """CUPTI has to be attached before a graph is captured."""
    if steps.profile is None:
        torch.zeros(1, device="cuda")  # as below: both programs lay their memory out alike
        torch.cuda.synchronize()
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def captured(model: Any) -> Any:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model()
    return graph


@torch.inference_mode()
def loop(steps: Steps) -> None:
    warm_profiler(steps)
    model = Loop(8, 2048, "cuda")

    def eager() -> None:
        model()
        model.token.item()

    for _ in range(REPEATS):
        steps.run("eager", eager)
    graph = captured(model)

    def replay() -> None:
        graph.replay()
        model.token.item()

    for _ in range(REPEATS):
        steps.run("graph", replay)
    steps.end()


@torch.inference_mode()
def window(steps: Steps) -> None:
    """Graph steps for some seconds: the graph is instantiated while nothing is recorded."""
    model = Loop(8, 2048, "cuda")
    graph = captured(model)
    end, count = time.monotonic() + float(os.environ.get("TARGET_SECONDS", "6")), 0
    while time.monotonic() < end:
        torch.cuda.nvtx.range_push(f"decode {count}")
        graph.replay()
        model.token.item()
        torch.cuda.nvtx.range_pop()
        count += 1
    steps.end(steps=count)


@torch.inference_mode()
def busy(steps: Steps) -> None:
    """Two threads that never wait for the GPU for long, one replays a graph, one launches."""
    import threading

    model, other = Loop(6, 1024, "cuda"), Loop(2, 1024, "cuda")
    graph = captured(model)
    torch.cuda.synchronize()
    end, done = time.monotonic() + float(os.environ.get("TARGET_SECONDS", "6")), [0, 0]

    def launch() -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            while time.monotonic() < end:
                other()
                done[1] += 1
                if done[1] % 20 == 0:
                    other.token.item()

    thread = threading.Thread(target=launch)
    thread.start()
    while time.monotonic() < end:
        torch.cuda.nvtx.range_push(f"decode {done[0]}")
        graph.replay()
        torch.cuda.nvtx.range_pop()
        done[0] += 1
        if done[0] % 20 == 0:
            model.token.item()
    thread.join()
    torch.cuda.synchronize()
    steps.end(replays=done[0], eager=done[1])


@torch.inference_mode()
def profiler_inside(steps: Steps) -> None:
    """The program uses torch.profiler itself, twice."""
    from torch.profiler import ProfilerActivity, profile

    model = Loop(2, 1024, "cuda")

    def step() -> None:
        model()
        model.token.item()

    for phase in ("before", "during", "after", "again", "behind"):
        if phase in ("during", "again"):
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]):
                steps.run(phase, step, 10)
        else:
            steps.run(phase, step, 10)
    steps.end()


@torch.inference_mode()
def generate(steps: Steps) -> None:
    """transformers' own loop over a small random Llama; a hook marks each forward."""
    from transformers import LlamaConfig, LlamaForCausalLM

    warm_profiler(steps)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=512,
        torch_dtype=torch.float16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).half().cuda().eval()
    ids = torch.randint(3, 8000, (1, 32), device="cuda")
    arguments: dict[str, Any] = {
        "max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0,
    }  # fmt: skip
    if "static" in sys.argv:
        arguments["cache_implementation"] = "static"
    if steps.profile is None:
        count = [0]

        def before(*_: Any) -> None:
            torch.cuda.nvtx.range_push(f"decode {count[0]}")
            count[0] += 1

        def after(*_: Any) -> None:
            torch.cuda.nvtx.range_pop()  # its depth, returned by a hook, would be the output

        model.register_forward_pre_hook(before)
        model.register_forward_hook(after)

    def whole() -> None:
        model.generate(ids, **arguments)
        torch.cuda.synchronize()

    for _ in range(REPEATS):
        steps.run("generate", whole, 1, mark=False)
    steps.end(marked=count[0] if steps.profile is None else 0)


@torch.inference_mode()
def bandwidth(steps: Steps) -> None:
    """A CUDA graph whose traffic is known: arrays and weights that are read once a step, and more
    of them than the L2 cache holds. What is written is next to nothing: lines that a kernel wrote
    may leave the cache beneath the next one."""
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.float16}
    wide = [torch.zeros(1 << 27, **options) for _ in range(2)]  # 268.44 MB each
    up = [torch.randn(11008, 4096, **options) for _ in range(8)]
    down = [torch.randn(4096, 11008, **options) for _ in range(8)]
    x = torch.randn(1, 4096, **options)

    def step() -> None:
        for array in wide:
            array.sum()
        h = x
        for a, b in zip(up, down, strict=True):
            h = torch.nn.functional.linear(torch.nn.functional.linear(h, a) * 1e-3, b) * 1e-3

    graph = captured(step)
    end, count = time.monotonic() + float(os.environ.get("TARGET_SECONDS", "6")), 0
    while time.monotonic() < end:
        torch.cuda.nvtx.range_push(f"decode {count}")
        graph.replay()
        torch.cuda.synchronize()
        torch.cuda.nvtx.range_pop()
        count += 1
    moved = sum(array.nbytes for array in wide + up + down)
    steps.end(steps=count, mb_a_step=moved / 1e6)


@torch.inference_mode()
def ranks(steps: Steps) -> None:
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", rank))
    model = Loop(4, 2048, f"cuda:{rank}", 2)

    def step() -> None:
        model()
        model.token.item()

    steps.run("eager", step, int(os.environ.get("RANK_STEPS", STEPS)))
    torch.distributed.barrier()
    torch.cuda.synchronize()
    torch.distributed.destroy_process_group()
    steps.end(rank=rank, reduces_a_step=8)


def spawned(steps: Steps) -> None:
    """An engine as a spawned child that its parent ends, as servers do."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=serve, args=(queue,))
    child.start()
    count = queue.get(timeout=100)
    child.terminate()
    child.join()
    steps.end(steps=count, child=child.pid, code=child.exitcode)


@torch.inference_mode()
def serve(queue: Any) -> None:
    model = Loop(2, 1024, "cuda")
    for i in range(50):
        torch.cuda.nvtx.range_push(f"decode {i}")
        model()
        model.token.item()
        torch.cuda.nvtx.range_pop()
    queue.put(50)
    time.sleep(60)


TARGETS = {
    "loop": loop, "window": window, "busy": busy, "profiler": profiler_inside, "generate": generate,
    "ranks": ranks, "spawned": spawned, "bandwidth": bandwidth,
}  # fmt: skip

if __name__ == "__main__":
    where = sys.argv.index("--profile") + 1 if "--profile" in sys.argv else None
    if sys.argv[1] == "generate":
        import transformers.models.llama.modeling_llama  # noqa: F401 - before its turn
    turns.take()
    TARGETS[sys.argv[1]](Steps(sys.argv[where] if where else None))
