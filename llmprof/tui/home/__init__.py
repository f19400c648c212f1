"""The screen of ``llmprof`` without arguments, and of ``llmprof open`` without a file."""
