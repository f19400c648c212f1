"""Building the image without a Docker daemon: debootstrap makes a base, buildah does the rest."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

BASE = "localhost/llmprof-test-base"
REPOSITORY = Path(__file__).resolve().parents[2]


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """What a build here needs to know; ``build_arguments`` takes it from there."""
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/llmprof-container"))
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--torch-version", default="2.13.0")
    parser.add_argument("--torch-index", default="https://download.pytorch.org/whl/cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--wheels", type=Path, help="a folder of ready wheels (llama-cpp-python)")


def build_arguments(given: argparse.Namespace) -> dict[str, str]:
    """The Dockerfile's ARGs for a base without CUDA."""
    return {
        "BASE_IMAGE": BASE,
        "TORCH_INDEX": given.torch_index,
        "TORCH_VERSION": given.torch_version,
        "MLC_INDEX": "",
        **dict(pair.split("=", 1) for pair in given.build_arg),
    }


class Builder:
    """buildah with its storage in a folder of its own.

    Args:
        work: where storage, base and logs go; several GB.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.logs = work / "log"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._command = ["buildah", "--root", str(work / "storage"), "--runroot", str(work / "run")]
        self._command += ["--storage-driver", "vfs"]

    def call(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"buildah {arguments[0]} failed: {done.stderr.strip()[-600:]}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return bool(self.call("images", "--quiet", "--filter", f"reference={image}"))

    def make_base(self, suite: str, mirror: str) -> None:
        """A Debian base image from the Debian mirror, once."""
        root = self.work / "rootfs"
        if not (root / "etc/debian_version").exists():
            command = ["debootstrap", "--variant=minbase", suite, str(root), mirror]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if not self.has(BASE):
            container = self.call("from", "scratch")
            self.call("add", container, str(root), "/")
            self.call("config", "--cmd", "/bin/bash", container)
            self.call("commit", "--format", "docker", "--rm", container, BASE)

    def build(
        self, image: str, target: str, arguments: dict[str, str], wheels: Path | None
    ) -> float:
        """``docker build`` of one target; seconds. The log goes to ``log/build-TARGET.log``."""
        command = [*self._command, "bud", "--isolation", "chroot", "--format", "docker"]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        for mount in self._pip_mounts(wheels):
            command += ["--volume", mount]
        command += ["--target", target, "--tag", image, "--file", "docker/Dockerfile", "."]
        begin = time.monotonic()
        log = self.logs / f"build-{target}.log"
        with log.open("w") as out:
            done = subprocess.run(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)
        if done.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(f"the build of {target} failed, see {log}:\n{tail}")
        return time.monotonic() - begin

    def _pip_mounts(self, wheels: Path | None) -> list[str]:
        """The caller's pip configuration for the build steps, mounted and never copied.

        Settings and the local files and folders that they name (certificates, wheels, mirrors on
        disk) are taken over as pip reports them.
        """
        settings: dict[str, list[str]] = {}
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
        ).stdout
        for line in told.splitlines():
            name, _, value = line.partition("=")
            key = name.rpartition(".")[2]
            if key != "constraint":
                settings[key] = value.strip("'\"").split()
        if wheels is not None:
            settings.setdefault("find-links", []).append(str(wheels))
        # Each at a place of its own: the image's packages write to /etc/ssl themselves.
        mounts: dict[str, str] = {}
        for key, values in settings.items():
            for index, value in enumerate(values):
                path = value.removeprefix("file://")
                if path != value:  # an index on disk refers to files beside its own folder
                    path = str(Path(path).parent)
                if path.startswith("/") and Path(path).exists():
                    inside = mounts.setdefault(path, f"/run/pip/{len(mounts)}")
                    settings[key][index] = value.replace(path, inside)
        text = "[global]\n" + "".join(f"{k} = {' '.join(v)}\n" for k, v in settings.items())
        (self.work / "pip.conf").write_text(text)
        volumes = [f"{path}:{inside}:ro" for path, inside in mounts.items()]
        return [f"{self.work}/pip.conf:/etc/pip.conf:ro", *volumes]

    def inspect(self, image: str) -> dict[str, object]:
        """The image's Docker configuration (``Env``, ``Entrypoint``, ``Healthcheck``, …)."""
        found: dict[str, dict[str, object]] = json.loads(
            self.call("inspect", "--type", "image", image)
        )
        return found["Docker"]

    def size_mib(self, image: str) -> int:
        """Unpacked size of the image, its base included, MiB."""
        rows = json.loads(self.call("images", "--json", image))
        text = str(rows[0]["size"])
        number, unit = text.split()
        return round(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit] / 2**20)

    def layer_folders(self) -> list[Path]:
        return sorted((self.work / "storage/vfs/dir").iterdir())

    def mount(self, image: str) -> Path:
        """A root file system of the image; the working container is kept until ``forget``."""
        container = self.call("from", "--name", "llmprof-test", image)
        return Path(self.call("mount", container))

    def forget(self) -> None:
        subprocess.run([*self._command, "rm", "--all"], capture_output=True)
