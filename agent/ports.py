"""The protocols that the pipeline and the runtime are written against. Each method says whether it may block."""

from collections.abc import Sequence
from typing import Protocol

from agent.records import Decoded, Float32Array, PowerReading, Scores, Turn


class Model(Protocol):
    """A verified model bundle, ready to run."""

    @property
    def id(self) -> str:
        """Name and digest, `har-base@3f9c1a7e`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""

    def infer(self, windows: Float32Array) -> Scores:
        """Run float32 (B, window, 6), normalised. CPU-bound, does not wait for anything.

        Raises:
            InferenceError: the runtime refused the call.
        """


class Source(Protocol):
    """Where samples come from."""

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        """Return what has come, waiting at most `timeout_s` for it; None once the source has ended.

        Raises:
            SourceUnavailable: the source went away; it may come back.
            InputError: what it delivers cannot be used at all.
        """

    def close(self) -> None:
        """Stop and release everything. Does not block longer than the source's own deadline. Idempotent."""


class Sink(Protocol):
    """Where events go."""

    def write(self, turn: Turn) -> None:
        """Take one turn's events, in order. May block on the medium.

        Raises:
            OutputError: the medium refused for good.
            SinkUnavailable: it refused for now.
        """

    def close(self) -> None:
        """Flush and release. Idempotent."""


class Clock(Protocol):
    """The only way that anything above `adapters` learns the time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, which may be wrong: see `synced`."""

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""


class PowerMeter(Protocol):
    """Something that knows, or models, what the board draws."""

    def read(self) -> PowerReading:
        """Return the power drawn now. May block for the meter's own conversion time."""
