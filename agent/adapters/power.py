"""Power that the board draws, as its kernel publishes it: RAPL, a sensor of the board, or nothing.

What cannot be measured is not estimated here: `NoPower` says so.

Sources: Documentation/power/powercap/powercap.rst and Documentation/hwmon/sysfs-interface.rst of the Linux
kernel.
"""

from collections.abc import Callable
from pathlib import Path

from agent.ports import Clock, PowerMeter
from agent.records import PowerReading

SYSFS = Path("/sys")
BOARD_CHIPS = ("ina", "ltc29", "power_meter")
"""hwmon chips that boards use to measure their own supply. A graphics card's or a drive's sensor is not the
board."""
SUPPLY_LABELS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "5V_IN")
"""How boards with several rails name the one that everything runs from."""

UNMEASURED = PowerReading(None, "none", None)


class NoPower:
    """`ports.PowerMeter` where nothing measures."""

    def read(self) -> PowerReading:
        """Say that there is no figure."""
        return UNMEASURED


class RaplMeter:
    """`ports.PowerMeter` on the energy counters of the processor packages; not the rest of the board."""

    def __init__(self, packages: list[Path], clock: Clock) -> None:
        """Take the powercap zones `packages`; the first interval starts now.

        Raises:
            OSError: a counter cannot be read.
        """
        self._packages = packages
        self._clock = clock
        self._range_uj = [_number(zone / "max_energy_range_uj") for zone in packages]
        self._energy_uj, self._t_ns = self._sample()

    def _sample(self) -> tuple[list[int], int]:
        return [_number(zone / "energy_uj") for zone in self._packages], self._clock.monotonic_ns()

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


class HwmonMeter:
    """`ports.PowerMeter` on a power sensor of the board, as its chip gives it."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts

    def read(self) -> PowerReading:
        """Power now. May block for the chip's conversion time."""
        try:
            return PowerReading(self._watts(), "hwmon", None)
        except (OSError, ValueError):
            return UNMEASURED


def open_power_meter(clock: Clock, sysfs: Path = SYSFS) -> PowerMeter:
    """Return the best meter that this board has and this user may read."""
    packages = sorted(p for p in (sysfs / "class/powercap").glob("*-rapl:*") if p.name.count(":") == 1)
    packages = [p for p in packages if _text(p / "name").startswith("package")]
    if packages:
        try:
            return RaplMeter(packages, clock)
        except (OSError, ValueError):
            pass  # since 2020 the counters are root's; a board sensor may still be readable
    watts = _board_sensor(sysfs / "class/hwmon")
    return HwmonMeter(watts) if watts else NoPower()


def _board_sensor(hwmon: Path) -> Callable[[], float] | None:
    """Return how to read the supply of the board.

    None if there is no sensor, or several of which none is named as the supply.
    """
    found: list[tuple[str, Callable[[], float]]] = []
    for chip in sorted(hwmon.glob("hwmon*")):
        if not _text(chip / "name").startswith(BOARD_CHIPS):
            continue
        powers = sorted(chip.glob("power*_input")) or sorted(chip.glob("power*_average"))
        for path in powers:
            label = _text(chip / (path.name.split("_")[0] + "_label"))
            found.append((label, _microwatts(path)))
        if not powers:
            for current in sorted(chip.glob("curr*_input")):
                number = current.name.removeprefix("curr").removesuffix("_input")
                voltage = chip / f"in{number}_input"
                if voltage.exists():
                    found.append((_text(chip / f"in{number}_label"), _product(voltage, current)))
    found = [(label, watts) for label, watts in found if _works(watts)]
    supply = [watts for label, watts in found if label in SUPPLY_LABELS]
    if supply:
        return supply[0]
    return found[0][1] if len(found) == 1 else None


def _microwatts(path: Path) -> Callable[[], float]:
    return lambda: _number(path) / 1e6


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: _number(millivolts) * _number(milliamperes) / 1e6


def _works(watts: Callable[[], float]) -> bool:
    try:
        watts()
    except (OSError, ValueError):
        return False
    return True


def _number(path: Path) -> int:
    return int(path.read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
