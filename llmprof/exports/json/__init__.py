"""The document of --json and its schema."""
