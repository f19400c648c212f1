"""The container's files, as far as they can be checked without building an image."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_scripts_can_be_executed() -> None:
    assert SCRIPTS
    assert all(path.stat().st_mode & 0o111 for path in SCRIPTS)


@pytest.fixture
def effective(tmp_path: Path) -> dict[str, str]:
    """What sshd itself makes of the configuration."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd here (Debian: openssh-server)")
    if os.getuid() == 0:  # as its service does at boot
        Path("/run/sshd").mkdir(exist_ok=True)
    key = tmp_path / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    file = tmp_path / "sshd_config"
    file.write_text(f"HostKey {key}\n" + (DOCKER / "sshd_config").read_text())
    done = subprocess.run(
        [SSHD, "-T", "-C", "user=bench,host=x,addr=127.0.0.1", "-f", str(file)],
        capture_output=True,
        text=True,
    )
    if "Missing privilege separation directory" in done.stderr:
        pytest.skip(f"sshd cannot be asked here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


@pytest.mark.parametrize(
    "name",
    [
        "permitrootlogin",
        "passwordauthentication",
        "kbdinteractiveauthentication",
        "hostbasedauthentication",
        "permitemptypasswords",
        "allowtcpforwarding",
        "allowstreamlocalforwarding",
        "allowagentforwarding",
        "x11forwarding",
        "permittunnel",
        "gatewayports",
        "permituserenvironment",
        "permituserrc",
    ],
)
def test_sshd_allows_keys_and_sessions_only(effective: dict[str, str], name: str) -> None:
    assert effective[name] == "no"


def test_sshd_admits_one_user_by_key(effective: dict[str, str]) -> None:
    assert effective["allowusers"] == "bench"
    assert effective["authenticationmethods"] == "publickey"
    assert effective["disableforwarding"] == "yes"


def test_every_target_of_the_documentation_exists() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (DOCKER / "Dockerfile").read_text(), re.M))
    assert {"torch", "llamacpp", "exllama", "mlc", "cpu", "all"} <= stages


def test_compose_publishes_on_loopback_and_drops_capabilities() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["llmprof"]
    assert service["ports"] == ["${LLMPROF_ADDRESS:-127.0.0.1}:${LLMPROF_PORT:-2222}:2222"]
    assert service["cap_drop"] == ["ALL"]
    assert not {"SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "DAC_OVERRIDE"} & set(service["cap_add"])
    assert service["read_only"] is True
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_the_test_of_the_image_runs_with_the_capabilities_of_compose() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["llmprof"]
    text = (DOCKER / "test/runtime.py").read_text()
    named = re.search(r"^CAPABILITIES = \((.*?)\)$", text, re.M | re.S)
    assert named is not None
    assert re.findall(r'"(\w+)"', named[1]) == service["cap_add"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;8.6;9.0", [(8, 0), (8, 6), (9, 0)]),
        ("9.0a 12.0+PTX", [(9, 0), (12, 0)]),
    ],
)
def test_architectures_are_read_as_torch_writes_them(
    text: str, expected: list[tuple[int, int]]
) -> None:
    assert extensions().architectures(text) == expected


@pytest.mark.parametrize("text", ["", "Hopper", "8"])
def test_other_architectures_end_the_build(text: str) -> None:
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST"):
        extensions().architectures(text)


def extensions() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_extensions", DOCKER / "build_extensions.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
