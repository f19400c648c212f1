"""Build the image, run it, log in, compare two engines, try to get out. No Docker daemon needed.

    sudo python3 docker/test/container_test.py [--target cpu] [--work /var/tmp/llmprof-container]

Debian packages: buildah runc debootstrap openssh-client. It needs root, about 15 GB and, the first
time, 10 to 20 minutes. Each line is one check; the exit code is 1 if any failed. pip's
configuration of the caller (certificates, mirrors, wheel folders) is used for the build steps.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from images import BASE, Builder, add_build_arguments, build_arguments
from runtime import CAPABILITIES, Container, make_key

QUICK = "--rounds 8 --decode-len 24 --traced-steps 8"
ENGINES = "--engine torch --engine llamacpp --model smollm2"
failed: list[str] = []


def say(ok: bool, text: str, detail: str = "") -> None:
    """One check. ``detail`` is shown where it failed."""
    if not ok:
        failed.append(text)
    print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)
    if not ok and detail:
        print("       " + detail.strip().replace("\n", "\n       ")[-2000:], flush=True)


def check_layers(builder: Builder, image: str) -> None:
    """No key, no login, no pip configuration in any layer, not even below a deletion."""
    found = []
    layers = builder.layer_folders()
    for layer in layers:
        for folder, _, names in os.walk(layer):
            where = folder.removeprefix(str(layer))
            for name in names:
                file = Path(folder, name)
                known = name.startswith("ssh_host_") or name in ("authorized_keys", ".netrc")
                if known or (f"{where}/{name}" == "/etc/pip.conf" and file.stat().st_size):
                    found.append(f"{where}/{name}")
                elif _holds_private_key(file):
                    found.append(f"{where}/{name} (private key)")
    say(
        not found and len(layers) >= 3,
        f"{len(layers)} layers: no host key, authorized key, private key or pip.conf",
        "\n".join(found),
    )
    config = json.dumps(builder.inspect(image))
    words = [
        w for w in ("PIP_CERT", "PIP_INDEX", "BEGIN OPENSSH", str(builder.work)) if w in config
    ]
    say(
        not words,
        "image configuration and history: nothing of the machine that built it",
        f"{words}",
    )
    root = next(iter([builder.mount(image)]))
    shadow = (root / "etc/shadow").read_text().splitlines()
    usable = [line.split(":")[0] for line in shadow if line.split(":")[1] not in ("*", "!", "!*")]
    say(not usable, "image: no account has a password", f"{usable}")
    setuid = [
        str(Path(folder, name))
        for folder, _, names in os.walk(root)
        for name in names
        if not Path(folder, name).is_symlink() and Path(folder, name).lstat().st_mode & 0o6000
    ]
    say(not setuid, "image: no setuid or setgid program", "\n".join(setuid))


def _holds_private_key(file: Path) -> bool:
    if file.is_symlink() or not file.is_file() or file.stat().st_size > 64 * 1024:
        return False
    # Documentation and sources may speak of the format; a key starts with it.
    return (
        file.read_bytes().lstrip().startswith((b"-----BEGIN OPENSSH PRIV", b"-----BEGIN RSA PRIV"))
    )


def check_logins(box: Container, key: Path, stranger: Path) -> None:
    done = box.ssh(key, "id -un; id -u; hostname")
    say(
        done.stdout.split() == ["bench", "1000", box.name],
        "login with the key is bench",
        done.stderr,
    )
    refused = {
        "another key": box.ssh(stranger, "id"),
        "no key": box.ssh(None, "id", options=("-o", "PubkeyAuthentication=no")),
        "root with the right key": box.ssh(key, "id", user="root"),
        "an unknown user": box.ssh(key, "id", user="admin"),
        "a password": box.ssh(
            None,
            "id",
            options=("-o", "PreferredAuthentications=password,keyboard-interactive"),
        ),
    }
    for what, done in refused.items():
        ok = done.returncode == 255 and "Permission denied (publickey)" in done.stderr
        say(ok, f"refused: {what}", f"{done.returncode} {done.stdout} {done.stderr}")


def check_confinement(box: Container, key: Path) -> None:
    script = (
        "for f in /x /etc/x /usr/x /opt/llmprof/x /opt/engines/x /run/x /run/llmprof/x /var/x"
        " /etc/llmprof/config.toml /run/llmprof/authorized_keys /run/llmprof/sshd_config;"
        " do (echo x >>$f) 2>/dev/null && echo wrote $f; done; for f in ~/x /models/x /tmp/x;"
        " do (echo x >$f) && echo fine $f; rm $f; done; cat /run/llmprof/host_keys/*key /etc/shadow"
        " 2>/dev/null; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; env"
    )
    done = box.ssh(key, script)
    say("wrote" not in done.stdout, "bench cannot write outside its places", done.stdout)
    say(
        done.stdout.count("fine") == 3, "bench can write to its home, /models and /tmp", done.stdout
    )
    say("PRIVATE KEY" not in done.stdout and "root:" not in done.stdout, "bench reads no secret")
    say("CapEff:\t0000000000000000" in done.stdout, "bench has no capability", done.stdout)
    say("NoNewPrivs:\t1" in done.stdout, "no new privileges")
    say("AUTHORIZED_KEYS" not in done.stdout, "sessions do not inherit the container's environment")
    say(
        "LLMPROF_EXTENSIONS_DIR=" in done.stdout and "LANG=C.UTF-8" in done.stdout,
        "but what they need",
    )


def check_forwarding(box: Container, key: Path) -> None:
    done = box.ssh(key, "-", options=("-W", f"127.0.0.1:{box.port}"), timeout_s=20)
    ok = done.returncode != 0 and "SSH-2.0" not in done.stdout
    say(ok, "TCP forwarding is off", f"{done.stdout} {done.stderr}")


def check_agent(box: Container, key: Path) -> None:
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True).stdout
    found = dict(re.findall(r"(SSH_\w+)=([^;]+);", agent))
    try:
        done = subprocess.run(
            box.ssh_command(key, "env", options=("-A", "-X")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **found, "DISPLAY": "127.0.0.1:0"},
        )
        hit = [n for n in ("SSH_AUTH_SOCK", "DISPLAY=") if n in done.stdout]
        say(
            done.returncode == 0 and not hit,
            "agent and X11 forwarding are off",
            f"{hit} {done.stderr}",
        )
    finally:
        if "SSH_AGENT_PID" in found:
            os.kill(int(found["SSH_AGENT_PID"]), 15)


def check_json(box: Container, key: Path) -> None:
    """The README's pipe: one document on stdout, silence on stderr."""
    begin = time.monotonic()
    command = f"llmprof --headless --json {ENGINES} {QUICK} -o piped.sqlite"
    done = box.ssh(key, command, timeout_s=600)
    checked = subprocess.run(
        [sys.executable, "-m", "json.tool"], input=done.stdout, capture_output=True, text=True
    )
    took = f"{time.monotonic() - begin:.0f} s"
    ok = done.returncode == 0 and checked.returncode == 0
    say(ok, f"ssh … llmprof --headless --json | python -m json.tool ({took})", done.stderr)
    if not ok:
        return
    document = json.loads(done.stdout)
    states = [f"{e['label']} {e['state']}" for e in document["engines"]]
    say(all("finished" in s for s in states) and len(states) == 2, f"both engines: {states}")
    pair = document["pairs"][0]
    print(f"       tok/s ratio {json.dumps(pair['tok_s_ratio'])}, seen: {pair['difference_seen']}")
    extra = [line for line in done.stderr.splitlines() if "run file" not in line]
    say(
        "\x1b" not in done.stderr and "\r" not in done.stderr,
        "no progress bar in the pipe",
        done.stderr,
    )
    print("       stderr: " + " / ".join(extra or ["(the run file's path only)"])[:400])


