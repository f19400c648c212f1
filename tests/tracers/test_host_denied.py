"""The kernel refuses py-spy, for real: seccomp filters and Yama. The run goes on and says why.

Yama is part of few test machines' kernels; tests/vm/yama.py runs this file in a virtual machine
under Debian's.
"""

from __future__ import annotations

import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmprof.tracers.pyspy import tracer as pyspy
from llmprof.tracers.pyspy.ptrace import permission

HERE = Path(__file__).resolve().parents[1] / "support"
SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
RUN = ("--headless", "--json", "--rounds", "1", "--decode-len", "64", "--traced-steps", "64")
RUN += ("--engine", "hosts:what=sleep", "--model", "none")

pytestmark = pytest.mark.skipif(pyspy.find() is None, reason="py-spy is not installed")


class Account:
    """Runs commands as ``nobody`` (as root, which it then leaves) or as the user of the test."""

    def __init__(self, folder: Path, unprivileged: bool) -> None:
        self._folder = folder
        self._drop: list[str] = []
        if unprivileged and os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            drop = f"setpriv --reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups"
            drop += " --bounding-set=-all --inh-caps=-all --no-new-privs"
            setup = [f"mount -t tmpfs tmpfs {folder}/over"]
            # An overlay's top folder is open to all, here and only here.
            for place in closed_folders():
                over = f"{folder}/over/{len(setup)}"
                setup.append(f"mkdir -p {over}/upper {over}/work")
                options = f"lowerdir={place},upperdir={over}/upper,workdir={over}/work"
                setup.append(f"mount -t overlay -o {options} overlay {place}")
            script = f'{" && ".join(setup)} && exec {drop} "$@"'
            self._drop = ["unshare", "--mount", "sh", "-c", script, "sh"]
            (folder / "over").mkdir(exist_ok=True)
            os.chown(folder, user.pw_uid, user.pw_gid)

    def run(self, *command: str, timeout_s: float = 250) -> subprocess.CompletedProcess[str]:
        home = str(self._folder)
        ours = {"HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        return subprocess.run(
            [*self._drop, *command],
            capture_output=True,
            text=True,
            cwd=self._folder,
            env={**os.environ, **ours, "PYTHONPATH": str(HERE / "plugin"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )

    def traced(self, *prefix: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
        """``tracing`` of one run of an engine. The run itself always succeeds."""
        done = self.run(*prefix, sys.executable, "-m", "llmprof", *RUN, *more)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        engine = document["engines"][0]
        assert engine["state"] == "finished" and engine["tok_s"]["median"] > 0
        found: dict[str, Any] = engine["tracing"]
        assert found["steps"] >= 64
        return found


def closed_folders() -> list[Path]:
    """What others cannot enter on the way to the interpreter, to llmprof and to these tests."""
    used = [Path(sys.executable), Path(sys.executable).resolve(), Path(pyspy.__file__), HERE]
    found = {folder for path in used for folder in path.parents if not folder.stat().st_mode & 1}
    return sorted(found, key=lambda folder: len(folder.parts))


@pytest.fixture
def account() -> Iterator[Callable[[bool], Account]]:
    """Below /tmp: pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="llmprof-", dir="/tmp"))

    def make(unprivileged: bool) -> Account:
        made = Account(folder, unprivileged)
        if unprivileged and os.geteuid() == 0:
            if shutil.which("setpriv") is None or shutil.which("unshare") is None:
                pytest.skip("setpriv or unshare (util-linux) is missing")
            seen = made.run(sys.executable, "-c", "import llmprof.cli, llmprof_hosts")
            if seen.returncode:
                pytest.skip(f"nobody cannot import llmprof from here: {seen.stderr[-200:]}")
        return made

    yield make
    shutil.rmtree(folder)


def seccomp(calls: str) -> tuple[str, ...]:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"the system call numbers of {platform.machine()} are not known here")
    return (sys.executable, str(HERE / "stubs" / "seccomp_exec.py"), calls)


@pytest.mark.parametrize(
    ("unprivileged", "calls"), [(True, "ptrace,process_vm_readv"), (False, "ptrace")]
)
def test_a_seccomp_filter_denies_stopping_only(
    account: Callable[[bool], Account], unprivileged: bool, calls: str
) -> None:
    """The filters of container runtimes, where they allow no ptrace. The default reads memory, if
    need be through /proc/PID/mem, and stops nobody: these filters do not see it."""
    if not permission().allowed:
        pytest.skip(permission().text)
    user = account(unprivileged)
    found = user.traced(*seccomp(calls))
    assert found["host"] is not None, found["host_reason"]
    found = user.traced(*seccomp(calls), more=("--host-blocking",))
    assert found["host"] is None
    assert "ptrace was denied" in found["host_reason"]
    assert "a seccomp filter (one is on)" in found["host_reason"]
    assert "--cap-add SYS_PTRACE" in found["host_reason"]
    assert "leave out --host-blocking" in found["host_reason"]


# -- Yama ------------------------------------------------------------------------------------


@pytest.fixture
def yama() -> Iterator[Callable[[int], None]]:
    """Sets kernel.yama.ptrace_scope, and sets it back."""
    if not SCOPE.exists():
        pytest.skip("this kernel has no Yama: tests/vm/yama.py has one that does")
    before = SCOPE.read_text()
    if os.geteuid() != 0 or before.strip() == "3":
        pytest.skip(f"needs root and a ptrace_scope that can be changed (it is {before.strip()})")

    def set_to(scope: int) -> None:
        try:
            SCOPE.write_text(str(scope))
        except OSError as why:
            pytest.skip(f"ptrace_scope cannot be set here: {why.strerror}")

    yield set_to
    if SCOPE.read_text().strip() != "3":
        SCOPE.write_text(before)


@pytest.mark.parametrize("scope", [0, 1])
@pytest.mark.parametrize("way", ["nonblocking", "blocking"])
def test_yama_lets_llmprof_read_its_workers(
    yama: Callable[[int], None], account: Callable[[bool], Account], scope: int, way: str
) -> None:
    yama(scope)
    more = ("--host-blocking",) if way == "blocking" else ()
    # A virtual machine without KVM needs many steps for one sample.
    found = account(True).traced(more=("--traced-steps", "500", "--host-rate", "50", *more))
    assert found["host"] is not None, found["host_reason"]


def test_yama_refuses_who_was_not_let_in(
    yama: Callable[[int], None], account: Callable[[bool], Account]
) -> None:
    """With scope 1 a process that names no reader is closed to its siblings."""
    yama(1)
    path = pyspy.find()
    script = f"sleep 60 & python=$!; {sys.executable} -c 'import time; time.sleep(60)' & p=$!;"
    script += f" sleep 2; {path} dump --nonblocking --pid $p; code=$?; kill $p $python; exit $code"
    done = account(True).run("sh", "-c", script)
    assert done.returncode != 0
    assert "denied" in done.stderr.lower() or "not permitted" in done.stderr.lower()


def test_yama_2_wants_the_capability(
    yama: Callable[[int], None], account: Callable[[bool], Account]
) -> None:
    user = account(True)
    yama(2)
    found = user.traced()
    assert found["host"] is None
    assert "ptrace was denied: kernel.yama.ptrace_scope is 2" in found["host_reason"]
    assert "sysctl kernel.yama.ptrace_scope=1" in found["host_reason"]
    done = user.run(sys.executable, "-m", "llmprof", "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("ptrace", "py-spy"):
        assert checks[name]["status"] == "missing"
        assert "sysctl kernel.yama.ptrace_scope=1" in checks[name]["fix"]


def test_yama_3_is_for_nobody(
    yama: Callable[[int], None], account: Callable[[bool], Account]
) -> None:
    """Last: only a reboot ends it."""
    if os.environ.get("LLMPROF_TEST_YAMA_3") != "1":
        pytest.skip("ptrace_scope 3 lasts until a reboot: LLMPROF_TEST_YAMA_3=1 allows it")
    user = account(False)
    yama(3)
    found = user.traced()
    assert found["host"] is None
    assert "kernel.yama.ptrace_scope is 3" in found["host_reason"]
    assert "reboot" in found["host_reason"]
