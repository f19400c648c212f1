"""Where the points of a sweep run: this host, its GPUs, a Ray cluster. ``cli`` picks one."""
