"""What the board draws, guessed from how busy its cores are. Never more than a guess, and said to be one."""

from dataclasses import dataclass
from pathlib import Path

from agent.adapters.power._files import text
from agent.adapters.power._none import UNMEASURED
from agent.core.settings import TelemetrySettings
from agent.records import PowerReading


@dataclass(frozen=True)
class Coefficients:
    """What a board draws with its cores idle, and with all of them busy; how far off the model may be."""

    idle_watts: float
    busy_watts: float
    error_pct: float


BOARDS = {
    # 540 mA and 1280 mA at 5 V, idle and with `stress --cpu 4`: https://www.pidramble.com/wiki/benchmarks/power-consumption
    # Another owner's meters say 2.2 to 2.3 W and 5.1 to 5.4 W: https://chipwired.com/raspberry-pi-power-use/
    # That is up to 20 % apart; the rest is for what hangs on the board, and for clocks between idle and full.
    "Raspberry Pi 4 Model B": Coefficients(2.7, 6.4, 30),
    # Means of 3.3 W and 9.8 W with 4 GB, and 2.4 W and 8.9 W with 2 GB and a later stepping of the chip:
    # https://jeffgeerling.com/blog/2024/new-2gb-pi-5-has-33-smaller-die-30-idle-power-savings
    # Idle is 16 % off for either; with a network and a fan others see 4 to 5 W: https://github.com/geerlingguy/pi-isp/issues/6
    "Raspberry Pi 5 Model B": Coefficients(2.85, 9.35, 40),
}  # fmt: skip
"""By the start of /proc/device-tree/model. A Raspberry Pi Zero 2 W is missing because its idle power is published
(0.6 W, cnx-software.com, 2021), but no figure for four busy cores was found that could be traced; a Jetson Orin Nano,
because it measures itself, and what is published is for its graphics processor."""

OWN_ERROR_PCT = 20.0
"""With coefficients of this very board the line between idle and busy is still bent by the clock's speed, and memory
and radio are not on it. Not measured: an allowance."""

_IDLE, _IOWAIT, _FIELDS = 3, 4, 8
"""Fields of the first line of /proc/stat (proc_stat(5)); those after the eighth are counted in `user` already."""


class CpuTimeModel:
    """`ports.PowerMeter` that is none: idle power, and the rest by the busy share of all cores since the last call."""

    def __init__(self, coefficients: Coefficients, stat: Path) -> None:
        """`stat`: /proc/stat.

        Raises:
            ValueError: it cannot be read as one.
        """
        self._coefficients = coefficients
        self._stat = stat
        times = self._times()
        if times is None:
            raise ValueError(f"{stat} has no times of all cores")
        self._last = times

    def read(self) -> PowerReading:
        """Mean power since the last call, as modelled. Does not block."""
        times = self._times()
        if times is None:
            return UNMEASURED
        idle, total = times[0] - self._last[0], times[1] - self._last[1]
        if total <= 0:
            return UNMEASURED
        self._last = times
        busy = min(1.0, max(0.0, 1 - idle / total))
        c = self._coefficients
        return PowerReading(c.idle_watts + (c.busy_watts - c.idle_watts) * busy, "model", c.error_pct)

    def _times(self) -> tuple[int, int] | None:
        """Ticks of all cores: idle, and all."""
        name, *fields = (text(self._stat).split("\n", 1)[0].split() or [""])[: _FIELDS + 1]
        try:
            ticks = [int(field) for field in fields]
        except ValueError:
            return None
        if name != "cpu" or len(ticks) <= _IOWAIT:
            return None
        return ticks[_IDLE] + ticks[_IOWAIT], sum(ticks)


def open_model(settings: TelemetrySettings, procfs: Path) -> CpuTimeModel | None:
    """Return a model with the configured coefficients, or those of a known board; None where there are none."""
    idle, busy, error_pct = settings.idle_watts, settings.busy_watts, OWN_ERROR_PCT
    if idle is None or busy is None:
        model = text(procfs / "device-tree/model")
        known = next((c for board, c in BOARDS.items() if model.startswith(board)), None)
        if known is None:
            return None
        idle = known.idle_watts if idle is None else idle
        busy = known.busy_watts if busy is None else busy
        error_pct = known.error_pct
    try:
        return CpuTimeModel(Coefficients(idle, busy, error_pct), procfs / "stat")
    except ValueError:
        return None
