"""A DOUBLE of MLC LLM, for tests where the real package cannot be had.

Written after MLC LLM's sources of July 2026 (79d603f0): the module paths, names, arguments and
defaults of python/mlc_llm, and the scheduler of cpp/serve reduced to what a forced-length greedy
run meets: chunked prefill, batch decode, preemption, finish reasons, the stream callback. Its
tokens are real: a compiled library computes them through TVM.
"""

__version__ = "double-of-0.1.dev0"
