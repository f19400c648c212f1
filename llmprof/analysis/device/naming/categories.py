"""What a kernel does, from its name, by an ordered list of rules that users can put theirs before.

Categories of the shipped rules, beside the fallback ``other``:

``quantised GEMV/GEMM``     product with packed weights, unpacked in the kernel
``GEMM/GEMV``               product with plain weights
``communication``           collectives of several GPUs, those with something fused into them too
``MoE``                     routing, permutation and grouped products of experts
``SSM``                     Mamba and other recurrent layers
``LoRA``                    products with adapters
``convolution``
``attention``               QK, softmax, V, and the merging of split parts
``norm``, ``RoPE``, ``embedding``, ``sampling``
``KV cache``                appending to, moving or packing K and V
``quantise``                packing or unpacking as a kernel of its own, Hadamard transforms
``activation/elementwise``  activations, residual adds, scaling
``copy``                    copies, sets, concatenation
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from llmprof.analysis.device.naming.kernel_names import NAME_LIMIT
from llmprof.analysis.device.naming.rule_gates import Gate, gate_of, may_match
from llmprof.errors import UsageError
from llmprof.plaintext import one_line

OTHER = "other"
COPY = "copy"
COMMUNICATION = "communication"
WHOLE_GRAPH = "CUDA graph"
"""No category of a kernel: a CUDA graph that was traced as a whole, whatever is in it."""
IDLE = "idle"
"""No category of a kernel: what the waterfall calls the time without any work."""

CATEGORY_LIMIT = 32
_KEYS = ("match", "category", "engine")


@dataclass(frozen=True)
class Rule:
    """``pattern`` is searched for in the kernel's name."""

    pattern: re.Pattern[str]
    category: str
    engine: str | None = None
    """Only for this engine (its name, not its label)."""

    @cached_property
    def gate(self) -> Gate:
        """Words of which one is in every name that matches."""
        return gate_of(self.pattern)


def categorise(
    names: Mapping[int, str], engine: str, rules: Sequence[Rule] | None = None
) -> dict[int, str]:
    """The category of each name: the first matching rule's, else ``other``.

    Each text is matched once, on its first 4096 characters.
    """
    given = shipped_rules() if rules is None else rules
    usable = [(r, r.gate) for r in given if r.engine in (None, engine)]
    known: dict[str, str] = {}
    for name in names.values():
        if name not in known:
            text = name[:NAME_LIMIT]
            small = text.casefold()
            hits = (
                rule.category
                for rule, gate in usable
                if may_match(gate, small) and rule.pattern.search(text) is not None
            )
            known[name] = next(hits, OTHER)
    return {key: known[name] for key, name in names.items()}


def load_rules(path: Path | None = None) -> tuple[Rule, ...]:
    """The user's rules, then the shipped ones.

    Args:
        path: the user's file; by default ``categories.toml`` in the config folder, if it exists.

    Raises:
        UsageError: unreadable, not TOML, unknown key, bad regular expression.
    """
    if path is None:
        import platformdirs

        path = Path(platformdirs.user_config_dir("llmprof")) / "categories.toml"
        if not path.is_file():
            return shipped_rules()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(one_line(f"categories file {path}: {why}")) from None
    return (*_parse(text, f"categories file {path}"), *shipped_rules())


@lru_cache(maxsize=1)
def shipped_rules() -> tuple[Rule, ...]:
    """The rules of ``category_rules.toml`` in this package."""
    file = resources.files("llmprof.analysis.device.naming") / "category_rules.toml"
    return _parse(file.read_text(encoding="utf-8"), file.name)


def _parse(text: str, where: str) -> tuple[Rule, ...]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as why:
        raise UsageError(one_line(f"{where}: {why}")) from None
    entries = data.pop("rule", [])
    if data:
        raise UsageError(one_line(f"{where}: unknown entry {next(iter(data))!r}; known: [[rule]]"))
    if not isinstance(entries, list):
        raise UsageError(f"{where}: write [[rule]] with two brackets")
    return tuple(_rule(entry, f"{where}: rule {n}") for n, entry in enumerate(entries, 1))


def _rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected a table with match and category")
    for key, value in entry.items():
        if key not in _KEYS:
            raise UsageError(one_line(f"{where}: unknown key {key!r}; known: {', '.join(_KEYS)}"))
        if not isinstance(value, str) or not value:
            raise UsageError(one_line(f"{where}: {key} must be a text"))
    missing = [key for key in _KEYS[:2] if key not in entry]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing")
    category = one_line(entry["category"], CATEGORY_LIMIT)
    if category == IDLE:
        raise UsageError(f"{where}: category {IDLE!r} is the time without any kernel")
    try:
        pattern = re.compile(entry["match"])
    except (re.error, RecursionError, OverflowError) as why:
        raise UsageError(one_line(f"{where}: match is no regular expression: {why}")) from None
    return Rule(pattern, category, entry.get("engine"))
