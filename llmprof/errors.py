"""What can go wrong, each with the exit code that scripts depend on.

A user sees one line: what, where, what to do. A traceback is a bug in llmprof.
"""

from __future__ import annotations

EXIT_OK = 0
"""All engines ran."""
EXIT_ENGINE_FAILED = 1
"""An engine failed, the others finished."""
EXIT_USAGE = 2
"""Bad usage or input."""
EXIT_NOTHING_RAN = 3
"""Nothing could run."""
EXIT_GATE = 4
"""A gate failed (``llmprof compare --fail-on``)."""
EXIT_INCONCLUSIVE = 5
"""A gate could not be judged: too few rounds, too wide an interval."""
EXIT_INTERRUPTED = 130
"""Ctrl-C; what was recorded is kept."""


class LlmprofError(Exception):
    """One line for the user; ``exit_code`` for the shell."""

    exit_code = EXIT_NOTHING_RAN


class UsageError(LlmprofError):
    """Bad command line, configuration or input file."""

    exit_code = EXIT_USAGE


class ModelError(UsageError):
    """The model is missing, corrupt, or of a format that this engine does not load."""


class RunFileError(LlmprofError):
    """The run file cannot be written or read (disk full, corrupt, not a run)."""

    exit_code = EXIT_USAGE


class EngineFailure(LlmprofError):
    """One engine ended: crash, exception, out of memory, hang.

    Attributes:
        kind: one of ``crash``, ``exception``, ``oom``, ``hang``, ``missing-package``, ``input``,
            ``load-again``.
    """

    exit_code = EXIT_ENGINE_FAILED

    def __init__(self, message: str, kind: str = "exception") -> None:
        super().__init__(message)
        self.kind = kind


class LoadAgain(LlmprofError):
    """An engine cannot change to this batch or context on what it holds; the text says why."""

    exit_code = EXIT_ENGINE_FAILED


class MissingPackage(LlmprofError):
    """An engine's package is not installed in its interpreter; the text names the extra."""

    exit_code = EXIT_USAGE


class OutOfMemory(LlmprofError):
    """The model, its KV cache or a buffer did not fit; the text says needed and free."""

    exit_code = EXIT_ENGINE_FAILED
