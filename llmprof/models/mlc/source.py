"""The Hugging Face folder that MLC LLM converts: what it sees of it, what it may not leave out, and
whose weights the result holds. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmprof.errors import ModelError
from llmprof.models.huggingface.config import CONFIG, rope_before_5, weights_id
from llmprof.models.huggingface.files import (
    INDEX,
    harmless,
    read_tensors,
    refuse_unused,
    weight_files,
)
from llmprof.models.locate import folder_name, read_json
from llmprof.models.mlc.weights import OURS
from llmprof.models.new_folder import write_json
from llmprof.models.presets import LlamaConfig
from llmprof.models.safetensors.header import StoredTensor
from llmprof.plaintext import one_line

_UNUSED = re.compile(rb"Unused extern parameters: ([^\r\n]+)")
"""A warning of loader/utils.py; the conversion goes on without them."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Source:
    """A folder that was looked at."""

    folder: Path
    name: str
    """A plain word, for names of files."""
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def weights_id(self) -> str:
        return weights_id(self.config, self.files)


def open_source(folder: Path) -> Source:
    """Look at the headers.

    Raises:
        ModelError: no Hugging Face folder of safetensors; a Llama with tensors or a RoPE that MLC
            LLM passes over.
    """
    shown = one_line(str(folder))
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{shown}: no Hugging Face folder, it has no {CONFIG}")
    config = read_json(folder / CONFIG)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{shown}: no *.safetensors; pickle weights can run code and are not converted"
        )
    files, _ = weight_files(folder)
    tensors = read_tensors(files)
    if config.get("model_type") == "llama" and "quantization_config" not in config:
        _check_llama(shown, config, tensors)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder_name(folder).rpartition("/")[2]).lstrip("-.")
    return Source(folder.resolve(), name or "model", config, tuple(files), tensors)


def _check_llama(
    shown: str, document: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    config = LlamaConfig.from_hf(document)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        # model/llama/llama_model.py drops a rope_scaling that it does not know, with a warning.
        raise ModelError(f"{shown}: MLC LLM has no linear rope scaling and would leave it out")
    refuse_unused(shown, "MLC LLM", config, tensors)


@contextmanager
def linked(source: Source, artifacts: Path) -> Iterator[Path]:
    """A folder of links to the source, for as long as the steps run.

    MLC LLM reads by an index and writes one beside a single file (support/auto_weight.py), but a
    source may be read-only. Files that are not the model (an adapter, an older set) are not there.
    """
    with TemporaryDirectory(prefix="source-", dir=artifacts) as made:
        # MLC LLM notes the folder's name.
        folder = Path(made).resolve() / source.name
        folder.mkdir()
        left_out = {CONFIG, INDEX}
        for file in source.folder.iterdir():
            if file.suffix != ".safetensors" and file.is_file() and file.name not in left_out:
                (folder / file.name).symlink_to(file.resolve())
        for file in source.files:
            (folder / file.name).symlink_to(file.resolve())
        write_json(folder / CONFIG, rope_before_5(source.config))
        table = {name: tensor.file.name for name, tensor in source.tensors.items()}
        total = sum(tensor.n_bytes for tensor in source.tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})
        yield folder


def check_converted(source: Source, cache: Path, log: Path) -> None:
    """Raise ``ModelError``, and take the result away, if the log says that tensors were left out.

    A name that only one architecture of MLC LLM knows cannot be judged beforehand.
    """
    found = _UNUSED.findall(log.read_bytes())
    names = [name.strip() for line in found for name in line.decode(errors="replace").split(",")]
    for name in names:
        if not name or harmless(name, source.tensors):
            continue
        cache.unlink()
        raise ModelError(
            f"{one_line(str(source.folder))}: MLC LLM left out tensor {one_line(name, 80)}"
            f" ({len(names)} in all): the converted model would be another one; log:"
            f" {one_line(str(log))}"
        )


def check_kept(source: Source, folder: Path, quantization: str) -> None:
    """Raise ``ModelError`` if ``folder`` holds converted weights of another source."""
    cache = folder / "tensor-cache.json"
    if not cache.is_file() or cache.stat().st_size > _MAX_DOCUMENT:
        return
    metadata = read_json(cache).get("metadata")
    ours = metadata.get(OURS) if isinstance(metadata, dict) else None
    known = ours.get("source_id") if isinstance(ours, dict) else None
    if isinstance(known, str) and known != source.weights_id:
        raise ModelError(
            f"{one_line(str(folder))} holds weights of another source in {quantization}; remove it"
            " or name another --artifact-path"
        )


def remember_source(source: Source, cache: Path, quantization: str) -> None:
    """Note whose weights these are, so that engines that hold the same ones are compared."""
    document = read_json(cache) if cache.stat().st_size <= _MAX_DOCUMENT else None
    if document is None:
        return
    metadata = document.get("metadata")
    known = source.weights_id
    same = quantization.startswith("q0") and _exact(source, document)
    ours = {"weights_id": known if same else f"{known}-{quantization}", "source_id": known}
    document["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), OURS: ours}
    text = json.dumps(document)
    if len(text) < _MAX_DOCUMENT:
        write_json(cache, document)


def _exact(source: Source, document: Mapping[str, Any]) -> bool:
    """Are weights that are not quantised the source's own, to the precision of fp16?

    Not where they were rounded to bfloat16, 8 bits of 11: MLC stores float32 as bfloat16
    (``f32-to-bf16``), so q0f32 holds other weights than an fp16 or fp32 source.
    """
    if all(t.dtype == "BF16" for t in source.tensors.values() if t.dtype in _FLOATS):
        return True
    shards = document.get("records")
    for shard in shards if isinstance(shards, list) else []:
        for record in shard.get("records") or []:
            if "bf16" in str(record.get("format")) or record.get("dtype") == "bfloat16":
                return False
    return True


_MAX_DOCUMENT = 16 << 20
"""Bytes that ``read_json`` takes."""
