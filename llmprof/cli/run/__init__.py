"""``llmprof --engine …``: arguments and config to a plan, the run, its progress. For the parser."""
