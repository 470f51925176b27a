"""A simulated IMU as a source: `core.gait` with the fitted coefficients that ship with the agent."""

import json
from collections.abc import Sequence
from importlib.resources import files

from agent.core.gait import Imperfections, Samples, Simulator, Step, label_changes
from agent.core.gait_coefficients import Coefficients, parse
from agent.errors import ConfigError
from agent.records import Decoded, SampleBatch

_COEFFICIENTS = "simulated_imu.json"


def load_coefficients() -> Coefficients:
    """Read the coefficients that ship with the agent.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return parse(json.loads((files("agent.adapters") / _COEFFICIENTS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_COEFFICIENTS} is unusable, install har-edge-agent again: {error}") from error


class SimulatedImu:
    """`ports.Source` of one simulated device: samples as fast as asked for, until its script ends."""

    def __init__(
        self,
        device: str,
        script: Sequence[Step],
        *,
        seed: int = 0,
        rate_hz: float = 50.0,
        duration_s: float | None = None,
        imperfections: Imperfections | None = None,
        coefficients: Coefficients | None = None,
    ) -> None:
        """`coefficients`: those that ship with the agent unless given.

        Raises:
            ValueError: a value outside its range, with a sentence for the user.
            ConfigError: the coefficients are missing or damaged.
        """
        self.device = device
        self.simulator = Simulator(
            coefficients or load_coefficients(),
            script,
            seed=seed,
            rate_hz=rate_hz,
            duration_s=duration_s,
            imperfections=imperfections,
        )
        self._piece = max(1, round(rate_hz))
        self._seq = 0
        self._label: int | None = None

    def read(self) -> Samples | None:
        """Return the next second of samples; None at the end."""
        return self.simulator.take(self._piece)

    def poll(self, timeout_s: float) -> list[Decoded] | None:  # noqa: ARG002  a simulation does not wait
        """Return the next second of samples as one batch; None at the end."""
        samples = self.read()
        if samples is None:
            return None
        if not len(samples.t_ns):
            return []
        truth = label_changes(samples, self._seq, self._label)
        self._label = int(samples.labels[-1])
        batch = SampleBatch(self.device, samples.t_ns, samples.values, self._seq, None, truth)
        self._seq += len(samples.t_ns)
        return [batch]

    def close(self) -> None:
        """Nothing is held."""
