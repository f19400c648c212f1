"""Slow decoders of GPTQ, EXL2 and EXL3, one weight at a time, straight from the kernels' sources.

They share no code with llmprof, so that an agreement says something.
"""

from __future__ import annotations

import numpy as np


def read_file(path) -> dict[str, np.ndarray]:
    """All tensors, through the safetensors package."""
    import safetensors.numpy

    return safetensors.numpy.load_file(str(path))


def bits_of(word: int, at: int, count: int) -> int:
    return (word >> at) & ((1 << count) - 1)


def gptq_weight(tensors: dict[str, np.ndarray], key: str) -> np.ndarray:
    """[k, n]; ``reconstruct_kernel`` in q4_matrix.cu of exllama 0.1.0."""
    qweight = tensors[f"{key}.qweight"].view(np.uint32)
    qzeros = tensors[f"{key}.qzeros"].view(np.uint32)
    scales = tensors[f"{key}.scales"]
    k, n = qweight.shape[0] * 8, qweight.shape[1]
    group_size = k // scales.shape[0]
    weight = np.zeros((k, n))
    for row in range(k):
        group = row // group_size
        for column in range(n):
            q = bits_of(int(qweight[row // 8, column]), row % 8 * 4, 4)
            zero = bits_of(int(qzeros[group, column // 8]), column % 8 * 4, 4) + 1
            weight[row, column] = (q - zero) * float(scales[group, column])
    return weight


def exl2_weight(tensors: dict[str, np.ndarray], key: str) -> np.ndarray:
    """[k, n]; ``reconstruct_kernel`` in q_matrix.cu, ``pack_columns_kernel`` in pack_tensor.cu."""
    packed = tensors[f"{key}.q_weight"].view(np.uint32)
    scale = tensors[f"{key}.q_scale"].view(np.uint32)
    scale_max = tensors[f"{key}.q_scale_max"]
    table = tensors[f"{key}.q_groups"].view(np.uint16)
    inverse = tensors[f"{key}.q_invperm"]
    k, n = len(inverse), packed.shape[1]
    bounds = [*(int(at) for at in table[1::2]), packed.shape[0]]
    rows = []
    for group, bits in enumerate(int(b) for b in table[0::2]):
        first, last = bounds[group], bounds[group + 1]
        count = (last - first) * 32 // bits
        block = np.zeros((count, n))
        for column in range(n):
            stream = sum(int(packed[first + i, column]) << (32 * i) for i in range(last - first))
            nibble = bits_of(int(scale[group, column // 8]), column % 8 * 4, 4)
            factor = (nibble + 1) ** 2 * float(scale_max[group]) / 256
            for row in range(count):
                q = bits_of(stream, row * bits, bits)
                block[row, column] = (q - (1 << (bits - 1))) * factor
        rows.append(block)
    stored = np.concatenate(rows)
    assert stored.shape[0] == k
    return stored[inverse]


def exl3_weight(tensors: dict[str, np.ndarray], key: str) -> np.ndarray:
    """[k, n]; ``dq`` in exl3_dq.cuh, ``decode_3inst<2>`` in codebook.cuh, ``tensor_core_perm`` in
    quantize.py, ``get_weight_tensor`` in exl3.py of exllamav3 1.6.5."""
    trellis = tensors[f"{key}.trellis"]
    assert int(tensors[f"{key}.mul1"].view(np.uint32)) == 0x83DCD12D
    tiles_k, tiles_n, words = trellis.shape
    bits = words // 16
    inner = np.zeros((tiles_k * 16, tiles_n * 16))
    for i in range(tiles_k):
        for j in range(tiles_n):
            inner[i * 16 : i * 16 + 16, j * 16 : j * 16 + 16] = exl3_tile(trellis[i, j], bits)
    hadamard = np.ones((1, 1))
    while len(hadamard) < 128:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.sqrt(128)
    left = np.kron(np.eye(tiles_k // 8), hadamard)
    right = np.kron(np.eye(tiles_n // 8), hadamard)
    suh = tensors[f"{key}.suh"].astype(float)[:, None]
    return suh * (left @ inner @ right) * tensors[f"{key}.svh"].astype(float)


def exl3_tile(words: np.ndarray, bits: int) -> np.ndarray:
    # The ring is a string of 32-bit words, each from its highest bit down.
    stream = 0
    for word in np.ascontiguousarray(words).view(np.uint32):
        stream = stream << 32 | int(word)
    length = 256 * bits
    doubled = stream << length | stream
    tile = np.zeros((16, 16))
    for position in range(256):
        end = length + (position + 1) * bits
        state = (doubled >> (2 * length - end)) & 0xFFFF
        lane, part = divmod(position, 8)
        row = (lane % 4) * 2 + part % 2 + (8 if part % 4 >= 2 else 0)
        column = lane // 4 + (8 if part >= 4 else 0)
        tile[row, column] = mul1(state)
    return tile


def mul1(state: int) -> float:
    product = state * 0x83DCD12D & 0xFFFFFFFF
    total = 1024 + sum(product >> shift & 255 for shift in (0, 8, 16, 24))
    scale, bias = np.array([0x1EEE, 0xC931], np.uint16).view(np.float16).astype(float)
    return float(np.float16(total * scale + bias))
