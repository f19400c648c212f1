"""Run by ``demangling``: mangled names on stdin, one a line, readable ones on stdout."""

import ctypes
import resource
import sys

MEMORY = 512 << 20
CPU_SECONDS = 10


def main() -> None:
    """Ends by itself, or by the kernel's hand at a limit."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # char *__cxa_demangle(const char *name, char *buffer, size_t *length, int *status),
    # Itanium C++ ABI 3.4: with no buffer the result is malloc'ed and the caller frees it.
    call = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    free = ctypes.CDLL(None).free
    call.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 3
    call.restype = ctypes.c_void_p
    free.argtypes, free.restype = [ctypes.c_void_p], None
    for line in sys.stdin:
        found = call(line.strip().encode(), None, None, None)
        text = ctypes.string_at(found)[:limit].decode(errors="replace") if found else ""
        if found:
            free(found)
        sys.stdout.write(text.replace("\n", " ") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
