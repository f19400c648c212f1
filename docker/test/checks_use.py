"""What works: a login, a comparison in the TUI and in a pipe, copies, the end of a container."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from report import say
from runtime import Container

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = "--rounds 8 --decode-len 24 --traced-steps 8"
ENGINES = "--engine torch --engine llamacpp --model smollm2"
TINY = "llmprof --headless --json --engine torch --model tiny --rounds 2 --decode-len 32"


def readme_commands() -> list[str]:
    """What the README's section on the container says to type after the login."""
    section = (REPOSITORY / "README.md").read_text().split("### In a container, over ssh")[1]
    return [line for line in section.split("```")[1].splitlines() if line.startswith("llmprof ")]


def check_prepare(box: Container, key: Path) -> None:
    """The README's line for MLC, which needs MLC LLM, and what an image without it can do."""
    command = next(line for line in readme_commands() if "model prepare" in line)
    (box.work / "models/Llama-2-7b-hf").mkdir()
    (box.work / "models/Llama-2-7b-hf/config.json").write_text('{"model_type": "llama"}')
    (box.work / "models/Llama-2-7b-hf/model.safetensors").write_bytes(bytes(8))
    done = box.ssh(key, command)
    said = done.stderr.strip()
    words = "mlc_llm is not installed for /opt/engines/mlc/bin/python"
    ok = done.returncode == 2 and words in said and len(said.splitlines()) == 1
    say(ok, f"README: {command.split(' --from')[0]}: one line without MLC LLM", said)
    print(f"       {said}")
    done = box.ssh(key, "llmprof model prepare --engine exllamav2 --from smollm2 -o exl2/smollm2")
    say(done.returncode == 0, f"SmolLM2 prepared: {done.stdout.strip()}", done.stderr)
    done = box.ssh(
        key,
        f"llmprof --headless --json --engine torch --model exl2/smollm2 {QUICK}",
        timeout_s=600,
    )
    document = json.loads(done.stdout) if done.returncode == 0 else None
    text = document["engines"][0]["text"] if document else ""
    say(done.returncode == 0, f"and run by torch: {text!r:.80}", done.stderr)


def check_mlc(box: Container, key: Path) -> None:
    """A small library, compiled here as MLC LLM does it, in the image's TVM."""
    library = box.work / "models/tiny.so"
    script = "import sys, pathlib, mlc_tiny as m"
    script += "; m.compile_library(m.Build(), pathlib.Path(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", script, str(library)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/tests/support/weights:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    if made.returncode:
        why = made.stderr.strip().splitlines()[-1:]
        print(f"info no run of mlc: this interpreter cannot compile a library: {why}", flush=True)
        return
    (box.work / "models/ids").write_text("3 141 59 26 5 35 8 97")  # the vocabulary has 512
    command = "llmprof --headless --json --engine mlc:lib=/models/tiny.so,weights=random"
    done = box.ssh(key, f"{command} --prompt-ids /models/ids {QUICK}", timeout_s=300)
    ok = done.returncode == 0 and json.loads(done.stdout)["engines"][0]["info"]["drive"] == "vm"
    say(ok, "mlc: a compiled library runs in TVM's virtual machine", done.stderr)


def check_host_stacks(box: Container, key: Path, filtered: Container) -> None:
    """py-spy as bench, with no capability; ``filtered`` refuses ptrace as older runtimes did."""
    found = {}
    for name, where, more in (
        ("open", box, ""),
        ("filtered", filtered, ""),
        ("filtered, blocking", filtered, "--host-blocking"),
    ):
        done = where.ssh(key, f"{TINY} --traced-steps 400 {more}", timeout_s=120)
        if done.returncode:
            say(False, f"host stacks, {name}: the run", done.stderr)
            return
        found[name] = json.loads(done.stdout)["engines"][0]["tracing"]
    for name in ("open", "filtered"):
        has = found[name]["host"] is not None
        say(has, f"host stacks without a capability: {name}", f"{found[name].get('host_reason')}")
    reason = found["filtered, blocking"]["host_reason"] or ""
    say(
        "--cap-add SYS_PTRACE" in reason and "leave out --host-blocking" in reason,
        "host stacks: where stopping is filtered the run says what to add",
        reason,
    )


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
    """The README's line in a real terminal until both engines have finished; then q."""
    command = next(line for line in readme_commands() if line.startswith("llmprof --engine"))
    runs = box.work / "home/bench/.local/share/llmprof/runs"
    before = set(runs.glob("*.sqlite"))
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
    while time.monotonic() - begin < 900:
        if select.select([master], [], [], 0.2)[0]:
            try:
                output += os.read(master, 65536)
            except OSError:
                break
        now = time.monotonic()
        if not quit_at and now - asked > 5:
            asked = now
            new = set(runs.glob("*.sqlite")) - before
            state = _state(next(iter(new))) if new else ""
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
        f"README: ssh -tt … {command}: draws its screen ({len(output)} bytes)",
        text[-500:],
    )
    took = f"{quit_at - begin:.0f} s"
    say(
        state == "finished",
        f"the comparison in the TUI: {state or 'no state'}, {took}",
        text[-1500:],
    )
    tail = text.rpartition("\x1b[?1049l")[2]
    say(
        code == 0 and ("faster" in tail or "no difference" in tail),
        f"q leaves the summary, code {code}",
        tail,
    )
    print("       " + tail.strip().replace("\r\n", "\n       ")[:1500])


def _state(run: Path) -> str:
    """``running``, ``finished``, ``interrupted``, …; empty before the run file has its tables."""
    try:
        with sqlite3.connect(f"file:{run}?mode=ro", uri=True) as sql:
            return str(sql.execute("SELECT state FROM LLMPROF_RUN").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return ""


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
    state = _state(box.work / "home/bench/stopped.sqlite")
    say(state == "interrupted", f"its run is kept: {state}")


def check_interrupt(box: Container) -> None:
    alive = box.inside("/usr/local/bin/llmprof-healthcheck").returncode == 0
    took_s = box.terminate(signal.SIGINT)
    say(
        alive and box.exit_code() == 0,
        f"SIGINT ends a container too, in {took_s:.1f} s",
        box.said(),
    )


def check_volumes(root: Path, image: dict[str, object], work: Path, key: Path) -> None:
    """Keys from a mounted file, host keys that stay, and a home that came empty and root's."""
    places = {name: work / f"volume-{name}" for name in ("host_keys", "keys")}
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    file = places["keys"] / "authorized_keys"
    file.write_text(key.with_suffix(".pub").read_text())
    volumes = {
        "/etc/llmprof/authorized_keys": file,
        "/etc/llmprof/host_keys": places["host_keys"],
    }
    seen = []
    for name in ("first", "second"):
        box = Container(name, root, image, work, {}, volumes=volumes)
        home = box.work / "home/bench"
        shutil.rmtree(home)
        home.mkdir(mode=0o755)
        box.start()
        done = box.ssh(key, "touch ~/mine && stat -c %U ~")
        seen.append((done.stdout.strip(), re.findall(r"SHA256:\S+", box.said())[:1]))
        box.kill()
    say(
        [who for who, _ in seen] == ["bench", "bench"],
        "a mounted key file admits; an empty home of root's is given to bench",
        f"{seen} {done.stderr}",
    )
    say(seen[0][1] == seen[1][1] != [], "host keys in a volume outlive the container", f"{seen}")
