"""From a model's files to a module of transformers on its device; nothing is fetched from a hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmprof.distribution import how_to_install
from llmprof.engines.base import LoadRequest, Progress
from llmprof.errors import MissingPackage, ModelError, UsageError
from llmprof.models.gguf.reader import GgufWeights
from llmprof.models.huggingface.config import config_json, weights_id
from llmprof.models.huggingface.files import all_bf16, harmless, read_tensors, weight_files
from llmprof.models.locate import ModelRef, read_json
from llmprof.models.presets import EMBEDDING, HEAD, PRESETS, LlamaConfig
from llmprof.models.weights import held_id
from llmprof.plaintext import one_line

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
"""Tensors of old checkpoints that hold what the module computes itself."""


@dataclass(frozen=True)
class Asked:
    """The user's options, defaults filled in."""

    device: Any
    """``torch.device``."""
    dtype: str
    drive: str
    cache: str
    compile: str
    attention: str


@dataclass
class Loaded:
    """A module that is ready, and what is known of its weights."""

    module: Any
    name: str
    format: str
    weights_id: str | None
    notes: list[str] = field(default_factory=list)


def import_transformers() -> Any:
    """The package, told to stay offline.

    Raises:
        MissingPackage: it does not import.
    """
    for name in _OFFLINE:
        os.environ[name] = "1"
    # A note on standard error for each default that a model's files leave open helps nobody here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import transformers
    except ImportError as why:
        raise MissingPackage(
            f"engine 'transformers' needs the package transformers ({one_line(str(why), 120)});"
            f" install it with: {how_to_install('transformers')}"
        ) from None
    return transformers


def load_module(ref: ModelRef, asked: Asked, request: LoadRequest, progress: Progress) -> Loaded:
    """The model in evaluation mode on ``asked.device``.

    Raises:
        ModelError: unknown architecture, a tensor missing or left over, code of its own, pickle.
        MissingPackage: a quantised folder whose kernels are not installed.
        UsageError: an attention that this model or machine does not have.
    """
    transformers = import_transformers()
    with _explained(ref):
        if ref.kind == "gguf":
            return _from_gguf(transformers, ref, asked, progress)
        if ref.kind == "preset":
            config = _llama(transformers, PRESETS[str(ref.preset)])
            return _random(transformers, config, ref.name, asked, request, progress)
        if ref.kind == "config":
            config = _config(transformers, Path(str(ref.path)))
            return _random(transformers, config, ref.name, asked, request, progress)
        if ref.kind == "hf":
            return _from_folder(transformers, ref, asked, progress)
    raise ModelError(f"model {ref.name}: transformers does not load MLC folders")


def _config(transformers: Any, path: Path) -> Any:
    document = read_json(path)
    if document.get("auto_map"):
        raise ModelError(
            f"{one_line(str(path))}: the model needs code of its own (auto_map), which is never"
            " run here; use an architecture that transformers has"
        )
    return transformers.AutoConfig.from_pretrained(
        str(path), local_files_only=True, trust_remote_code=False
    )


def _llama(transformers: Any, shape: LlamaConfig) -> Any:
    document = config_json(shape, token_ids={}, quantization=None, ours={})
    document["tie_word_embeddings"] = shape.tie_word_embeddings
    return transformers.LlamaConfig.from_dict(document)


def _random(
    transformers: Any,
    config: Any,
    name: str,
    asked: Asked,
    request: LoadRequest,
    progress: Progress,
) -> Loaded:
    import torch

    progress("making random weights", None)
    torch.manual_seed(request.seed)
    with torch.device(asked.device):
        module = transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, asked.dtype),
            attn_implementation=asked.attention,
            trust_remote_code=False,
        )
    return Loaded(module.eval(), name, f"random {asked.dtype}", None)


def _from_folder(transformers: Any, ref: ModelRef, asked: Asked, progress: Progress) -> Loaded:
    import torch

    folder = Path(str(ref.path))
    config = _config(transformers, folder / "config.json")
    quantised = getattr(config, "quantization_config", None)
    progress("loading weights", None)
    module, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype="auto" if quantised else getattr(torch, asked.dtype),
        attn_implementation=asked.attention,
        # Quantised kernels want to be made where they run.
        **({"device_map": {"": asked.device}} if quantised else {}),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        # Told by the report, with the tensor's name.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    files, notes = weight_files(folder)
    _check_report(folder, report, files)
    if not quantised:
        module = module.to(asked.device)
    method = _quantisation(quantised)
    return Loaded(
        module.eval(),
        ref.name,
        f"safetensors {method or 'as ' + asked.dtype}",
        held_id(
            weights_id(read_json(folder / "config.json"), files),
            asked.dtype,
            bool(quantised) or all_bf16(files),
        ),
        notes,
    )


