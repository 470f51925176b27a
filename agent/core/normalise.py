"""Per-channel standardisation: the one definition of the model's input, shared by training and serving."""

import numpy as np

from agent.records import CHANNELS, Float32Array


class Normalisation:
    """x -> (x - mean) * (1 / std), float32, per channel.

    `mean`, `std`: float32 (6,), in g and rad/s, fitted once on the training recordings and shipped in the bundle.
    """

    def __init__(self, mean: Float32Array, std: Float32Array) -> None:
        """Refuse what cannot normalise.

        Raises:
            ValueError: a shape other than (6,), a value that is not finite, or a std that is not positive.
        """
        for name, x in (("mean", mean), ("std", std)):
            if x.shape != (len(CHANNELS),) or not np.isfinite(x).all():
                raise ValueError(f"{name} must be {len(CHANNELS)} finite numbers")
        if not (std > 0).all():
            raise ValueError("std must be positive")
        self.mean = mean
        self.std = std
        # As wide as a whole window, by its length: broadcasting six numbers at a time costs twenty times as much.
        self._tiled: dict[int, tuple[Float32Array, Float32Array]] = {}

    def apply(self, windows: Float32Array, out: Float32Array | None = None) -> Float32Array:
        """Return float32 `windows` (B, window, 6) normalised; `out` may be `windows` itself."""
        n = windows.shape[1]
        if n not in self._tiled:
            self._tiled[n] = np.tile(self.mean, (n, 1)), np.tile(np.float32(1) / self.std, (n, 1))
        mean, reciprocal = self._tiled[n]
        out = np.subtract(windows, mean, out=out)
        return np.multiply(out, reciprocal, out=out)


def fit(values: Float32Array) -> Normalisation:
    """Fit on float32 (n, 6) samples. A channel that never moves keeps a std of 1."""
    mean = values.mean(axis=0, dtype=np.float64)
    std = values.std(axis=0, dtype=np.float64)
    std[std < 1e-6] = 1.0
    return Normalisation(mean.astype(np.float32), std.astype(np.float32))
