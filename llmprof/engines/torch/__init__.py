"""Engine torch: a Llama in plain PyTorch, eager or as a CUDA graph."""
