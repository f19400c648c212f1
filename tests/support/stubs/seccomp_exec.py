"""``PYTHON seccomp_exec.py NAME[,NAME…] COMMAND…``: the command, to which the kernel denies these
system calls (EPERM), as a container's filter does. Needs no privilege."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {  # asm/unistd_64.h; asm-generic/unistd.h
    "x86_64": {"ptrace": 101, "process_vm_readv": 310},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270},
}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2  # linux/prctl.h, seccomp.h
LOAD_NUMBER, EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
ALLOW, DENY = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM


class Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def main() -> None:
    numbers = [NUMBERS[platform.machine()][name] for name in sys.argv[1].split(",")]
    code = [(LOAD_NUMBER, 0, 0, 0)]
    for index, number in enumerate(numbers):
        code.append((EQUAL, len(numbers) - index, 0, number))
    code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    packed = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = Program(len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call):
            sys.exit(f"prctl {call[0]}: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
