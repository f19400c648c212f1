"""``llmprof record``: a program that nobody wrote an adapter for, recorded from outside."""