def check_tui(box: Container, key: Path) -> None:
    """``ssh -tt`` and ``llmprof`` in a real terminal until both engines have finished; then q."""
    command = f"llmprof {ENGINES} {QUICK} -o screen.sqlite"
    pid, master = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        arguments = box.ssh_command(key, command, options=("-tt",))
        os.execvp(arguments[0], arguments)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    begin, asked, quit_at = time.monotonic(), 0.0, 0.0
    output = bytearray()
    state = ""
    while time.monotonic() - begin < 400:
        if select.select([master], [], [], 0.2)[0]:
            try:
                output += os.read(master, 65536)
            except OSError:
                break
        now = time.monotonic()
        if not quit_at and now - asked > 5:
            asked = now
            done = box.ssh(key, "llmprof --headless --json --from screen.sqlite", timeout_s=60)
            state = json.loads(done.stdout)["run"]["state"] if done.stdout else state
            if state != "running" and state:
                os.write(master, b"q")
                quit_at = now
        if quit_at and now - quit_at > 5:
            os.write(master, b"q")
            quit_at = now
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(master)
    text = output.decode(errors="replace")
    (box.work / "screen.raw").write_bytes(output)
    say(
        "\x1b[?1049h" in text,
        f"ssh -tt … llmprof draws its screen ({len(output)} bytes)",
        text[-500:],
    )
    say(state == "finished", f"the comparison in the TUI has {state or 'no state'}", text[-1500:])
    tail = text.rpartition("\x1b[?1049l")[2]
    say(
        code == 0 and ("faster" in tail or "no difference" in tail),
        f"q leaves the summary, code {code}",
        tail,
    )
    print("       " + tail.strip().replace("\r\n", "\n       ")[:1500])


