"""Hugging Face transformers: any causal language model that it knows, from local files only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.driven import ClosedByDrive, Drive
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.engines.pytorch.attention import PLANNED, leave_cudnn_out, planned
from llmprof.engines.pytorch.devices import DTYPES, device_of, dtype_of, threads_of
from llmprof.engines.transformers import sizes
from llmprof.engines.transformers.drives import ForwardDrive, GenerateDrive
from llmprof.engines.transformers.loading import Asked, Loaded, import_transformers, load_module
from llmprof.errors import LoadAgain, MissingPackage, UsageError
from llmprof.models.locate import resolve
from llmprof.records import EngineInfo, Unavailable

_ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}
_COMPILE = ("none", "default", "reduce-overhead")


class TransformersEngine(ClosedByDrive[Drive]):
    """Options: ``drive=generate|forward``, ``cache=dynamic|static``,
    ``compile=none|default|reduce-overhead``, ``attention=sdpa|flash|eager``,
    ``device=cpu|cuda|cuda:N``, ``dtype=fp32|bf16|fp16``, ``threads=N``, ``cudnn_attention=1|0``, as
    for the torch engine.

    ``generate`` is the package's own loop, ``forward`` a bare one around the model. Compiling wants
    ``cache=static``, whose tensors stay where they are.
    """

    name = "transformers"

    def __init__(self) -> None:
        super().__init__()
        self._trace: Any = None
        self.module: Any = None
        """The loaded ``PreTrainedModel``; ``None`` before ``load`` and after ``close``."""

    def load(self, request: LoadRequest, progress: Progress) -> None:
        try:
            import torch
        except ImportError as why:
            raise MissingPackage(
                f"engine 'transformers' needs torch ({why});"
                f" install it with: {how_to_install('transformers')}"
            ) from None
        from llmprof.engines.pytorch.memory import memory_errors

        asked, threads = _choose(request, torch)
        ref = resolve(request.model)
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch, self._device = torch, asked.device
        self._memory_errors = memory_errors
        with memory_errors(self.name, "the model", asked.device):
            loaded = load_module(ref, asked, request, progress)
            config = loaded.module.config.get_text_config()
            limit = getattr(config, "max_position_embeddings", None)
            _check_context(request.max_positions, limit, loaded.name)
            self.module, self._asked = loaded.module, asked
            self._vocab = int(config.vocab_size)
            if asked.compile != "none":
                progress("compiling", None)
            kv_bytes = self._measure_cache(loaded.module, request.batch)
            self._set_up(request.batch, request.max_positions)
        self._info = _describe(loaded, asked, request, kv_bytes, limit)

    def reshape(self, batch: int, max_positions: int) -> None:
        if self._asked.compile != "none":
            raise LoadAgain("what torch.compile has made is for one batch and context")
        _check_context(max_positions, self._info.context_limit, self._info.model)
        self._ready().close()
        self._drive = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()
        with self._memory_errors(self.name, "the KV cache", self._device):
            self._set_up(batch, max_positions)

    def _set_up(self, batch: int, positions: int) -> None:
        """A drive for this shape, tried once."""
        self._batch, self._positions = batch, positions
        self._drive = drive = _drive(self._torch, self.module, self._asked, positions)
        # Compiled at its second and third call; a kernel that is missing fails here.
        drive.prefill([[1 % self._vocab]] * batch)
        for _ in range(3 if positions > 4 else 1):
            drive.step()
        drive.reset()

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt(self.name, prompt_ids, self._batch, self._vocab, self._positions)
        with self._memory_errors(self.name, "the prompt", self._device):
            return self._ready().prefill(prompt_ids)

    def decode_step(self) -> Sequence[int]:
        return self._ready().step()

    def close(self) -> None:
        super().close()
        self.module = None
        if self._info.device.startswith("cuda"):
            self._torch.cuda.empty_cache()

    def start_op_trace(self) -> None:
        from llmprof.engines.pytorch.ops import OpTrace

        self._trace = OpTrace()
        self._trace.start()

    def stop_op_trace(self) -> Sequence[tuple[str, int, int, int]]:
        trace, self._trace = self._trace, None
        return trace.stop() if trace else []

    def _measure_cache(self, module: Any, batch: int) -> int | Unavailable:
        """One position, read back from the cache that the model itself fills."""
        with self._torch.inference_mode():
            ids = self._torch.ones((batch, 1), dtype=self._torch.long, device=self._device)
            filled = module(input_ids=ids, use_cache=True).past_key_values
        return sizes.kv_bytes_per_token(filled, batch)


def _check_context(positions: int, limit: int | None, name: str) -> None:
    if limit and positions > limit:
        raise UsageError(
            f"transformers: {positions} positions asked for, but the context of {name} is {limit};"
            " shorten --prompt-len or --decode-len"
        )


def _choose(request: LoadRequest, torch: Any) -> tuple[Asked, int | None]:
    given = Options("transformers", request.options)
    device = device_of(given, torch)
    on_cuda = device.type == "cuda"
    dtype = dtype_of(given, device)
    drive = given.text("drive", "generate", ("generate", "forward"))
    compiled = given.text("compile", "none", _COMPILE)
    cache = given.text(
        "cache", "dynamic" if compiled == "none" else "static", ("dynamic", "static")
    )
    attention = given.text("attention", "sdpa", tuple(_ATTENTION))
    threads = threads_of(given, device)
    cudnn = given.flag("cudnn_attention", True)
    given.done()
    if not cudnn:
        leave_cudnn_out(torch)
    if compiled != "none" and cache == "dynamic":
        raise UsageError(
            f"transformers:compile={compiled} needs cache=static: a dynamic cache moves each step"
        )
    if compiled != "none" and drive == "generate" and not on_cuda:
        raise UsageError(
            f"transformers:compile={compiled}: generate compiles on a GPU only; use drive=forward"
        )
    if compiled == "reduce-overhead" and not on_cuda:
        raise UsageError("transformers:compile=reduce-overhead needs device=cuda (CUDA graphs)")
    if on_cuda:
        torch.cuda.set_device(device)
    chosen = Asked(device, DTYPES[dtype], drive, cache, compiled, _ATTENTION[attention])
    return chosen, threads


def _drive(torch: Any, module: Any, asked: Asked, positions: int) -> ForwardDrive | GenerateDrive:
    if asked.drive == "generate":
        return _generate_drive(torch, module, asked, positions)
    transformers = import_transformers()

    def prefill(ids: Any, cache: Any) -> Any:
        return module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def plain(ids: Any, position_ids: Any, cache: Any) -> Any:
        return module(
            input_ids=ids, position_ids=position_ids, past_key_values=cache, use_cache=True
        ).logits

    step: Callable[..., Any] = plain
    if asked.compile != "none":
        step = torch.compile(plain, mode=asked.compile, dynamic=False)
    if asked.cache == "dynamic":

        def fresh() -> Any:
            return transformers.DynamicCache(config=module.config)

    else:
        kept = transformers.StaticCache(config=module.config, max_cache_len=positions)

        def fresh() -> Any:
            kept.reset()
            return kept

    return ForwardDrive(torch, prefill, step, fresh, asked.device)


def _generate_drive(torch: Any, module: Any, asked: Asked, positions: int) -> GenerateDrive:
    try:
        import greenlet
    except ImportError as why:
        raise MissingPackage(
            f"transformers:drive=generate needs the package greenlet ({why});"
            f" install it with: {how_to_install('transformers')}, or use drive=forward"
        ) from None
    transformers = import_transformers()
    settings: dict[str, Any] = {
        # Without an end token nothing stops it before its length.
        "eos_token_id": None,
        "pad_token_id": 0,
        "do_sample": False,
        # One length for all prompts: a static cache is made once and used again.
        "max_length": positions + 1,
    }
    if asked.cache == "static":
        settings["cache_implementation"] = "static"
    if asked.compile == "none":
        settings["disable_compile"] = True
    else:
        settings["compile_config"] = transformers.CompileConfig(
            mode=asked.compile, fullgraph=False, dynamic=False
        )
    # What a model's own generation_config.json says (sampling, penalties) does not count here.
    module.generation_config = transformers.GenerationConfig(**settings)

    def run(ids: Any, streamer: Any) -> None:
        module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer)

    return GenerateDrive(
        torch, run, greenlet.greenlet, greenlet.getcurrent, greenlet.GreenletExit, asked.device
    )


def _describe(
    loaded: Loaded,
    asked: Asked,
    request: LoadRequest,
    kv_bytes: int | Unavailable,
    limit: int | None,
) -> EngineInfo:
    import torch

    module, on_cuda = loaded.module, asked.device.type == "cuda"
    config = module.config.get_text_config()
    count, step_bytes = sizes.parameters(module), sizes.weight_bytes_per_step(module)
    versions = {"transformers": import_transformers().__version__, "torch": torch.__version__}
    if on_cuda:
        versions["cuda"] = str(torch.version.cuda)
    notes = list(loaded.notes)
    notes.append(f"attention: {module.config._attn_implementation}")
    notes.append(f"KV cache: {asked.cache}")
    if asked.compile != "none":
        notes.append(f"torch.compile, mode {asked.compile}")
    for what, value in (("weights a step reads", step_bytes), ("KV bytes a token", kv_bytes)):
        if isinstance(value, Unavailable):
            notes.append(f"{what} unknown: {value.reason}")
    size = getattr(torch, asked.dtype).itemsize
    quantised = "as" not in loaded.format and "random" not in loaded.format
    return EngineInfo(
        versions=versions,
        model=loaded.name,
        model_format=loaded.format,
        architecture=str(config.model_type),
        parameters=count,
        bits_per_weight=None if quantised else 8.0 * size,
        weight_bytes_per_step=None if isinstance(step_bytes, Unavailable) else step_bytes,
        kv_bytes_per_token=None if isinstance(kv_bytes, Unavailable) else kv_bytes,
        context_limit=limit,
        vocab_size=int(config.vocab_size),
        device=str(asked.device),
        dtype=next((k for k, v in DTYPES.items() if v == asked.dtype), asked.dtype),
        drive=asked.drive,
        cuda_graph=asked.compile == "reduce-overhead" if on_cuda else None,
        warmup_min_steps=16 if asked.compile != "none" else 8 if on_cuda else 2,
        warmup_lengths=PLANNED if _plans(torch, config, asked) else "",
        threads=None if on_cuda else torch.get_num_threads(),
        options=dict(request.options),
        notes=notes,
        weights_id=loaded.weights_id,
        op_tracer=None if on_cuda else "torch",
    )


def _plans(torch: Any, config: Any, asked: Asked) -> bool:
    """A static cache has one length; a dynamic one grows by each step."""
    if asked.cache == "static" or asked.attention != "sdpa":
        return False
    heads = getattr(config, "num_attention_heads", 0)  # none: a state space model
    if not heads:
        return False
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return planned(torch, asked.device, getattr(torch, asked.dtype), heads, 1, size)
