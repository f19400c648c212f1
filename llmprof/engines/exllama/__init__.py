"""Engines exllama, exllamav2, exllamav3: one adapter, two drives, three libraries."""
