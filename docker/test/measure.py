"""Build each target and say how long it took and how large it is, as a Markdown table.

    sudo python3 docker/test/measure.py [TARGET…] [--work /var/tmp/llmprof-container]

The same Debian base, packages and pip configuration as container_test.py. Every target is built
from the base on: no layer of another target is used. Processor seconds tell what a build costs also
on a busy machine. Sizes are unpacked; an environment's is what its files hold. CUDA from PyPI:

    measure.py torch exllama --torch-index '' --torch-version 2.11.0 --build-arg NVCC_WHEELS=13.0
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from images import BASE, Builder, add_build_arguments, build_arguments

TARGETS = ("base", "torch", "llamacpp", "mlc", "exllama", "cpu")


def held_mib(folder: Path) -> int:
    """MiB in the regular files below it, a hard link once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            found = Path(place, name).lstat()
            seen[found.st_dev, found.st_ino] = found.st_size
    return round(sum(seen.values()) / 2**20)


def processor_s() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environments(root: Path) -> str:
    folders = [root / "opt/llmprof", *sorted((root / "opt/engines").glob("*"))]
    return ", ".join(f"{folder.name} {held_mib(folder)}" for folder in folders)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET")
    add_build_arguments(parser)
    given = parser.parse_args()
    if os.getuid():
        sys.exit("needs root: buildah makes files of other users")
    builder = Builder(given.work.resolve())
    builder.make_base(given.suite, given.mirror)
    print(f"base image {given.suite}: {builder.size_mib(BASE)} MiB\n")
    print("| target | MiB | build, s | processor, s | environments, MiB |")
    print("|---|---|---|---|---|", flush=True)
    for target in given.targets:
        image = f"localhost/llmprof-measure:{target}"
        before = processor_s()
        seconds = builder.build(image, target, build_arguments(given), given.wheels)
        spent = processor_s() - before
        cells = (builder.size_mib(image), f"{seconds:.0f}", f"{spent:.0f}")
        where = environments(builder.mount(image))
        print(f"| `{target}` | {' | '.join(map(str, cells))} | {where} |", flush=True)
        builder.forget()
        builder.call("rmi", image)


if __name__ == "__main__":
    main()
