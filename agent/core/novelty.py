"""Novelty of a bundle that has no graph for it: how badly the decoder rebuilds a window from its code."""

import numpy as np

from agent.records import Float32Array, Float64Array


def reconstruction_error(windows: Float32Array, reconstructions: Float32Array) -> Float64Array:
    """Mean squared error per window, in units of the channels' training variance.

    Both arguments float32 (B, window, 6), normalised. Returns float64 (B,). Each window is reduced by itself, in the
    same order alone and in a batch.
    """
    difference = np.subtract(windows, reconstructions).reshape(len(windows), -1)
    squares: Float64Array = np.einsum("ij,ij->i", difference, difference).astype(np.float64)
    return squares / difference.shape[1]
