"""tests/tracers/test_host_denied.py under a kernel that has Yama: Debian's, in a virtual machine.

    sudo python tests/vm/yama.py [--kernel DEB] [--work /var/tmp/llmprof-vm] [--accel tcg|kvm]

Debian packages: qemu-system-x86 busybox-static cpio kmod. The machine sees this one's file system
read-only (9p) under a layer in memory, and runs the tests as its root with this interpreter, up to
ptrace_scope 3, which only a reboot ends. Without KVM (``tcg``) it takes about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FIRST = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
for m in $($b cat /list); do $b insmod /modules/$m; done
$b mkdir /lower /layer /new
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower
$b mount -t tmpfs tmpfs /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /new
$b cp /second /new/second
exec $b switch_root /new /bin/sh /second
"""
SECOND = """
export PATH={path} HOME=/root LLMPROF_TEST_YAMA_3=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
ip link set lo up
cd {repository}
echo "kernel $(uname -r), ptrace_scope $(cat /proc/sys/kernel/yama/ptrace_scope)"
{python} -m pytest -v -p no:cacheprovider -o timeout=0 tests/tracers/test_host_denied.py {only}
echo "TESTS ENDED WITH $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def call(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def kernel_package(work: Path) -> Path:
    """Debian's kernel, fetched once."""
    found = sorted(work.glob("linux-image-*.deb"))
    if not found:
        says = call("apt-cache", "depends", "linux-image-amd64")
        name = next(line.split()[1] for line in says.splitlines() if "Depends:" in line)
        call("apt-get", "download", name, cwd=work)
        found = sorted(work.glob("linux-image-*.deb"))
    return found[0]


def first_root(work: Path, tree: Path, only: str) -> Path:
    """An initramfs: busybox, the modules that reach this machine's files, and what to run."""
    version = next((tree / "lib/modules").iterdir()).name
    call("depmod", "-b", str(tree), version)
    modules: dict[str, Path] = {}
    for name in MODULES:
        for line in call(
            "modprobe", "-d", str(tree), "-S", version, "--show-depends", name
        ).splitlines():
            if line.startswith("insmod "):
                file = Path(line.split()[1])
                modules.setdefault(file.name, file)
    folder = work / "initramfs"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "proc", "modules"):
        (folder / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or sys.exit("no busybox"), folder / "bin/busybox")
    for file in modules.values():
        shutil.copy(file, folder / "modules" / file.name)
    (folder / "list").write_text("\n".join(modules))
    (folder / "init").write_text(FIRST)
    (folder / "init").chmod(0o755)
    chosen = f"-k {shlex.quote(only)}" if only else ""
    second = SECOND.format(path=PATH, repository=REPOSITORY, python=sys.executable, only=chosen)
    (folder / "second").write_text(second)
    archive = work / "initramfs.cpio"
    with archive.open("wb") as out:
        names = subprocess.run(["find", "."], cwd=folder, capture_output=True, check=True).stdout
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder, input=names, stdout=out, check=True
        )
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kernel", type=Path, help="a linux-image-….deb instead of Debian's")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/llmprof-vm"))
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="as pytest's")
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="then it is ended")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg")
    given = parser.parse_args()
    if os.getuid():
        sys.exit("needs root: the machine reads this one's files as its own root")
    os.environ["PATH"] = f"{os.environ['PATH']}:{PATH}"
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tree = work / "kernel"
    shutil.rmtree(tree, ignore_errors=True)
    call("dpkg-deb", "-x", str(given.kernel or kernel_package(work)), str(tree))
    command = ["qemu-system-x86_64", "-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]
    command += ["-smp", "2", "-m", "4G", "-accel", given.accel]
    command += ["-cpu", "max" if given.accel == "tcg" else "host"]
    share = "local,id=host,path=/,security_model=passthrough,readonly=on,multidevs=remap"
    command += ["-fsdev", share, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
    command += ["-kernel", str(next((tree / "boot").glob("vmlinuz-*")))]
    command += ["-initrd", str(first_root(work, tree, given.k))]
    command += ["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]
    ended = False
    machine = subprocess.Popen(
        ["timeout", str(given.limit), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        assert machine.stdout is not None
        for line in machine.stdout:
            if "TESTS ENDED WITH" in line:
                ended = line.rstrip().endswith(" 0")
                print(line, end="", flush=True)
                break
            print(line, end="", flush=True)
    finally:
        machine.terminate()
        machine.wait()
    sys.exit(0 if ended else 1)


if __name__ == "__main__":
    main()
