"""Power that the board draws: measured by what it has, else modelled and said to be so, else nothing.

docs/reference/power.md says which boards report what. Nothing here was run on a board: the tests run on trees laid
out as those boards have them.
"""

from collections.abc import Callable
from pathlib import Path

from agent.adapters.power._battery import open_batteries
from agent.adapters.power._hwmon import open_hwmon
from agent.adapters.power._model import open_model
from agent.adapters.power._none import UNMEASURED, NoPower
from agent.adapters.power._pmic import open_pmic
from agent.adapters.power._rapl import open_rapl
from agent.adapters.power._vcgencmd import Vcgencmd
from agent.core.settings import TelemetrySettings
from agent.ports import Clock, PowerMeter

__all__ = ["UNMEASURED", "Vcgencmd", "open_power_meter"]

SYSFS = Path("/sys")
PROCFS = Path("/proc")


def open_power_meter(
    clock: Clock,
    settings: TelemetrySettings | None = None,
    sysfs: Path = SYSFS,
    procfs: Path = PROCFS,
    run: Callable[[str], str | None] | None = None,
) -> PowerMeter:
    """Return the meter that is configured, or the first that works.

    In order: a sensor of the board, a Raspberry Pi 5's own, a battery that is discharging, the processor's counters,
    a model. A meter that stops working gives readings of none; another one is not looked for.

    `run`: answers a `vcgencmd` command, None if it cannot; the program itself if not given.
    """
    settings = settings or TelemetrySettings()
    vcgencmd = run or Vcgencmd()
    kinds: dict[str, Callable[[], PowerMeter | None]] = {
        "hwmon": lambda: open_hwmon(sysfs, clock),
        "pmic": lambda: open_pmic(vcgencmd),
        "battery": lambda: open_batteries(sysfs),
        "rapl": lambda: open_rapl(sysfs, clock),
        "model": lambda: open_model(settings, procfs),
        "none": NoPower,
    }
    if settings.power != "auto":
        return kinds[settings.power]() or NoPower()
    for kind, open_meter in kinds.items():
        meter = open_meter()
        # A battery that is full would shadow everything after it.
        if meter is not None and (kind != "battery" or meter.read() != UNMEASURED):
            return meter
    return NoPower()
