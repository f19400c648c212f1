"""Engine llamacpp: GGUF files through a binding of llama.cpp."""
