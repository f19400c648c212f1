"""The safetensors format: header and writer; knows nothing of models."""
