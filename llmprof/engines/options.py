"""Reading an engine's ``key=value`` options with one clear line for each mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from llmprof.errors import UsageError

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Options:
    """Typed reads of string options; ``done()`` refuses what nobody asked for."""

    def __init__(self, engine: str, values: Mapping[str, str]) -> None:
        self.engine = engine
        self._values = dict(values)
        self._known: set[str] = {"model", "label"}

    def text(self, key: str, default: str, choices: Sequence[str] | None = None) -> str:
        self._known.add(key)
        value = self._values.get(key, default)
        if choices is not None and value not in choices:
            raise UsageError(f"{self.engine}:{key}={value}: choose from {', '.join(choices)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.text(key, "1" if default else "0").lower()
        if value not in _TRUE + _FALSE:
            raise UsageError(f"{self.engine}:{key}={value}: expected 1 or 0")
        return value in _TRUE

    def integer(self, key: str, default: int | None, minimum: int = 0) -> int | None:
        self._known.add(key)
        if key not in self._values:
            return default
        try:
            value = int(self._values[key])
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise UsageError(
                f"{self.engine}:{key}={self._values[key]}: expected an integer ≥ {minimum}"
            )
        return value

    def done(self) -> None:
        """Raise for the first option that was never read (a typo, mostly)."""
        for key in self._values:
            if key == "tp" and key not in self._known:
                raise UsageError(
                    f"{self.engine}: tp={self._values[key]}: llmprof runs this engine on one GPU;"
                    " give tp=N to the engines that are split over several (torch, vllm, exllamav2,"
                    " exllamav3, mlc), in place of --tp"
                )
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1)
                hint = (
                    f"did you mean {near[0]}?"
                    if near
                    else f"known: {', '.join(sorted(self._known))}"
                )
                raise UsageError(f"{self.engine}: unknown option {key!r}; {hint}")
