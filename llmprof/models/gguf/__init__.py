"""GGUF files: header and tensors."""
