"""RAPL: energy counters of processor packages.

Source: Documentation/power/powercap/powercap.rst of the Linux kernel.
"""

from pathlib import Path

from agent.adapters.power._files import number, text
from agent.adapters.power._none import UNMEASURED
from agent.ports import Clock
from agent.records import PowerReading


class RaplMeter:
    """`ports.PowerMeter` on the energy counters of the processor packages; not the rest of the board."""

    def __init__(self, packages: list[Path], clock: Clock) -> None:
        """Take the powercap zones `packages`; the first interval starts now.

        Raises:
            OSError: a counter cannot be read.
            ValueError: it is no number.
        """
        self._packages = packages
        self._clock = clock
        self._range_uj = [number(zone / "max_energy_range_uj") for zone in packages]
        self._energy_uj, self._t_ns = self._sample()

    def _sample(self) -> tuple[list[int], int]:
        return [number(zone / "energy_uj") for zone in self._packages], self._clock.monotonic_ns()

    def read(self) -> PowerReading:
        """Mean power since the last call, or since the start. Does not block."""
        try:
            energy_uj, t_ns = self._sample()
        except (OSError, ValueError):
            return UNMEASURED
        spent = sum(
            (now - before) % (size + 1)
            for now, before, size in zip(energy_uj, self._energy_uj, self._range_uj, strict=True)
        )
        elapsed_ns = t_ns - self._t_ns
        self._energy_uj, self._t_ns = energy_uj, t_ns
        if elapsed_ns <= 0:
            return UNMEASURED
        return PowerReading(spent * 1e3 / elapsed_ns, "rapl", None)


def open_rapl(sysfs: Path, clock: Clock) -> RaplMeter | None:
    """Return a meter on all processor packages; None if there is none, or only root may read it (since 2020)."""
    zones = sorted(p for p in (sysfs / "class/powercap").glob("*-rapl:*") if p.name.count(":") == 1)
    packages = [zone for zone in zones if text(zone / "name").startswith("package")]
    if not packages:
        return None
    try:
        return RaplMeter(packages, clock)
    except (OSError, ValueError):
        return None
