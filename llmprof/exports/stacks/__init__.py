"""Host stacks for flame graph viewers."""
