"""The import borders, as they are at run time (static graphs cannot see deferred imports)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "textual",
    "rich",
    "numpy",
    "sqlite3",
    "pynvml",
    "gguf",
    "llama_cpp",
    "cyllama",
    "nvtx",
}


def loaded_after(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "code",
    [
        "import llmprof",
        "import llmprof.cli",
        "from llmprof.cli.parser import parse; parse(['--engine', 'torch'])",
        "import llmprof.worker.main",
        "import llmprof.engines.registry as r; r.engine_names()",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not HEAVY & loaded_after(code)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "from llmprof.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not HEAVY & loaded_after(code)


def test_the_worker_needs_the_standard_library_alone() -> None:
    """In an interpreter that ignores site-packages, as an engine's own may lack all of ours."""
    root = Path(__file__).parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import llmprof.worker.main"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_headless_reporting_imports_no_textual() -> None:
    code = (
        "import llmprof.session.run, llmprof.analysis.view.report, llmprof.exports.json.report,"
        " llmprof.exports.text.table, llmprof.cli.run.run_command"
    )
    assert not {"textual", "rich", "torch"} & loaded_after(code)


def test_no_module_is_longer_than_450_lines() -> None:
    root = Path(__file__).parent.parent
    long = {
        str(path.relative_to(root)): count
        for folder in ("llmprof", "tests", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 450
    }
    assert not long
