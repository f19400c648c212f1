"""Parameters onto the device, and the vm drive around them. Uses numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmprof.engines.mlc.opening import Opening
from llmprof.engines.mlc.vm_drive import VmDrive, choose_cache, has_graphs, open_machine
from llmprof.errors import MissingPackage
from llmprof.models.mlc.metadata import MlcParameter
from llmprof.models.mlc.random import RandomParameters
from llmprof.models.mlc.weights import MlcWeights, StoredParameter


def open_vm(opening: Opening) -> tuple[VmDrive, dict[str, Any]]:
    """The drive, and what only it knows for ``EngineInfo``."""
    metadata = opening.metadata
    machine = open_machine(opening.tvm, opening.module, opening.device)
    cache = choose_cache(machine, opening.kv_kind, opening.library.shown)
    parameters = list(_on_device(opening))
    opening.device.sync()
    chunk = min(metadata.prefill_chunk_size, opening.kv_tokens)
    active = metadata.active_vocab_size
    drive = VmDrive(
        opening.tvm,
        machine,
        opening.device,
        parameters,
        cache,
        opening.request.batch,
        opening.kv_tokens,
        chunk,
        active if active is not None and active < opening.vocab_size else None,
        _ranges() if opening.phases else None,
    )
    notes = [f"KV cache: {cache}, {opening.kv_tokens} positions, pages of 16", "argmax on the host"]
    return drive, {"cuda_graph": has_graphs(machine), "notes": notes}


def _on_device(opening: Opening) -> Iterator[Any]:
    """Every parameter in the library's order."""
    metadata, vocab = opening.metadata, opening.vocab_size
    weights = opening.model.weights
    source = RandomParameters(metadata, vocab, opening.request.seed)
    total, done = max(1, metadata.parameter_bytes(vocab)), 0
    phase = "making random weights" if weights is None else "loading weights"
    empty = opening.tvm.tvm.runtime.empty
    # Bytes, since numpy has no bfloat16 and no float8.
    copy = opening.tvm.function("runtime.TVMTensorCopyFromBytes")
    for parameter in metadata.parameters:
        opening.progress(phase, done / total)
        values = source.whole(parameter) if weights is None else stored_values(weights, parameter)
        tensor = empty(parameter.sizes(vocab), parameter.dtype, opening.device)
        data = np.ascontiguousarray(values)
        copy(tensor, data.ctypes.data_as(ctypes.c_void_p), data.nbytes)
        done += parameter.n_bytes(vocab)
        yield tensor


def stored_values(weights: MlcWeights, parameter: MlcParameter) -> NDArray[Any]:
    """A parameter as numpy has it; bfloat16 as its uint16 words."""
    stored: StoredParameter = weights.stored[parameter.name]
    data = np.frombuffer(stored.read(), np.uint8)
    if stored.encoding == "f32-to-bf16":
        words = data.view(np.uint16).astype(np.uint32) << 16
        return words.view(np.float32).reshape(stored.shape)
    return data.view(_numpy_type(stored.dtype)).reshape(stored.shape)


def _numpy_type(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        return np.dtype(np.uint16)
    return np.dtype(np.uint8 if dtype.startswith("float8") else dtype)


def _ranges() -> tuple[Callable[[str], None], Callable[[], None]]:
    try:
        import nvtx
    except ImportError as why:
        raise MissingPackage(f"mlc:phases=1 needs the package nvtx ({why})") from None
    domain = nvtx.get_domain("llmprof")
    known = {
        name: domain.get_event_attributes(message=name)
        for name in ("embed", "forward", "logits", "sample")
    }
    return lambda name: domain.push_range(known[name]), domain.pop_range
