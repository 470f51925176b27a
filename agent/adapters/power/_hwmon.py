"""Sensors that a board carries to measure its own supply, as the kernel's hwmon class shows them.

Sources: Documentation/hwmon/sysfs-interface.rst, ina2xx.rst, ina3221.rst and ltc2945.rst of the Linux kernel.
"""

from collections.abc import Callable
from pathlib import Path

from agent.adapters.power._files import number, text
from agent.adapters.power._none import UNMEASURED
from agent.ports import Clock
from agent.records import PowerReading

BOARD_CHIPS = ("ina", "ltc29", "power_meter")
"""hwmon chips that boards use to measure their own supply. A graphics card's or a drive's sensor is not the
board."""
NAMED_CHIPS = ("ina219", "ina226", "ina3221")
"""Chips that a reading names; the others are `hwmon`."""
SUPPLY_LABELS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""How boards with several rails name the one that everything runs from: Jetson TX2, Xavier NX, Orin NX and Nano;
Jetson Nano. A Jetson AGX Orin has no such rail: its VIN_SYS_5V0 is one beside the others, so it is not here."""


class HwmonMeter:
    """`ports.PowerMeter` on a power sensor of the board, as its chip gives it."""

    def __init__(self, watts: Callable[[], float | None], source: str) -> None:
        self._watts = watts
        self._source = source

    def read(self) -> PowerReading:
        """Power now, or since the last call where the chip counts energy. May block for the chip's conversion time."""
        try:
            watts = self._watts()
        except (OSError, ValueError):
            return UNMEASURED
        return UNMEASURED if watts is None else PowerReading(watts, self._source, None)


def open_hwmon(sysfs: Path, clock: Clock) -> HwmonMeter | None:
    """Return a meter on the supply of the board.

    None if there is no sensor, or several of which none is named as the supply.
    """
    found: list[tuple[str, HwmonMeter]] = []
    for chip in sorted((sysfs / "class/hwmon").glob("hwmon*")):
        name = text(chip / "name")
        if not name.startswith(BOARD_CHIPS):
            continue
        source = name if name in NAMED_CHIPS else "hwmon"
        found += [(label, HwmonMeter(watts, source)) for label, watts in _channels(chip, clock) if _works(watts)]
    supply = [meter for label, meter in found if label in SUPPLY_LABELS]
    if supply:
        return supply[0]
    return found[0][1] if len(found) == 1 else None


def _channels(chip: Path, clock: Clock) -> list[tuple[str, Callable[[], float | None]]]:
    """Label and reader of each channel: by energy if the chip counts it, else by power, else current times voltage."""
    energies = sorted(chip.glob("energy*_input"))
    if energies:
        return [(_label(chip, path), _Energy(path, clock)) for path in energies]
    powers = sorted(chip.glob("power*_input")) or sorted(chip.glob("power*_average"))
    if powers:
        return [(_label(chip, path), _microwatts(path)) for path in powers]
    channels: list[tuple[str, Callable[[], float | None]]] = []
    for current in sorted(chip.glob("curr*_input")):
        voltage = chip / f"in{current.name.removeprefix('curr')}"
        if voltage.exists():
            channels.append((_label(chip, voltage), _product(voltage, current)))
    return channels


class _Energy:
    """Mean power since the last call, from a counter of microjoules."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._last: tuple[int, int] | None = None

    def __call__(self) -> float | None:
        now = number(self._path), self._clock.monotonic_ns()
        before, self._last = self._last, now
        if before is None or now[1] <= before[1] or now[0] < before[0]:
            return None  # it starts here, no time has passed, or the counter began anew
        return (now[0] - before[0]) * 1e3 / (now[1] - before[1])


def _label(chip: Path, path: Path) -> str:
    return text(chip / (path.name.split("_")[0] + "_label"))


def _microwatts(path: Path) -> Callable[[], float]:
    return lambda: number(path) / 1e6


def _product(millivolts: Path, milliamperes: Path) -> Callable[[], float]:
    return lambda: number(millivolts) * number(milliamperes) / 1e6


def _works(watts: Callable[[], float | None]) -> bool:
    try:
        watts()
    except (OSError, ValueError):
        return False
    return True
