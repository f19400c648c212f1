"""What the host did: sampled stacks, and why the device waited; stands on device."""
