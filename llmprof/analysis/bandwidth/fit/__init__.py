"""From samples and executions to the throughput of each kernel; ``bandwidth`` calls it."""
