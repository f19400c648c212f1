"""Running the image as ``docker run`` does it, with runc itself: read-only, few capabilities."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CAPABILITIES = ("AUDIT_WRITE", "CHOWN", "KILL", "SETGID", "SETUID", "SYS_CHROOT")
"""``cap_add`` of compose.yaml."""
PROFILE = Path("/usr/share/containers/seccomp.json")
"""Debian package golang-github-containers-common. Docker's own differs in few calls."""
TRACING = ("ptrace", "process_vm_readv", "process_vm_writev")
SSH_OPTIONS = {
    "BatchMode": "yes",
    "IdentitiesOnly": "yes",
    "StrictHostKeyChecking": "accept-new",
    "ConnectTimeout": "10",
    "LogLevel": "ERROR",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def seccomp(capabilities: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, object]:
    """The default filter of container runtimes as runc wants it, for these capabilities.

    Args:
        without: system calls that it does not allow, as older runtimes do with ``TRACING``.
    """
    profile = json.loads(PROFILE.read_text())
    held = {f"CAP_{name}" for name in capabilities}
    rules = []
    for rule in profile["syscalls"]:
        include, exclude = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(include.get("caps", ())) <= held or set(exclude.get("caps", ())) & held:
            continue
        if "amd64" not in include.get("arches", ["amd64"]) or "amd64" in exclude.get("arches", []):
            continue
        names = [name for name in rule["names"] if name not in without]
        kept = {key: rule[key] for key in ("action", "args", "errnoRet") if rule.get(key)}
        if names:
            rules.append({"names": names, **kept})
    machine = next(m for m in profile["archMap"] if m["architecture"] == "SCMP_ARCH_X86_64")
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": 1,  # EPERM as under Docker; this profile has ENOSYS
        "architectures": [machine["architecture"], *machine["subArchitectures"]],
        "syscalls": rules,
    }


class Container:
    """One container: a pid namespace, a read-only root, tmpfs on /run and /tmp, two volumes.

    There is no network namespace (that needs a bridge), so sshd listens on a loopback port.

    Args:
        root: the image's root file system, which stays as it is.
        environment: as for ``docker run -e``.
        volumes: as for ``docker run -v``: where → what of this machine.
        denied: system calls that its seccomp filter refuses besides the usual ones.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        image: dict[str, object],
        work: Path,
        environment: dict[str, str],
        read_only: bool = True,
        capabilities: tuple[str, ...] = CAPABILITIES,
        volumes: dict[str, Path] | None = None,
        denied: tuple[str, ...] = (),
    ) -> None:
        self.name, self.work = name, work / name
        self.port = free_port()
        shutil.rmtree(self.work, ignore_errors=True)
        for volume in ("home/bench", "models"):
            # A new volume starts as a copy of what the image has there.
            shutil.copytree(root / volume, self.work / volume, symlinks=True)
        for path in (self.work / "home/bench", *(self.work / "home/bench").rglob("*")):
            os.chown(path, 1000, 1000)
        os.chown(self.work / "models", 1000, 1000)
        config = image["config"]
        assert isinstance(config, dict)
        ours = {"SSH_ADDRESS": "127.0.0.1", "SSH_PORT": str(self.port), **environment}
        env = [*config["Env"], *(f"{key}={value}" for key, value in ours.items())]
        self._spec(root, config["Entrypoint"], env, read_only, capabilities, volumes or {})
        if PROFILE.exists():
            file = self.work / "config.json"
            spec = json.loads(file.read_text())
            spec["linux"]["seccomp"] = seccomp(capabilities, denied)
            file.write_text(json.dumps(spec, indent=1))
        self.log = self.work / "log"
        self._runc = ["runc", "--root", str(work / "runc")]
        self._process: subprocess.Popen[bytes] | None = None

    def _spec(
        self,
        root: Path,
        arguments: list[str],
        env: list[str],
        read_only: bool,
        capabilities: tuple[str, ...],
        volumes: dict[str, Path],
    ) -> None:
        subprocess.run(["runc", "spec"], cwd=self.work, check=True)
        file = self.work / "config.json"
        spec = json.loads(file.read_text())
        names = [f"CAP_{name}" for name in capabilities]
        spec["root"] = {"path": str(root), "readonly": read_only}
        process = spec["process"]
        process.update(terminal=False, args=arguments, env=env, noNewPrivileges=True)
        process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)
        process.pop("rlimits", None)
        spec["hostname"] = self.name
        spec["linux"]["namespaces"] = [
            space
            for space in spec["linux"]["namespaces"]
            if space["type"] not in ("network", "cgroup")
        ]
        spec["linux"].pop("resources", None)
        spec["mounts"] = [m for m in spec["mounts"] if m["type"] != "cgroup"]
        for path, extra in (("/run", ["noexec"]), ("/tmp", [])):
            mode = "mode=1777" if path == "/tmp" else "mode=0755"
            spec["mounts"].append(
                {
                    "destination": path,
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "nodev", *extra, mode],
                }
            )
        kept = {f"/{path}": self.work / path for path in ("home/bench", "models")}
        for where, what in {**kept, **volumes}.items():
            spec["mounts"].append(
                {
                    "destination": where,
                    "type": "bind",
                    "source": str(what),
                    "options": ["rbind", "rw", "nosuid", "nodev"],
                }
            )
        file.write_text(json.dumps(spec, indent=1))

    def start(self) -> None:
        """Start it and wait until sshd listens."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._runc, "run", self.name], cwd=self.work, stdout=log, stderr=log
            )
        for _ in range(150):
            if "Server listening" in self.log.read_text() or self._process.poll() is not None:
                break
            time.sleep(0.1)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def exit_code(self, timeout_s: float = 15.0) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self, how: signal.Signals = signal.SIGTERM) -> float:
        """``docker stop``: a signal to PID 1 (runc passes it on); seconds until the end."""
        assert self._process is not None
        begin = time.monotonic()
        self._process.send_signal(how)
        if self.exit_code() is None:
            self.kill()
        return time.monotonic() - begin

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """``docker exec`` as root."""
        return subprocess.run(
            [*self._runc, "exec", self.name, *command], capture_output=True, text=True, timeout=60
        )

    def kill(self) -> None:
        subprocess.run([*self._runc, "delete", "--force", self.name], capture_output=True)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ssh_command(
        self, key: Path | None, *words: str, user: str = "bench", options: tuple[str, ...] = ()
    ) -> list[str]:
        command = ["ssh", "-F", "none", "-p", str(self.port)]
        known = {**SSH_OPTIONS, "UserKnownHostsFile": str(self.work / "known_hosts")}
        for name, value in known.items():
            command += ["-o", f"{name}={value}"]
        if key is not None:
            command += ["-i", str(key)]
        return [*command, *options, f"{user}@127.0.0.1", *words]

    def ssh(
        self,
        key: Path | None,
        *words: str,
        user: str = "bench",
        options: tuple[str, ...] = (),
        timeout_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.ssh_command(key, *words, user=user, options=options),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={k: v for k, v in os.environ.items() if k not in ("SSH_AUTH_SOCK", "DISPLAY")},
        )


def make_key(folder: Path, name: str) -> Path:
    """A new ed25519 key pair; the private file."""
    key = folder / name
    key.unlink(missing_ok=True)
    key.with_suffix(".pub").unlink(missing_ok=True)
    done = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], capture_output=True
    )
    if done.returncode:
        sys.exit(f"ssh-keygen: {done.stderr.decode()}")
    return key
