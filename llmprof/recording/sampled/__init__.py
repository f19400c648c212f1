"""What is sampled beside a recorded program while its window is open: host stacks, counters of the
GPUs. For recording."""
