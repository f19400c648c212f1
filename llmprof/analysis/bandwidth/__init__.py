"""Bytes: roofline (modelled) and sampled DRAM throughput (measured); stands on timing."""
