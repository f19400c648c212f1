"""Build the image, run it, log in, compare two engines, try to get out. No Docker daemon needed.

    sudo python3 docker/test/container_test.py [--target cpu] [--work /var/tmp/llmprof-container]

Debian packages: buildah runc debootstrap openssh-client. It needs root, about 15 GB and, the first
time, 10 to 20 minutes. Each line is one check; the exit code is 1 if any failed. pip's
configuration of the caller (certificates, mirrors, wheel folders) is used for the build steps.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checks_closed as closed
import checks_use as use
from images import BASE, Builder, add_build_arguments, build_arguments
from report import failed, guarded, say
from runtime import PROFILE, TRACING, Container, make_key


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="cpu")
    add_build_arguments(parser)
    parser.add_argument("--keep-image", action="store_true", help="use the image that is there")
    parser.add_argument("--capabilities", action="store_true", help="try without each of them")
    given = parser.parse_args()
    if os.getuid():
        sys.exit("needs root: buildah and runc make namespaces and files of other users")
    work = given.work.resolve()
    builder, image = Builder(work), f"localhost/llmprof-test:{given.target}"
    builder.make_base(given.suite, given.mirror)
    if not (given.keep_image and builder.has(image)):
        seconds = builder.build(image, given.target, build_arguments(given), given.wheels)
        say(True, f"built {given.target} in {seconds:.0f} s")
    base, size = builder.size_mib(BASE), builder.size_mib(image)
    say(True, f"{given.target}: {size} MiB unpacked, of it {base} MiB the Debian base")
    builder.forget()
    guarded(lambda: closed.check_layers(builder, image), "layers")
    root = Path(builder.call("mount", "llmprof-test"))
    config = builder.inspect(image)
    key, stranger = make_key(work, "key"), make_key(work, "stranger")
    public = key.with_suffix(".pub").read_text()
    boxes = [
        Container("open", root, config, work, {"AUTHORIZED_KEYS": public}),
        Container("forced", root, config, work, {"AUTHORIZED_KEYS": public, "LLMPROF_ONLY": "1"}),
        Container("filtered", root, config, work, {"AUTHORIZED_KEYS": public}, denied=TRACING),
    ]
    try:
        for box in boxes:
            box.start()
        opened, forced, filtered = boxes
        under = "the runtimes' seccomp filter" if PROFILE.exists() else f"no filter: no {PROFILE}"
        say(
            "Server listening" in opened.said(),
            f"started: read-only root, capabilities dropped, {under}",
            opened.said(),
        )
        guarded(lambda: closed.check_logins(opened, key, stranger), "logins")
        known = [(box.work / "known_hosts") for box in (opened, forced)]
        guarded(lambda: closed.check_forced(forced, key), "forced command")
        hosts = {file.read_text().split()[-1] for file in known if file.exists()}
        say(len(hosts) == 2, "host keys of two containers differ", f"{hosts}")
        guarded(lambda: closed.check_confinement(opened, key), "confinement")
        guarded(lambda: closed.check_forwarding(opened, key), "forwarding")
        guarded(lambda: closed.check_agent(opened, key), "agent")
        guarded(lambda: use.check_greeting(opened, key), "greeting")
        guarded(lambda: use.check_json(opened, key), "json")
        guarded(lambda: use.check_copy(opened, key), "copy")
        guarded(lambda: use.check_tui(opened, key), "tui")
        if PROFILE.exists():
            guarded(lambda: use.check_host_stacks(opened, key, filtered), "host stacks")
        if given.target == "cpu":
            guarded(lambda: use.check_prepare(opened, key), "prepare")
            guarded(lambda: use.check_mlc(opened, key), "mlc")
        guarded(lambda: use.check_lifecycle(opened, key), "lifecycle")
        guarded(lambda: use.check_interrupt(forced), "interrupt")
        guarded(lambda: use.check_volumes(root, config, work, key), "volumes")
        guarded(lambda: closed.check_refusals(root, config, work), "refusals")
        if given.capabilities:
            closed.check_capabilities(root, config, work, key)
    finally:
        for box in boxes:
            box.kill()
        builder.forget()
    print(f"{len(failed)} failed" if failed else "all passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
