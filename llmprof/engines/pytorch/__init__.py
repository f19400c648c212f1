"""What the engine families on PyTorch share: memory checks, operator trace."""
