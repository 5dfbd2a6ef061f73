"""The weight that a product stands for, by numpy, and ranks to try of each format."""

from __future__ import annotations

import itertools

import numpy as np

RANKS = {"channel": (3,), "spatial": (3,), "tucker2": (3, 3), "decouple": (1,)}


def low(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of that rank, by numpy."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def projection(weight: np.ndarray, form: str, ranks: tuple[int, ...]) -> np.ndarray:
    """The weight (O, I, H, W) a product stands for, written out with loops."""
    outputs, inputs, height, width = weight.shape
    out = np.zeros_like(weight)
    if form == "channel":
        return low(weight.reshape(outputs, -1), ranks[0]).reshape(weight.shape)
    if form == "spatial":
        matrix = np.zeros((inputs * height, outputs * width))
        places = list(itertools.product(range(outputs), range(inputs), range(height), range(width)))
        for o, i, y, x in places:
            matrix[i * height + y, o * width + x] = weight[o, i, y, x]
        matrix = low(matrix, ranks[0])
        for o, i, y, x in places:
            out[o, i, y, x] = matrix[i * height + y, o * width + x]
        return out
    if form == "decouple":
        for o in range(outputs):
            out[o] = low(weight[o].reshape(inputs, -1), ranks[0]).reshape(weight.shape[1:])
        return out
    inward = np.linalg.svd(np.moveaxis(weight, 1, 0).reshape(inputs, -1))[0][:, : ranks[0]]
    core = np.einsum("oihw,ia,ja->ojhw", weight, inward, inward)
    outward = np.linalg.svd(core.reshape(outputs, -1))[0][:, : ranks[1]]
    return np.einsum("oihw,ob,pb->pihw", core, outward, outward)
