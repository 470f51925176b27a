"""Windows for a bundle's golden vectors: made from a seed, because no recording may travel with a model."""

import numpy as np

from agent.records import CHANNELS, Float32Array


def golden_windows(window: int, rate_hz: float, n: int = 32, seed: int = 0) -> Float32Array:
    """Return float32 (n, window, 6) in g and rad/s: postures and gaits in turn, near upright or lying.

    A posture is gravity with a slow sway and sensor noise; a gait adds the harmonics of a step rate.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(window) / rate_hz
    windows = np.empty((n, window, len(CHANNELS)))
    for i in range(n):
        gravity = rng.normal(0, 0.25, 3)
        gravity[0 if i % 8 < 6 else 2] += 1.0
        windows[i, :, :3] = gravity / np.linalg.norm(gravity)
        windows[i, :, 3:] = 0
        for channel in range(len(CHANNELS)):
            sway = 0.003 * (channel + 1) ** 0.5
            windows[i, :, channel] += sway * np.sin(2 * np.pi * rng.uniform(0.2, 1.0) * t + rng.uniform(0, 2 * np.pi))
        if i % 2:
            step_hz, strength = rng.uniform(1.4, 2.3), rng.uniform(0.1, 0.5)
            for harmonic in (1, 2, 3):
                phase = rng.uniform(0, 2 * np.pi, len(CHANNELS))
                waves = np.sin(2 * np.pi * harmonic * step_hz * t[:, None] + phase)
                windows[i] += strength / harmonic * rng.uniform(0.3, 1.0, len(CHANNELS)) * waves
    windows += rng.normal(0, 0.004, windows.shape)
    return windows.clip(-8, 8).astype(np.float32)
