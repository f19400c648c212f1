"""What the GPU did: attribution to steps, kernels, categories, gaps, waterfall; imports no
other room.
"""
