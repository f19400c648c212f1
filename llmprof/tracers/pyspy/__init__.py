"""Host stacks: py-spy in the parent, the metronome beside the worker."""
