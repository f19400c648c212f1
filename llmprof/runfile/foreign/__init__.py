"""Files that llmprof did not make: exports of Nsight Systems."""
