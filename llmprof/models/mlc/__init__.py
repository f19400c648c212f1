"""What MLC LLM reads: compiled libraries, their metadata, weights and chat config."""
