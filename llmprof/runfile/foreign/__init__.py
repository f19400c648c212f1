"""Files that llmprof did not make: exports of Nsight Systems, and what was converted to one."""