def _quantisation(stated: Any) -> str:
    if not stated:
        return ""
    method = stated.get("quant_method") if isinstance(stated, dict) else stated.quant_method
    return one_line(str(getattr(method, "value", method)), 40)


def _check_report(folder: Path, report: dict[str, Any], files: list[Path]) -> None:
    """A tensor that the module lacks or the file has for nothing makes another model of it."""
    shown = one_line(str(folder))
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    unused = [name for name in unused if not _UNUSED.search(name)]
    if unused:
        tensors = read_tensors(files)
        unused = [name for name in unused if not harmless(name, tensors)]
    if missing:
        raise ModelError(f"{shown}: no tensor {_few(missing)}; transformers would make it up")
    if report.get("mismatched_keys"):
        names = sorted(str(entry[0]) for entry in report["mismatched_keys"])
        raise ModelError(f"{shown}: the shape of {_few(names)} is not that of config.json")
    if unused:
        raise ModelError(
            f"{shown}: config.json's architecture has no use for tensor {_few(unused)}:"
            " it is not the model of these weights"
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(one_line(name, 80) for name in names[:3]) + more


def _from_gguf(transformers: Any, ref: ModelRef, asked: Asked, progress: Progress) -> Loaded:
    """A Llama out of a GGUF file, dequantised by the reader that the torch engine uses."""
    import torch

    source = GgufWeights(str(ref.path))
    try:
        dtype = getattr(torch, asked.dtype)
        config = _llama(transformers, source.config)
        with torch.device("meta"):
            module = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=asked.attention, trust_remote_code=False
            )
        module = module.to_empty(device=asked.device)
        stored = dict(module.named_parameters())
        names = list(source.config.tensor_shapes())
        _same_names(ref.name, stored, names, source.config.tie_word_embeddings)
        with torch.no_grad():
            for done, name in enumerate(names):
                progress("loading weights", done / len(names))
                stored[name].copy_(source.read(name))
            _rotary(module, source.rope_factors)
        module.tie_weights()
        notes = [*source.notes, "GGUF weights are dequantised on load: a step reads " + asked.dtype]
        return Loaded(
            module.eval(),
            ref.name,
            f"{source.format} as {asked.dtype}",
            held_id(source.weights_id, asked.dtype, source.format.lower().endswith("bf16")),
            notes,
        )
    finally:
        source.close()


def _same_names(model: str, stored: Iterable[str], names: list[str], tied: bool) -> None:
    wanted = set(stored) - ({HEAD, EMBEDDING} if tied else set())
    if odd := wanted.symmetric_difference(set(names) - ({HEAD, EMBEDDING} if tied else set())):
        raise ModelError(f"model {model}: transformers' Llama differs in {_few(sorted(odd))}")


def _rotary(module: Any, factors: Any) -> None:
    """The frequencies are no parameter: a module made without memory has none yet."""
    rotary = module.model.rotary_emb
    fresh = type(rotary)(config=module.config).to(module.device)
    if factors is not None:
        import torch

        divisors = torch.as_tensor(factors, dtype=fresh.inv_freq.dtype, device=module.device)
        for buffer in (fresh.inv_freq, fresh.original_inv_freq):
            buffer.div_(divisors)
    module.model.rotary_emb = fresh


@contextmanager
def _explained(ref: ModelRef) -> Any:
    """What transformers raises, in one line and under our names."""
    try:
        yield
    except ImportError as why:
        raise MissingPackage(
            f"model {ref.name}: transformers lacks a package for it: {one_line(str(why), 200)}"
        ) from None
    except (OSError, ValueError, KeyError, NotImplementedError) as why:
        text = one_line(str(why), 220)
        if "pip install" in text:
            raise MissingPackage(
                f"model {ref.name}: transformers lacks a package for it: {text}"
            ) from None
        if "attention" in text.lower() and "implementation" in text.lower():
            raise UsageError(f"transformers:attention: {text}") from None
        raise ModelError(f"model {ref.name}: transformers refuses it: {text}") from None
