"""A battery that the board runs from.

Source: Documentation/ABI/testing/sysfs-class-power of the Linux kernel.
"""

from pathlib import Path

from agent.adapters.power._files import number, text
from agent.adapters.power._none import UNMEASURED
from agent.records import PowerReading


class BatteryMeter:
    """`ports.PowerMeter` on what flows out of the batteries; nothing while none is discharging."""

    def __init__(self, batteries: list[Path]) -> None:
        self._batteries = batteries

    def read(self) -> PowerReading:
        """Power now, of the whole system that the batteries feed. May block on the fuel gauge's bus."""
        watts = [w for w in map(_watts, self._batteries) if w is not None]
        return PowerReading(sum(watts), "battery", None) if watts else UNMEASURED


def open_batteries(sysfs: Path) -> BatteryMeter | None:
    """Return a meter on the batteries of this machine; None if it has none. Those of a mouse are not of it."""
    batteries = [
        supply
        for supply in sorted((sysfs / "class/power_supply").glob("*"))
        if text(supply / "type") == "Battery" and text(supply / "scope") != "Device"
    ]
    return BatteryMeter(batteries) if batteries else None


def _watts(battery: Path) -> float | None:
    if text(battery / "status") != "Discharging":
        return None
    try:
        # Some drivers give what flows out a sign.
        return abs(number(battery / "power_now")) / 1e6
    except (OSError, ValueError):
        pass
    try:
        return abs(number(battery / "current_now")) * number(battery / "voltage_now") / 1e12
    except (OSError, ValueError):
        return None
