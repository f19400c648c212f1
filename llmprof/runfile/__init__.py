"""The run file: SQLite in Nsight Systems' export schema plus LLMPROF_* tables. All SQL is here."""
