"""The power management chip of a Raspberry Pi 5, which its firmware reads.

Source: `vcgencmd pmic_read_adc` as printed in https://github.com/jfikar/RPi5-power, which also compared the sum with
a USB-C meter: drawn = 1.1451 * sum + 0.5879 W. What the 5 V input feeds directly (USB devices, HATs, NVMe) is not in
the sum.
"""

import re
from collections.abc import Callable

from agent.adapters.power._none import UNMEASURED
from agent.records import PowerReading

_READING = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\d{1,6}\.\d{1,12})\2\s*$", re.MULTILINE)
_MISSED_SHARE = 0.1451
_MISSED_WATTS = 0.5879


class PmicMeter:
    """`ports.PowerMeter` on the rails that the chip measures: the sum of their currents times their voltages.

    `error_pct` says by how much that is below what the bare board draws, after the comparison above (one board, one
    meter). The reading itself is not corrected, because it is shown as measured.
    """

    def __init__(self, vcgencmd: Callable[[str], str | None]) -> None:
        self._vcgencmd = vcgencmd

    def read(self) -> PowerReading:
        """Power now. Waits for `vcgencmd`."""
        rails: dict[str, dict[str, float]] = {}
        for rail, unit, value in _READING.findall(self._vcgencmd("pmic_read_adc") or ""):
            rails.setdefault(rail, {})[unit] = float(value)
        watts = sum(rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2)
        if watts <= 0:
            return UNMEASURED
        return PowerReading(watts, "pmic", round(100 * (_MISSED_SHARE + _MISSED_WATTS / watts), 1))


def open_pmic(vcgencmd: Callable[[str], str | None]) -> PmicMeter | None:
    """Return the meter; None on a board without that chip, or without access to the firmware."""
    meter = PmicMeter(vcgencmd)
    return None if meter.read() == UNMEASURED else meter
