"""Kernels and API calls: CUPTI activity into a spool, and its decoder."""
