"""Stand-ins for what is outside: a model that is a formula, a clock that a test turns, sources and sinks in memory."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from agent.core.manifest import Calibration, Code, Input, Manifest
from agent.core.normalise import Normalisation
from agent.records import Decoded, Event, Float32Array, Float64Array, SampleBatch, Scores, Turn

LABELS = ("still", "moving", "turning")


def manifest(hop: int = 64, threshold: float = 5.0) -> Manifest:
    """A manifest for `FakeModel`: no scaling, three labels."""
    return Manifest(
        name="fake",
        version="1",
        created="2026-01-01",
        labels=LABELS,
        input=Input(hop=hop),
        normalisation=Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32)),
        code=Code((4,), "int8", 4),
        calibration=Calibration(1.0, threshold),
        files={},
    )


class FakeModel:
    """Scores a window by a formula that depends on every sample and its place: an error in cutting shows."""

    id = "fake@00000000"
    labels = LABELS

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._weights = rng.integers(-8, 8, (128 * 6, len(LABELS))).astype(np.int64)
        self.batches: list[int] = []

    def infer(self, windows: Float32Array) -> Scores:
        """Integer arithmetic, so that a window scores the same alone and in a batch."""
        self.batches.append(len(windows))
        whole = np.rint(windows.reshape(len(windows), -1) * 256).astype(np.int64)
        logits = ((whole @ self._weights) % 4096 / 512).astype(np.float32)
        novelty: Float64Array = np.abs(whole).max(axis=1) / 256
        return Scores(logits, np.zeros((len(windows), 4), np.int8), novelty)


class FakeClock:
    """A clock that moves when it is told to, or slept on."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.is_synced = True
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.now_ns

    def synced(self) -> bool:
        return self.is_synced

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += round(seconds * 1e9)


class ScriptedSource:
    """Gives what it was told to, one item a poll, then ends. An exception in the script is raised."""

    def __init__(self, script: Iterable[Sequence[Decoded] | Exception]) -> None:
        self._script = deque(script)
        self.closed = False

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        if not self._script:
            return None
        item = self._script.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed = True


class RecordingList:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.closed = False

    def write(self, turn: Turn) -> None:
        self.turns.append(turn)

    def close(self) -> None:
        self.closed = True


def signal(n: int, seed: int = 0) -> Float32Array:
    """Float32 (n, 6): noise around gravity."""
    values = np.random.default_rng(seed).normal(0, 0.3, (n, 6)).astype(np.float32)
    values[:, 2] += 1
    return values


def even_times(n: int, rate_hz: float = 50.0, t0_s: float = 0.0) -> np.ndarray:
    """Int64 (n,) nanoseconds of an even stream."""
    return np.rint((t0_s + np.arange(n) / rate_hz) * 1e9).astype(np.int64)


def cut(t_ns: np.ndarray, values: Float32Array, sizes: Iterable[int], stream: str = "s") -> list[SampleBatch]:
    """Cut samples into batches of the given sizes, over and over, to the end."""
    out, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(t_ns):
            return out
        out.append(SampleBatch(stream, t_ns[at : at + size], values[at : at + size], at))
        at += size
    return out


def fed(pipeline, batches: Iterable[SampleBatch]) -> list[Event]:
    """Feed batches one by one and return all events."""
    return [event for batch in batches for event in pipeline.feed([batch])]
