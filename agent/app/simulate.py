"""Simulate: a simulated device into a recording, as fast as it goes or in real time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.adapters.clock import SystemClock
from agent.adapters.simulated_imu import SimulatedImu
from agent.adapters.text_output import STDOUT, TextOutput
from agent.core.gait import Imperfections, Step
from agent.core.wire import recording_header, recording_rows
from agent.errors import UsageError
from agent.ports import Clock
from agent.records import SampleBatch
from agent.runtime.pacing import PacedSource


@dataclass(frozen=True)
class SimulateSettings:
    """What to simulate. `out`: a file, gzip if it ends with .gz, or `STDOUT`."""

    script: Sequence[Step]
    out: str = STDOUT
    duration_s: float | None = None
    rate_hz: float = 50.0
    seed: int = 0
    device: str = "simulated"
    realtime: bool = False
    imperfections: Imperfections = field(default_factory=Imperfections)


def simulate(settings: SimulateSettings, clock: Clock | None = None) -> int:
    """Write a har-recording/1 of a simulated device; return the number of its samples.

    Raises:
        UsageError: a value outside its range.
        OutputError: it cannot be written.
    """
    if not settings.device or not settings.device.isprintable():
        raise UsageError("the device's name must be one line of printable text")
    try:
        imu = SimulatedImu(
            settings.device,
            settings.script,
            seed=settings.seed,
            rate_hz=settings.rate_hz,
            duration_s=settings.duration_s,
            imperfections=settings.imperfections,
        )
    except ValueError as e:
        raise UsageError(str(e)) from e
    source = PacedSource(imu, clock or SystemClock(), 1.0) if settings.realtime else imu
    with TextOutput(settings.out) as writer:
        writer.write(recording_header(settings.device, settings.rate_hz))
        label: str | None = None
        samples = 0
        while (decoded := source.poll(1.0)) is not None:
            for batch in decoded:
                if isinstance(batch, SampleBatch):
                    text, label = recording_rows(batch, label)
                    writer.write(text)
                    samples += len(batch.t_ns)
            if settings.realtime:
                writer.flush()
        return samples
