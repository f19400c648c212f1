"""Models: where weights, configurations and tokenizers come from."""
