"""The board itself: its name, how hot it is, and whether it holds itself back.

Sources: Documentation/driver-api/thermal/sysfs-api.rst of the Linux kernel; drivers/hwmon/raspberrypi-hwmon.c;
NVIDIA Jetson Linux Developer Guide, "Jetson Orin Nano Series, Jetson Orin NX Series and Jetson AGX Orin Series", for
`soctherm_oc`; https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd for `get_throttled`. Nothing here
was run on a board.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_PROCESSOR_ZONE = re.compile(r"(cpu|soc|tj\b|x86_pkg_temp|(big|little)core)", re.IGNORECASE)
"""Thermal zones of the processor or of all of its chip; those of graphics, charger, radio or power chip are not."""
_CPU_COOLING = re.compile(r"cpufreq|thermal-cpufreq|Processor$")
"""Cooling devices that slow the processor down; a fan is not one."""
_COLDEST_MC, _HOTTEST_MC = -50_000, 150_000
"""Outside, a sensor is off or broken: drivers give figures such as -274 °C for a part without power."""

UNDER_VOLTAGE = "under-voltage"
_VCGENCMD_BITS = {0: UNDER_VOLTAGE, 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
_SINCE_BOOT = 16
"""Bits from here on say of the same that it has happened since the board started."""
_OVER_CURRENT = {"oc1": UNDER_VOLTAGE, "oc2": "over-current", "oc3": "over-current"}
"""Events of a Jetson Orin: supply too low, mean current too high, current too high for a moment."""
_MOST_BYTES = 4096


class Temperature(NamedTuple):
    """Degrees Celsius, and the name of the sensor that says so."""

    celsius: float
    zone: str


class Throttling(NamedTuple):
    """Whether the board holds itself back, for heat or for its supply.

    `active`: None where nothing can tell. `reasons`: why it is active; `since_boot`: what has been, where that is
    known. `under_voltage`: whether the supply is too weak, None where nothing can tell. `source`: hwmon, thermal (the
    kernel's cooling devices), vcgencmd or none.
    """

    active: bool | None
    reasons: tuple[str, ...]
    source: str
    under_voltage: bool | None = None
    since_boot: tuple[str, ...] = ()


class Board:
    """Reads what the kernel, and a Raspberry Pi's firmware, say of the board. Nothing here raises."""

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        procfs: Path = Path("/proc"),
        run: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        """`run`: answers a `vcgencmd` command, None if it cannot."""
        self._sysfs = sysfs
        self._procfs = procfs
        self._run = run
        self._events: dict[Path, int] = {}
        self._count_events()

    def model(self) -> str | None:
        """What the board calls itself: from its device tree, or from a PC's firmware."""
        name = _text(self._procfs / "device-tree/model")
        if not name:
            dmi = self._sysfs / "class/dmi/id"
            name = f"{_text(dmi / 'sys_vendor')} {_text(dmi / 'product_name')}".strip()
        return name or None

    def boot_id(self) -> str | None:
        """The kernel's name of this boot."""
        return _text(self._procfs / "sys/kernel/random/boot_id") or None

    def temperature(self) -> Temperature | None:
        """The hottest of the processor's sensors; None if none can be read. May block on a sensor's bus."""
        found = []
        for zone in sorted((self._sysfs / "class/thermal").glob("thermal_zone*")):
            name = _text(zone / "type")
            if not _PROCESSOR_ZONE.match(name):
                continue
            millicelsius = _number(zone / "temp")
            if millicelsius is not None and _COLDEST_MC <= millicelsius <= _HOTTEST_MC:
                found.append(Temperature(millicelsius / 1e3, name))
        return max(found, default=None)

    def throttling(self) -> Throttling:
        """Whether the board holds itself back now, or on a Jetson since the last call.

        The kernel is asked first; `vcgencmd`, which takes a process, only if the kernel has nothing to report, because
        on a Raspberry Pi it sees the supply alone.
        """
        alarm = self._supply_alarm()
        events, known = self._count_events()
        cooling = self._cooling()
        reasons = [UNDER_VOLTAGE] if alarm else []
        reasons += [reason for reason in events if reason not in reasons]
        reasons += ["heat"] if cooling else []
        supply_known = alarm is not None or known
        under_voltage = UNDER_VOLTAGE in reasons if supply_known else None
        if reasons:
            return Throttling(True, tuple(reasons), "thermal" if reasons == ["heat"] else "hwmon", under_voltage)
        firmware = _parse_throttled(self._run("get_throttled") or "")
        if firmware is not None:
            return firmware
        if cooling is None and not known:
            # A supply that is well says nothing of heat.
            return Throttling(None, (), "hwmon" if supply_known else "none", under_voltage)
        return Throttling(False, (), "hwmon" if supply_known else "thermal", under_voltage)

    def _supply_alarm(self) -> bool | None:
        """A Raspberry Pi's alarm of its supply."""
        for chip in sorted((self._sysfs / "class/hwmon").glob("hwmon*")):
            if _text(chip / "name") == "rpi_volt":
                alarm = _number(chip / "in0_lcrit_alarm")
                return None if alarm is None else alarm != 0
        return None

    def _count_events(self) -> tuple[list[str], bool]:
        """What a Jetson has counted since the last call and throttled for; whether it counts at all."""
        reasons, known = [], False
        for chip in sorted((self._sysfs / "class/hwmon").glob("hwmon*")):
            if not _text(chip / "name").startswith("soctherm"):
                continue
            for path in sorted(chip.glob("oc*_event_cnt")):
                event, count = path.name.split("_")[0], _number(path)
                if count is None or _number(chip / f"{event}_throt_en") == 0:
                    continue
                known = True
                if count > self._events.get(path, count):
                    reasons.append(_OVER_CURRENT.get(event, "over-current"))
                self._events[path] = count
        return list(dict.fromkeys(reasons)), known

    def _cooling(self) -> bool | None:
        """Whether the kernel slows the processor down; None if it cannot."""
        states = [
            _number(device / "cur_state")
            for device in sorted((self._sysfs / "class/thermal").glob("cooling_device*"))
            if _CPU_COOLING.match(_text(device / "type"))
        ]
        known = [state for state in states if state is not None]
        return any(state > 0 for state in known) if known else None


def _parse_throttled(answer: str) -> Throttling | None:
    """`throttled=0x50005` as the firmware prints it; None if it is something else."""
    match = re.fullmatch(r"\s*throttled=0x([0-9a-fA-F]{1,8})\s*", answer)
    if match is None:
        return None
    bits = int(match[1], 16)
    now = tuple(reason for bit, reason in _VCGENCMD_BITS.items() if bits >> bit & 1)
    since_boot = tuple(reason for bit, reason in _VCGENCMD_BITS.items() if bits >> (bit + _SINCE_BOOT) & 1)
    return Throttling(bool(now), now, "vcgencmd", UNDER_VOLTAGE in now, since_boot)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace").strip("\0 \t\r\n")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    content = _text(path)
    try:
        return int(content) if len(content) <= 20 else None
    except ValueError:
        return None
