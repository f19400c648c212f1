"""MLC LLM: its own engine (``drive=serve``), or a compiled library in TVM's virtual machine
(``drive=vm``), which needs no MLC LLM at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from typing import Any

from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.driven import ClosedByDrive, Drive
from llmprof.engines.host_memory import MIB
from llmprof.engines.mlc.model import MlcModel, find_model
from llmprof.engines.mlc.opening import Opening
from llmprof.engines.mlc.tvm import Tvm, choose_device, load_library, open_device, open_tvm
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.errors import MissingPackage, ModelError, OutOfMemory, UsageError
from llmprof.models.mlc.library import inspect_library
from llmprof.plaintext import one_line
from llmprof.records import EngineInfo

DRIVES = ("auto", "serve", "vm")
_PAGE = 16
_RESERVE = {"serve": 10 * _PAGE, "vm": 0}
"""Positions a sequence that must stay free. MLC's scheduler preempts before each decode step unless
there are 10 free pages a sequence, for text that a grammar might dictate, grammar or not
(CheckMemForJumpForward in engine_actions/batch_jumpforward.cc); a prefill wants less."""
_NO_MEMORY = ("out of memory", "insufficient", "bad_alloc", "cannot allocate memory")
_WRONG_GPU = ("no kernel image", "no_binary_for_gpu", "invalid_ptx", "unsupported_ptx")


class MlcEngine(ClosedByDrive[Drive]):
    """Options: ``lib=FILE.so``, ``drive=serve|vm``, ``device=auto|cpu|cuda[:N]``, ``kv_tokens=N``,
    and for ``drive=vm``: ``weights=random``, ``vocab=N``, ``kv=auto|flashinfer|tir``, ``phases=1``
    (NVTX ranges embed, forward, logits, sample inside each step). ``tp=N`` asks for a library that
    is compiled for N GPUs: MLC splits a model when it is compiled, and takes GPU 0 to N - 1.
    """

    name = "mlc"

    def __init__(self) -> None:
        super().__init__()
        self._free: Any = lambda: None

    def load(self, request: LoadRequest, progress: Progress) -> None:
        given = Options("mlc", request.options)
        asked = given.text("drive", "auto", DRIVES)
        lib = given.text("lib", "")
        device_text = given.text("device", "auto")
        random = given.text("weights", "files", ("files", "random")) == "random"
        vocab = given.integer("vocab", None, 1)
        kv_kind = given.text("kv", "auto", ("auto", "flashinfer", "tir"))
        kv_tokens = given.integer("kv_tokens", None, 1)
        phases = given.flag("phases", False)
        split = given.integer("tp", None, 1)
        given.done()
        model = find_model(request.model, lib, random, vocab)
        library = inspect_library(model.library)
        kind, index = choose_device(device_text, library)
        tvm = open_tvm(library.cuda)
        device = open_device(tvm, library, kind, index)
        progress("loading the library", None)
        module, metadata = load_library(tvm, library)
        _check_split(split, metadata.tensor_parallel_shards, library.shown, tvm, kind, index)
        model = model.fitted(metadata, library.shown)
        drive, why_vm = _choose_drive(asked, model, phases or kv_kind != "auto")
        opening = Opening(
            request,
            progress,
            library,
            metadata,
            model,
            tvm,
            module,
            device,
            "cpu" if kind == "cpu" else f"{kind}:{index}",
            _kv_tokens(request, kv_tokens, drive),
            kv_kind,
            phases,
        )
        _check_limits(opening, drive)
        self._free = lambda: _free_bytes(device, kind)
        with self._device_errors(opening, "the model and its KV cache"):
            if drive == "serve":
                from llmprof.engines.mlc.serve_drive import open_serve

                self._drive, facts = open_serve(opening)
            else:
                from llmprof.engines.mlc.loading import open_vm

                self._drive, facts = open_vm(opening)
            # One token and one step: kernels for another GPU fail here and not in a round.
            self._drive.prefill([[1 % model.vocab_size]] * request.batch)
            self._drive.step()
            self._drive.reset()
        self._batch, self._positions = request.batch, request.max_positions
        self._vocab = model.vocab_size
        self._info = _describe(opening, drive, facts, why_vm)

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt("mlc", prompt_ids, self._batch, self._vocab, self._positions)
        return self._ready().prefill(prompt_ids)

    def decode_step(self) -> Sequence[int]:
        return self._ready().step()

    @property
    def drive(self) -> Drive:
        """For checks of one drive against another."""
        return self._ready()

    @contextmanager
    def _device_errors(self, opening: Opening, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, MemoryError) as why:
            # tvm.error.InternalError is a RuntimeError.
            text = str(why).lower()
            if isinstance(why, MemoryError) or any(mark in text for mark in _NO_MEMORY):
                free = self._free()
                left = "" if free is None else f"; {free // MIB} MiB are free"
                raise OutOfMemory(
                    f"mlc: {what} did not fit on {opening.device_name}{left}"
                ) from None
            if any(mark in text for mark in _WRONG_GPU):
                raise ModelError(
                    f"{opening.library.shown} holds no kernels for {opening.device_name};"
                    " compile it on this machine"
                ) from None
            raise


def _choose_drive(asked: str, model: MlcModel, vm_only: bool) -> tuple[str, str]:
    """The drive and, where ``auto`` became ``vm``, the reason."""
    if asked == "vm":
        return "vm", ""
    if asked == "auto" and (model.made_on_device or vm_only):
        return "vm", "drive=vm: an option was given that only this drive has"
    if util.find_spec("mlc_llm") is None:
        why = "mlc_llm is not installed in this interpreter"
    else:
        from llmprof.engines.mlc.serve_drive import import_mlc

        try:
            import_mlc()
        except MissingPackage as missing:
            why = str(missing)
        else:
            if model.made_on_device:
                raise UsageError(
                    "mlc:drive=serve loads weights from files; make random ones with:"
                    " llmprof model synth --engine mlc, or use drive=vm"
                )
            if vm_only:
                raise UsageError("mlc: kv= and phases= are for drive=vm")
            return "serve", ""
    if asked == "serve":
        raise MissingPackage(
            f"mlc:drive=serve needs MLC LLM ({one_line(why, 160)}); get it with: pip install --pre"
            " -f https://mlc.ai/wheels mlc-llm-nightly-cu130 mlc-ai-nightly-cu130,"
            " or use drive=vm, which needs only TVM"
        )
    return "vm", f"drive=vm: {one_line(why, 120)}"


def _check_split(
    asked: int | None, shards: int, shown: str, tvm: Tvm, kind: str, index: int
) -> None:
    """Raise ``UsageError`` where the library is for another number of GPUs than were asked for, or
    than there are."""
    if asked is not None and asked != shards:
        made = "1 GPU" if shards == 1 else f"{shards} GPUs"
        raise UsageError(
            f"mlc:tp={asked}: {shown} is compiled for {made}; compile it with: --overrides"
            f" tensor_parallel_shards={asked}"
        )
    if shards == 1 or kind == "cpu":
        return
    if index:
        raise UsageError(f"mlc:device={kind}:{index}: {shown} takes GPU 0 to {shards - 1}")
    have = next((n for n in range(shards) if not tvm.device(kind, n).exist), shards)
    if have < shards:
        raise UsageError(f"mlc: {shown} is compiled for {shards} GPUs, TVM sees {have}")


def _kv_tokens(request: LoadRequest, asked: int | None, drive: str) -> int:
    """Positions of the KV cache for all sequences.

    Raises:
        UsageError: fewer were asked for than the batch needs.
    """
    reserve = _RESERVE[drive]
    least = request.batch * (-(-request.max_positions // _PAGE) * _PAGE + reserve)
    if asked is not None and asked < least:
        kept = f" and {reserve} that MLC's scheduler keeps free" if reserve else ""
        raise UsageError(
            f"mlc:kv_tokens={asked} is too small: batch {request.batch} with"
            f" {request.max_positions} positions each{kept} needs {least} in pages of {_PAGE}"
        )
    return asked or least


def _check_limits(opening: Opening, drive: str) -> None:
    request, metadata, shown = opening.request, opening.metadata, opening.library.shown
    limit = metadata.context_window_size
    if limit is not None and request.max_positions > limit:
        raise UsageError(
            f"mlc: {request.max_positions} positions asked for, but {shown} has a context of"
            f" {limit}; shorten --prompt-len or --decode-len, or compile it with a larger"
            " --context-window-size"
        )
    if request.batch > metadata.max_batch_size:
        raise UsageError(
            f"mlc: batch {request.batch}, but {shown} is compiled for at most"
            f" {metadata.max_batch_size}; compile it with: --overrides"
            f" max_batch_size={request.batch}"
        )
    if drive == "serve":
        _check_memory(opening)
        return
    for reason, wrong in (
        ("is compiled for several GPUs", metadata.tensor_parallel_shards > 1),
        ("is compiled for several GPUs", metadata.pipeline_parallel_stages > 1),
        (f"keeps its state as {metadata.kv_state_kind}", metadata.kv_state_kind != "kv_cache"),
        ("has a sliding window", metadata.sliding_window_size is not None),
        ("pads its prompts", metadata.seqlen_padding_factor > 1),
    ):
        if wrong:
            raise UsageError(f"{shown} {reason}, which drive=vm does not drive; use drive=serve")
    _check_memory(opening)


def _check_memory(opening: Opening) -> None:
    """Raise before the device is full; the estimate is a lower bound."""
    metadata = opening.metadata
    free = _free_bytes(opening.device, opening.device_name.partition(":")[0])
    cache = (metadata.kv_bytes_per_token or 0) * opening.kv_tokens
    need = metadata.parameter_bytes(opening.vocab_size) + cache + metadata.workspace_bytes
    if free is not None and need > free:
        raise OutOfMemory(
            f"mlc: weights, KV cache and workspace need {need // MIB} MiB, {free // MIB} MiB are"
            f" free on {opening.device_name}; use a smaller model, batch or context"
        )


def _free_bytes(device: Any, kind: str) -> int | None:
    if kind == "cpu":
        from llmprof.engines.host_memory import host_free_bytes

        return host_free_bytes()
    free = device.available_global_memory
    return None if free is None else int(free)


def _devices(name: str, shards: int) -> str:
    """``cuda:0,1`` of a library for two GPUs."""
    kind, _, first = name.partition(":")
    if shards == 1 or kind == "cpu":
        return name
    return f"{kind}:{','.join(str(int(first) + n) for n in range(shards))}"


def _describe(opening: Opening, drive: str, facts: dict[str, Any], why_vm: str) -> EngineInfo:
    metadata, model = opening.metadata, opening.model
    step_bytes, bits, unknown = metadata.step_bytes(opening.vocab_size)
    notes = [*facts.pop("notes", []), f"library: {opening.library.shown}"]
    notes += [text for text in (why_vm, unknown) if text]
    if metadata.kv_bytes_per_token is None:
        kind = "a sliding window" if metadata.sliding_window_size else metadata.kv_state_kind
        notes.append(f"KV bytes a token: not modelled for {kind}")
    if metadata.tensor_parallel_shards > 1:
        notes.append(
            f"tensor parallel over {metadata.tensor_parallel_shards} GPUs; sizes are of one"
        )
    if opening.tvm.runtime_only:
        notes.append("TVM runs without its compiler library")
    on_gpu = opening.device_name != "cpu"
    random = "random " if model.random else ""
    return EngineInfo(
        versions={**opening.tvm.versions, **facts.pop("versions", {})},
        model=model.name,
        model_format=f"{random}mlc {metadata.quantization}",
        architecture=metadata.model_type,
        parameters=metadata.weight_count(opening.vocab_size),
        bits_per_weight=bits,
        weight_bytes_per_step=step_bytes,
        kv_bytes_per_token=metadata.kv_bytes_per_token,
        context_limit=metadata.context_window_size,
        vocab_size=opening.vocab_size,
        device=_devices(opening.device_name, metadata.tensor_parallel_shards),
        ranks=metadata.tensor_parallel_shards,
        dtype={"float16": "fp16", "float32": "fp32", "bfloat16": "bf16"}.get(
            str(metadata.dtype), str(metadata.dtype)
        ),
        drive=drive,
        # A graph segment runs plain at first, is captured at the second call, replayed from then.
        warmup_min_steps=8 if on_gpu else 2,
        cuda_graph=facts.pop("cuda_graph") if on_gpu else None,
        options=dict(opening.request.options),
        notes=notes,
        weights_id=model.weights_id,
        projections=metadata.projections(opening.vocab_size),
    )
