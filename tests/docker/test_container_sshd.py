"""The container's entrypoint and sshd for real, in namespaces over this machine's file system.

No image: overlays let the scripts find what the image would hold, and nothing of it outlives the
test. docker/test/container_test.py does the same and more on a built image.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"
# The places that the image fills, writable here and only here. An overlay's top folder is 0755, so
# bench reaches an interpreter below /root as well.
SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
for place in etc opt usr/local home root; do
  mkdir -p /run/over/$place/upper /run/over/$place/work
  over=/run/over/$place
  mount -t overlay -o "lowerdir=/$place,upperdir=$over/upper,workdir=$over/work" overlay "/$place"
done
useradd --create-home --shell /usr/local/bin/llmprof-shell bench
usermod --password '*' bench
mkdir -p /etc/llmprof /opt/llmprof/bin
cp "$DOCKER/sshd_config" /etc/llmprof/sshd_config
install -m 755 "$DOCKER/login-shell.sh" /usr/local/bin/llmprof-shell
printf '#!/bin/sh\\nexec "%s" "$@"\\n' "$PYTHON" >/opt/llmprof/bin/python
printf '#!/bin/sh\\nexec "%s" -m llmprof "$@"\\n' "$PYTHON" >/usr/local/bin/llmprof
chmod 755 /opt/llmprof/bin/python /usr/local/bin/llmprof
for name in .bashrc .profile .bash_profile; do echo 'echo PLANTED' >/home/bench/$name; done
echo READY >&2
exec bash "$DOCKER/entrypoint.sh"
"""


@dataclass
class Started:
    """A running entrypoint."""

    process: subprocess.Popen[bytes]
    port: int
    key: Path
    log: Path

    def ssh(
        self, *words: str, user: str = "bench", key: bool = True, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        command = ["ssh", "-F", "none", "-p", str(self.port)]
        for option in (
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ):
            command += ["-o", option]
        command += ["-i", str(self.key)] if key else []
        return subprocess.run(
            [*command, *options, f"{user}@127.0.0.1", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env={k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"},
        )

    def fingerprint(self) -> str:
        words = self.log.read_text().split("host key ")[1].split()
        return words[1]


def start(folder: Path, key: Path, **environment: str) -> Started:
    """Run the entrypoint until sshd listens or it has ended; skips where that cannot be."""
    if Path(sys.prefix).stat().st_mode & 0o005 != 0o005:
        pytest.skip(f"{sys.prefix} is closed to other users, so bench cannot run llmprof from it")
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "DOCKER": str(DOCKER),
        "PYTHON": sys.executable,
        "SSH_ADDRESS": "127.0.0.1",
        "SSH_PORT": str(port),
        "AUTHORIZED_KEYS": key.with_suffix(".pub").read_text(),
        **environment,
    }
    log = folder / "log"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "sh", "-c", SETUP], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
        )
    for _ in range(200):
        if process.poll() is not None or "Server listening" in log.read_text():
            break
        time.sleep(0.05)
    if "READY" not in log.read_text():
        process.kill()
        pytest.skip(f"no mount namespace with overlays here: {log.read_text().strip()[-200:]}")
    return Started(process, port, key, log)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [
        name
        for name in ("unshare", "useradd", "ssh", "ssh-keygen", "pgrep", "bash")
        if shutil.which(name, path="/usr/sbin:" + os.environ["PATH"]) is None
    ]
    if os.getuid() != 0:
        pytest.skip("needs root: sshd changes users")
    if missing or not Path("/usr/sbin/sshd").exists():
        pytest.skip(f"not installed: {', '.join(missing) or 'sshd'} (Debian: openssh-server)")
    file = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return file


@pytest.fixture(scope="module")
def opened(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    started = start(tmp_path_factory.mktemp("sshd") / "open", key)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def forced(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    started = start(tmp_path_factory.mktemp("sshd") / "forced", key, LLMPROF_ONLY="1")
    yield started
    started.process.kill()
    started.process.wait()


def test_the_key_admits_bench(opened: Started) -> None:
    done = opened.ssh("id", "-un")
    assert done.stdout.split()[-1] == "bench", done.stderr + opened.log.read_text()


@pytest.mark.parametrize(
    ("user", "with_key", "options"),
    [
        ("root", True, ()),
        ("bench", False, ("-o", "PreferredAuthentications=password,keyboard-interactive")),
        ("bench", False, ("-o", "PreferredAuthentications=none")),
        ("nobody", True, ()),
    ],
)
def test_others_are_refused(
    opened: Started, user: str, with_key: bool, options: tuple[str, ...]
) -> None:
    done = opened.ssh("id", user=user, key=with_key, options=options)
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


@pytest.mark.parametrize("which", ["opened", "forced"])
def test_nothing_is_forwarded(which: str, request: pytest.FixtureRequest) -> None:
    started: Started = request.getfixturevalue(which)
    done = started.ssh(options=("-W", f"127.0.0.1:{started.port}"))
    assert done.returncode != 0
    assert "SSH-2.0" not in done.stdout


def test_bench_reads_no_host_key_and_changes_no_setting(opened: Started) -> None:
    done = opened.ssh(
        "cat /run/llmprof/host_keys/*; echo x >>/run/llmprof/authorized_keys;"
        " echo x >>/run/llmprof/sshd_config; touch /run/llmprof/forced; true"
    )
    assert done.stderr.count("ermission denied") == 4, done.stderr
    assert "PRIVATE" not in done.stdout


def test_sessions_get_the_chosen_variables_only(opened: Started) -> None:
    done = opened.ssh("env")
    assert "AUTHORIZED_KEYS" not in done.stdout
    assert "PATH=/usr/local/sbin:" in done.stdout


@pytest.mark.parametrize(
    "command", ["id", "bash", "llmprof; id", "llmprof $(id)", "llmprof\nid", "sh -c 'id'"]
)
def test_the_forced_command_cannot_be_left(forced: Started, command: str) -> None:
    done = forced.ssh(command)
    assert done.returncode == 2, done.stderr
    assert "uid=" not in done.stdout + done.stderr
    assert "PLANTED" not in done.stdout + done.stderr


def test_the_forced_command_runs_llmprof_and_no_file_of_the_home(forced: Started) -> None:
    done = forced.ssh("llmprof --version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llmprof ")


def test_no_subsystem_passes_the_forced_command(forced: Started) -> None:
    done = forced.ssh("sftp", options=("-s",))
    assert done.returncode != 0


def test_host_keys_are_made_at_each_start(opened: Started, forced: Started) -> None:
    assert opened.fingerprint() != forced.fingerprint()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AUTHORIZED_KEYS": ""}, "nobody could log in"),
        ({"AUTHORIZED_KEYS": "-----BEGIN OPENSSH PRIVATE KEY-----\nx"}, "holds a private key"),
        ({"AUTHORIZED_KEYS": "ssh-ed25519 rubbish"}, "1 of 1 authorized keys cannot be read"),
        ({"SSH_PORT": "22;id"}, "is not a port"),
        ({"LLMPROF_ONLY": "yes"}, "LLMPROF_ONLY=yes"),
        ({"CUDA_VISIBLE_DEVICES": '0" X="1'}, "CUDA_VISIBLE_DEVICES holds a quote"),
    ],
)
def test_a_bad_start_ends_with_one_line(
    key: Path, tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    started = start(tmp_path / "bad", key, **environment)
    try:
        assert started.process.wait(10) == 2, started.log.read_text()
    finally:
        started.process.kill()
    said = started.log.read_text().split("READY\n")[1].splitlines()
    assert [line for line in said if says in line]
    assert len([line for line in said if "host key" not in line]) == 1
