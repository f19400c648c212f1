"""Engine vllm: vLLM's own engine in this process, stepped by its ``LLMEngine.step``."""
