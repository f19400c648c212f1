"""DRAM and SM counters: PM sampling, in a process of its own."""
