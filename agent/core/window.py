"""The ring that turns an even stream of samples into overlapping windows."""

from collections.abc import Iterator

import numpy as np

from agent.records import CHANNELS, Float32Array


class WindowRing:
    """Mirrored ring: every sample is written twice, `window` rows apart, so each window is one contiguous slice."""

    def __init__(self, window: int, hop: int) -> None:
        """`window`: samples in a window. `hop`: samples from the start of one window to the next, 1 to `window`."""
        if not 1 <= hop <= window:
            raise ValueError(f"hop must be between 1 and the window's {window} samples, not {hop}")
        self._window = window
        self.hop = hop
        """May be changed; the window that is being filled keeps the old one."""
        self._rows = np.zeros((2 * window, len(CHANNELS)), np.float32)
        self._view = self._rows.view()
        self._view.flags.writeable = False
        self.clear()

    def clear(self) -> None:
        """Forget all samples: the next window starts with the next one."""
        self._at = 0
        self._needed = self._window
        self.uncovered = 0
        """Samples that are in no window yet."""

    @property
    def missing(self) -> int:
        """Samples until the next window is complete."""
        return self._needed - self.uncovered

    def push(self, values: Float32Array) -> Iterator[tuple[int, Float32Array]]:
        """Take float32 (n, 6); yield (samples of this push up to the window's end, window float32 (window, 6)).

        A window is a read-only view that is valid until the iterator is advanced.
        """
        window, rows, n, i = self._window, self._rows, len(values), 0
        while i < n:
            # Never beyond the ring's end, so that a write is one slice and its mirror another.
            at = self._at
            step = min(self._needed - self.uncovered, n - i, window - at)
            piece = values[i : i + step]
            rows[at : at + step] = piece
            rows[at + window : at + window + step] = piece
            i += step
            self._at = (at + step) % window
            self.uncovered += step
            if self.uncovered == self._needed:
                self._needed = self.hop
                self.uncovered = 0
                yield i, self._view[self._at : self._at + window]
