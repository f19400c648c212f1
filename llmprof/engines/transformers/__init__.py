"""Engine transformers: causal language models of Hugging Face transformers, its own loop or a bare
forward; no hub is ever called.
"""