def check_greeting(box: Container, key: Path) -> None:
    done = subprocess.run(
        box.ssh_command(key, options=("-tt",)),
        input="exit\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    ok = "engines" in done.stdout and "torch" in done.stdout and "GPU" in done.stdout
    say(ok, "a login is greeted with GPU and engines", done.stdout + done.stderr)
    print("       " + done.stdout.strip().replace("\r\n", "\n       ")[:700])


def check_copy(box: Container, key: Path) -> None:
    command = box.ssh_command(key)
    scp = ["scp", "-q", "-F", "none", "-P", str(box.port), *command[5:-1]]
    target = box.work / "piped.sqlite"
    done = subprocess.run(
        [*scp, "bench@127.0.0.1:piped.sqlite", str(target)], capture_output=True, text=True
    )
    say(
        done.returncode == 0 and target.read_bytes()[:6] == b"SQLite",
        "scp brings a run file",
        done.stderr,
    )


def check_lifecycle(box: Container, key: Path) -> None:
    healthy = box.inside("/usr/local/bin/llmprof-healthcheck")
    say(healthy.returncode == 0, "HEALTHCHECK: healthy", healthy.stderr)
    wrong = box.inside("env", "SSH_PORT=1", "/usr/local/bin/llmprof-healthcheck")
    say(wrong.returncode != 0, "HEALTHCHECK: a port where nobody answers is unhealthy")
    box.ssh(key, "(sleep 0.2 &) ; (true &)")
    time.sleep(1)
    states = box.inside("ps", "-eo", "stat,comm").stdout
    say(not re.search(r"^Z", states, re.MULTILINE), "no zombie is left", states)
    run = subprocess.Popen(
        box.ssh_command(key, f"llmprof {ENGINES} --rounds 500 -o stopped.sqlite", options=("-tt",)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(25)
    took_s = box.terminate()
    run.wait(20)
    say(
        box.exit_code() == 0,
        f"docker stop in the middle of a run: ended in {took_s:.1f} s",
        box.said(),
    )
    python = [
        sys.executable,
        "-c",
        "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(",
    ]
    python[2] += "'select state from LLMPROF_RUN').fetchone()[0])"
    file = box.work / "home/bench/stopped.sqlite"
    done = subprocess.run([*python, str(file)], capture_output=True, text=True)
    say(
        done.stdout.strip() == "interrupted", f"its run is kept: {done.stdout.strip()}", done.stderr
    )


def check_forced(box: Container, key: Path) -> None:
    done = box.ssh(key, "llmprof --version")
    say(done.stdout.startswith("llmprof "), "forced command: llmprof runs", done.stderr)
    attempts = [
        "id", "bash -i", "/bin/sh -c id", "llmprof; id", "llmprof --version; id", "llmprof $(id)",
        "llmprof `id`", "llmprof | id", "llmprof && id", "llmprof\nid",
        "llmprof --engine torch@/bin/sh",
        "llmprof --engine=torch@/tmp/x", "llmprof -o /home/bench/.bashrc", "llmprof -o ../x.sqlite",
        "llmprof model synth tiny-128 --engine exllama -o .config", "llmprof 'unbalanced",
        "scp -f x", "/usr/lib/openssh/sftp-server",
    ]  # fmt: skip
    escaped = {}
    for text in attempts:
        done = box.ssh(key, text)
        if done.returncode != 2 or "uid=" in done.stdout + done.stderr:
            escaped[text] = f"{done.returncode} {done.stdout[:200]} {done.stderr[:200]}"
    say(not escaped, f"forced command: {len(attempts)} ways out end with 2", f"{escaped}")
    planted = box.work / "home/bench"
    for name in (".bashrc", ".profile", ".bash_profile", ".ssh/rc", ".ssh/environment"):
        (planted / name).parent.mkdir(exist_ok=True)
        (planted / name).write_text("echo ESCAPED; id\n")
    (planted / ".config/llmprof").mkdir(parents=True, exist_ok=True)
    (planted / ".config/llmprof/config.toml").write_text('[engines.torch]\npython = "/bin/sh"\n')
    done = box.ssh(key, "llmprof engines")
    text = done.stdout + done.stderr
    say(
        "ESCAPED" not in text and "/bin/sh" not in text,
        "forced command: files in the home run nothing",
        text,
    )
    for subsystem in ("sftp", "netconf"):
        done = box.ssh(key, "-s", subsystem, options=())
        done = subprocess.run(
            box.ssh_command(key, subsystem, options=("-s",)),
            input="",
            capture_output=True,
            text=True,
        )
        ok = done.returncode != 0 and "uid=" not in done.stdout
        say(ok, f"forced command: no {subsystem} subsystem", f"{done.returncode} {done.stdout}")
    check_forwarding(box, key)
    done = box.ssh(
        key, "llmprof --headless --engine torch --model tiny --rounds 2 --decode-len 8 -o r.sqlite"
    )
    say(done.returncode == 0, "forced command: a run works", done.stderr)


def check_refusals(root: Path, image: dict[str, object], work: Path) -> None:
    cases = {
        "no key": ({}, "nobody could log in"),
        "a private key": (
            {"AUTHORIZED_KEYS": "-----BEGIN OPENSSH PRIVATE KEY-----\nabc"},
            "private key",
        ),
        "rubbish": ({"AUTHORIZED_KEYS": "ssh-ed25519 rubbish"}, "cannot be read"),
        "half a key": ({"AUTHORIZED_KEYS": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5\n"}, "cannot be read"),
        "a bad port": ({"SSH_PORT": "22; id"}, "is not a port"),
    }
    for what, (environment, words) in cases.items():
        box = Container("refused", root, image, work, environment)
        box.start()
        code = box.exit_code(5)
        say(code == 2 and words in box.said(), f"entrypoint refuses {what} in one line", box.said())
        box.kill()


def check_capabilities(root: Path, image: dict[str, object], work: Path, key: Path) -> None:
    """Which of compose.yaml's capabilities a login needs. KILL is for ending sessions."""
    public = key.with_suffix(".pub").read_text()
    for left_out in CAPABILITIES:
        rest = tuple(name for name in CAPABILITIES if name != left_out)
        box = Container("fewer", root, image, work, {"AUTHORIZED_KEYS": public}, capabilities=rest)
        box.start()
        done = box.ssh(key, "tty", options=("-tt",), timeout_s=30)
        works = done.returncode == 0 and "/dev/pts/" in done.stdout
        print(f"info without {left_out}: {'a login works' if works else 'no login'}", flush=True)
        box.kill()


def guarded(work: Callable[[], None], name: str) -> None:
    try:
        work()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as why:
        say(False, f"{name}: {type(why).__name__}: {why}")


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
    guarded(lambda: check_layers(builder, image), "layers")
    root = Path(builder.call("mount", "llmprof-test"))
    config = builder.inspect(image)
    key, stranger = make_key(work, "key"), make_key(work, "stranger")
    public = key.with_suffix(".pub").read_text()
    boxes = [
        Container("open", root, config, work, {"AUTHORIZED_KEYS": public}),
        Container("forced", root, config, work, {"AUTHORIZED_KEYS": public, "LLMPROF_ONLY": "1"}),
    ]
    try:
        for box in boxes:
            box.start()
        opened, forced = boxes
        say(
            "Server listening" in opened.said(),
            "started: read-only root, capabilities dropped",
            opened.said(),
        )
        guarded(lambda: check_logins(opened, key, stranger), "logins")
        known = [(box.work / "known_hosts") for box in boxes]
        guarded(lambda: check_forced(forced, key), "forced command")
        hosts = {file.read_text().split()[-1] for file in known if file.exists()}
        say(len(hosts) == 2, "host keys of two containers differ", f"{hosts}")
        guarded(lambda: check_confinement(opened, key), "confinement")
        guarded(lambda: check_forwarding(opened, key), "forwarding")
        guarded(lambda: check_agent(opened, key), "agent")
        guarded(lambda: check_greeting(opened, key), "greeting")
        guarded(lambda: check_json(opened, key), "json")
        guarded(lambda: check_copy(opened, key), "copy")
        guarded(lambda: check_tui(opened, key), "tui")
        guarded(lambda: check_lifecycle(opened, key), "lifecycle")
        guarded(lambda: check_refusals(root, config, work), "refusals")
        if given.capabilities:
            check_capabilities(root, config, work, key)
    finally:
        for box in boxes:
            box.kill()
        builder.forget()
    print(f"{len(failed)} failed" if failed else "all passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
