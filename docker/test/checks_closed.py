"""What is closed: layers, logins, files, forwarding, the forced command, bad starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from images import Builder
from report import say
from runtime import CAPABILITIES, Container


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
    """What does not work without each of compose.yaml's capabilities."""
    public = key.with_suffix(".pub").read_text()
    for left_out in CAPABILITIES:
        rest = tuple(name for name in CAPABILITIES if name != left_out)
        box = Container("fewer", root, image, work, {"AUTHORIZED_KEYS": public}, capabilities=rest)
        box.start()
        done = box.ssh(key, "tty", options=("-tt",), timeout_s=30)
        works = done.returncode == 0 and "/dev/pts/" in done.stdout
        text = "no login"
        if works:
            told = box.work / "home/bench/told"
            session = box.ssh_command(key, "trap 'touch ~/told; exit' HUP; sleep 60 & wait")
            waiting = subprocess.Popen(session, stdin=subprocess.DEVNULL)
            time.sleep(2)
            box.terminate()
            waiting.wait(20)
            text = f"a login works, docker stop {'ends' if told.exists() else 'does not end'} it"
        print(f"info without {left_out}: {text}", flush=True)
        box.kill()
