"""The llama.cpp engine, through a Python package that ``load`` chooses and imports."""

from __future__ import annotations

from collections.abc import Sequence

from llmprof.engines.base import LoadRequest, Progress
from llmprof.engines.driven import ClosedByDrive
from llmprof.engines.llamacpp.bindings import NAMES, Binding, Drive, open_binding
from llmprof.engines.llamacpp.settings import Settings
from llmprof.engines.options import Options
from llmprof.engines.prompts import check_prompt
from llmprof.errors import ModelError, UsageError
from llmprof.machine import default_threads
from llmprof.models.gguf.header import GgufHeader, read_header
from llmprof.models.gguf.reader import quantisation
from llmprof.models.gguf.sizes import (
    kv_values_per_token,
    parameters,
    step_projections,
    step_tensors,
)
from llmprof.models.locate import ModelRef, resolve
from llmprof.plaintext import one_line
from llmprof.records import EngineInfo, Unavailable

_KV_VALUE_BYTES = 2  # llama.cpp's default KV type is F16
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
"""``LLAMA_ROPE_SCALING_TYPES`` in llama-model.cpp."""


class LlamaCppEngine(ClosedByDrive[Drive]):
    """Options: ``drive=generator|forward``, ``binding=auto|llama-cpp-python|cyllama``,
    ``threads=N``, ``n_gpu_layers=N``.

    ``generator`` is the binding's own loop, one sequence; ``forward`` is the bare
    ``llama_decode`` with an argmax, which separates the engine from its sampler and can batch.
    The binding is among the versions that ``describe`` gives.
    ``threads`` defaults to ``machine.default_threads``, as for torch.
    """

    name = "llamacpp"

    def __init__(self) -> None:
        super().__init__()
        self._filled = 0

    def load(self, request: LoadRequest, progress: Progress) -> None:
        given = Options("llamacpp", request.options)
        drive = given.text("drive", "generator", ("generator", "forward"))
        threads = given.integer("threads", None, 1) or default_threads()
        wanted = given.text("binding", "auto", ("auto", *NAMES))
        layers = given.integer("n_gpu_layers", None, -1)
        given.done()
        binding = open_binding(wanted)
        gpu_layers = (-1 if binding.on_gpu else 0) if layers is None else layers
        if gpu_layers and not binding.on_gpu:
            raise UsageError(
                f"llamacpp:n_gpu_layers={gpu_layers}: this {binding.name} is built without a GPU"
            )
        _check_batch(request.batch, drive, binding)
        ref = resolve(request.model)
        header = _header(ref)
        vocab = header.vocab_size
        _check_context(request.max_positions, header.context_limit, ref.name)
        if vocab is None:
            raise ModelError(f"{ref.name}: no token_embd.weight, this is no language model")
        kv_bytes, notes = kv_bytes_per_token(header)
        progress("loading weights", None)
        self._binding = binding
        self._settings = Settings(
            path=header.path,
            positions=request.max_positions,
            batch=request.batch,
            threads=threads,
            n_gpu_layers=gpu_layers,
            kv_bytes=kv_bytes and kv_bytes * request.max_positions * request.batch,
        )
        self._drive = binding.drives[drive](self._settings)
        self._batch, self._positions, self._vocab = request.batch, request.max_positions, vocab
        self._info = _describe(ref, header, binding, gpu_layers, kv_bytes, notes)
        self._info.drive = drive
        self._info.threads = threads
        self._info.options = dict(request.options)

    def reshape(self, batch: int, max_positions: int) -> None:
        _check_batch(batch, str(self._info.drive), self._binding)
        _check_context(max_positions, self._info.context_limit, self._info.model)
        settings = self._settings.reshaped(batch, max_positions)
        self._ready().reshape(settings)
        self._settings, self._filled = settings, 0
        self._batch, self._positions = batch, max_positions

    def prefill(self, prompt_ids: Sequence[Sequence[int]]) -> Sequence[int]:
        check_prompt("llamacpp", prompt_ids, self._batch, self._vocab, self._positions)
        first = self._ready().prefill(prompt_ids)
        self._filled = len(prompt_ids[0])
        return first

    def decode_step(self) -> Sequence[int]:
        if self._filled >= self._positions:
            # llama.cpp's generator would drop the oldest half of the cache and go on.
            raise UsageError(f"llamacpp: the KV cache of {self._positions} positions is full")
        self._filled += 1
        return self._ready().step()

    def reset(self) -> None:
        self._filled = 0
        super().reset()


