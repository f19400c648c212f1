"""The child process that holds one engine. Standard library only (nvtx where it is installed)."""
