"""Hugging Face folders: config.json and the weights beside it, GPTQ ones dequantised."""
