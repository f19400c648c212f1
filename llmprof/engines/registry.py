"""Which engines exist: our own and those of the entry-point group ``llmprof.engines``."""

from __future__ import annotations

import difflib
from importlib import import_module, metadata

from llmprof.engines.base import Engine
from llmprof.errors import MissingPackage, UsageError

GROUP = "llmprof.engines"

# Ours are listed here too: under an engine's interpreter llmprof is not an installed distribution,
# so its entry points cannot be found there.
BUILT_IN = {
    "torch": "llmprof.engines.torch.engine:TorchEngine",
    "llamacpp": "llmprof.engines.llamacpp.engine:LlamaCppEngine",
    "exllama": "llmprof.engines.exllama.v1:ExLlamaEngine",
    "exllamav2": "llmprof.engines.exllama.v2:ExLlamaV2Engine",
    "exllamav3": "llmprof.engines.exllama.v3:ExLlamaV3Engine",
    "mlc": "llmprof.engines.mlc.engine:MlcEngine",
    "vllm": "llmprof.engines.vllm.engine:VllmEngine",
    "transformers": "llmprof.engines.transformers.engine:TransformersEngine",
}


def engine_names() -> dict[str, str]:
    """Name → ``module:Class``, imports nothing. Built-in names win over a third party's."""
    found = {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}
    return {**found, **BUILT_IN}


def check_name(name: str) -> None:
    """Raise ``UsageError`` with a suggestion when ``name`` is no engine of this interpreter."""
    names = engine_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
        raise UsageError(f"unknown engine {name!r}; {hint}")


def create(name: str) -> Engine:
    """Import an engine's module and make the engine (not loaded yet)."""
    check_name(name)
    target = engine_names()[name]
    module_name, _, attribute = target.partition(":")
    try:
        factory = getattr(import_module(module_name), attribute)
    except ImportError as why:
        raise MissingPackage(f"engine {name!r}: cannot import {target}: {why}") from why
    except AttributeError:
        raise UsageError(f"engine {name!r}: {module_name} has no {attribute}") from None
    engine = factory()
    if not isinstance(engine, Engine):
        raise UsageError(f"engine {name!r}: {target} lacks a method of llmprof.engines.base.Engine")
    return engine
