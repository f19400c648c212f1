"""C++ names from a file made readable, in a child that may use little memory and time.

A few hundred bytes of back-references expand to terabytes, and libstdc++ has no bound. The
demanglers on PyPI are no way out: cxxfilt calls the same function, and itanium_demangler 1.1 does
not know ``DF16b`` (bfloat16), which is in most names of AMD's kernels. libstdc++ before GCC 13
takes that for a fixed-point ``bool _Accum``: such a name stays mangled. One that the child dies on,
and those after it, stay so too; short names and category rules take mangled ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIMIT = 4096
"""Characters of a mangled name that is tried, and of the name that is kept."""
SECONDS = 20
_CHILD = Path(__file__).with_name("demangling_child.py")


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Mangled name → readable one, for those that could be read."""
    tried = [n for n in names if len(n) <= LIMIT and n.isascii() and n.isprintable()]
    if not tried:
        return {}
    command = [sys.executable, "-I", "-S", str(_CHILD), str(LIMIT)]
    try:
        done = subprocess.run(
            command,
            input="\n".join(tried) + "\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
        lines = done.stdout.split("\n")
    except subprocess.TimeoutExpired as why:
        lines = (why.stdout or b"").decode(errors="replace").split("\n")
    except OSError:
        return {}
    # The line that the child was writing when it died may not be whole.
    pairs = zip(tried, lines[:-1], strict=False)
    return {name: line for name, line in pairs if line and line != name and "_Accum" not in line}
