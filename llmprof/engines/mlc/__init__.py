"""Engine mlc: MLC LLM's own engine (serve), or its compiled library in TVM's machine (vm)."""