def _check_batch(batch: int, drive: str, binding: Binding) -> None:
    if batch > 1 and drive == "generator":
        raise UsageError(
            f"llamacpp: the generator decodes one sequence, not {batch}; use llamacpp:drive=forward"
        )
    if batch > binding.most_sequences:
        raise UsageError(
            f"llamacpp: batch {batch}, llama.cpp has at most {binding.most_sequences} sequences"
        )


def _check_context(positions: int, limit: int | None, name: str) -> None:
    if limit is not None and positions > limit:
        raise UsageError(
            f"llamacpp: {positions} positions asked for, but the context of {name} is {limit};"
            " shorten --prompt-len or --decode-len"
        )


def kv_bytes_per_token(header: GgufHeader) -> tuple[int | None, list[str]]:
    """K and V of all layers for one position at F16, bytes; ``None`` with a note where that is not
    known."""
    values = kv_values_per_token(header)
    if isinstance(values, Unavailable):
        return None, [values.reason]
    return values * _KV_VALUE_BYTES, []


def _header(ref: ModelRef) -> GgufHeader:
    """Checked by our reader first: llama.cpp may abort the process over a corrupt file."""
    if ref.kind != "gguf" or ref.path is None:
        raise ModelError(f"llamacpp loads GGUF files only; {ref.name} is {_KINDS[ref.kind]}")
    header = read_header(ref.path)
    scaling = header.text(f"{header.architecture}.rope.scaling.type")
    if scaling not in (None, *_ROPE_SCALINGS):
        raise ModelError(
            f"{ref.name}: rope scaling {one_line(scaling, 40)!r}, at which llama.cpp would abort;"
            f" it knows {', '.join(_ROPE_SCALINGS)}"
        )
    return header


_KINDS = {
    "preset": "a preset with random weights",
    "hf": "a Hugging Face folder",
    "mlc": "a folder of MLC weights",
    "config": "a config.json without weights",
}


def _describe(
    ref: ModelRef,
    header: GgufHeader,
    binding: Binding,
    gpu_layers: int,
    kv_bytes: int | None,
    notes: list[str],
) -> EngineInfo:
    read = step_tensors(header)
    size = bits = None
    if not isinstance(read, Unavailable):
        size, count = sum(t.n_bytes for t in read), sum(t.count for t in read)
        bits = 8 * size / count if count else None
    kind = quantisation(header)
    notes = [*notes, "KV cache F16; activations are quantised to 8 bits for quantised weights"]
    if isinstance(read, Unavailable):
        notes.append(read.reason)
    device = "cpu"
    if gpu_layers:
        device = "cuda:0" if binding.built_for == "cuda" else "gpu"
        notes.append(f"n_gpu_layers {gpu_layers} (-1: all); llama.cpp decides on CUDA graphs")
    return EngineInfo(
        versions=dict(binding.versions),
        model=ref.name,
        model_format=f"gguf {kind}",
        architecture=header.architecture,
        parameters=parameters(header),
        bits_per_weight=bits,
        weight_bytes_per_step=size,
        kv_bytes_per_token=kv_bytes,
        context_limit=header.context_limit,
        vocab_size=header.vocab_size,
        device=device,
        dtype="fp32",
        warmup_min_steps=2,
        notes=notes,
        weights_id=header.weights_id,
        projections=step_projections(header),
    )
