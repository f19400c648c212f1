"""What is told to install, for each way in which llmprof itself can be there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmprof.distribution import ENTRY, NAME, how_to_install

ROOT = Path(__file__).parent.parent
ASK = (
    "import sys; sys.path[:0] = sys.argv[1:];"
    "from llmprof.distribution import how_to_install; print(how_to_install('mlc'))"
)


def package(folder: Path) -> Path:
    (folder / "llmprof").mkdir(parents=True)
    for name in ("__init__.py", "distribution.py"):
        shutil.copy(ROOT / "llmprof" / name, folder / "llmprof")
    return folder


def installed(site: Path, name: str, entry: str = ENTRY, direct: object = None) -> None:
    """What an installer leaves of a distribution, without its files."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[console_scripts]\nllmprof = {entry}\n")
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))


def told(cwd: Path, *path: Path) -> str:
    """In an interpreter that sees these folders and the standard library."""
    command = [sys.executable, "-I", "-S", "-c", ASK, *map(str, path)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_wheel_is_asked_for_its_name(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    installed(site, NAME)
    assert told(tmp_path, site) == f"pip install '{NAME}[mlc]'"


def test_a_redistribution_under_another_name(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    installed(site, "acme-llmprof", direct={"url": "https://acme/x.whl", "archive_info": {}})
    assert told(tmp_path, site) == "pip install 'acme-llmprof[mlc]'"


def test_the_strangers_package_is_never_named(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    installed(site, "llmprof", entry="llmprof.main:app")
    installed(site, NAME)
    assert told(tmp_path, site) == f"pip install '{NAME}[mlc]'"


def test_an_editable_checkout(tmp_path: Path) -> None:
    checkout, site = package(tmp_path / "my checkout"), tmp_path / "site"
    direct = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    installed(site, NAME, direct=direct)
    assert told(checkout, checkout, site) == "pip install -e '.[mlc]'"
    assert told(tmp_path, checkout, site) == f"pip install -e '{checkout}[mlc]'"


def test_an_editable_checkout_that_is_not_the_one_that_runs(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    direct = {"url": (tmp_path / "other").as_uri(), "dir_info": {"editable": True}}
    installed(site, NAME, direct=direct)
    assert told(tmp_path, site) == f"pip install '{NAME}[mlc]'"


@pytest.mark.parametrize("direct", [[], "x", {"dir_info": {"editable": True}}, {"dir_info": 1}])
def test_a_direct_url_that_is_none(tmp_path: Path, direct: object) -> None:
    site = package(tmp_path / "site")
    installed(site, NAME, direct=direct)
    assert told(tmp_path, site) == f"pip install '{NAME}[mlc]'"


def test_an_engines_interpreter_has_the_package_alone(tmp_path: Path) -> None:
    site = package(tmp_path / "site")
    assert told(tmp_path, site) == f"{sys.executable} -m pip install '{NAME}[mlc]'"
    (site / "pyproject.toml").touch()  # as a worker of a checkout finds it
    assert told(tmp_path, site) == f"{sys.executable} -m pip install -e '{site}[mlc]'"


def test_the_name_is_that_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^name = "(.+)"$', text, re.M)[1] == NAME  # type: ignore[index]
    assert "pip install" in how_to_install("mlc") and "[mlc]" in how_to_install("mlc")


def test_nothing_tells_to_install_the_strangers_package() -> None:
    """Docs, error texts, images: the bare name is somebody else's code."""
    wrong = re.compile(r"""(pip3?|pipx|uv)\s[^\n|&;]*\binstall\b[^\n|&;]*['" ]llmprof(?![-\w./])""")
    suspicious = re.compile(r"\bllmprof\[")
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]
    for folder in ("llmprof", "docs", "docker", "benchmarks", "constraints", ".ci"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    found, seen = [], 0
    for path in texts:
        if path.suffix in (".png", ".svg", ".pyc"):
            continue
        seen += 1
        # A text over several lines of Python is one text.
        whole = re.sub(r"\"\s*\n\s*f?\"", "", path.read_text(errors="replace"))
        found += [f"{path}: {m[0]}" for m in wrong.finditer(whole)]
        found += [f"{path}: {m[0]}" for m in suspicious.finditer(whole)]
    assert seen > 200
    assert not found
    assert wrong.search("pip install llmprof") and wrong.search("pip install -U 'llmprof[mlc]'")
