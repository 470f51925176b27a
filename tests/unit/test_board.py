"""What boards say of themselves, on trees laid out as theirs."""

from pathlib import Path

import pytest
from boards import board, put

from agent.adapters.board import Board, Temperature, Throttling


def test_boards_have_names_and_boots(tmp_path: Path):
    trees = [board(name, tmp_path / name) for name in ("pi4", "pi5", "orin")]
    boards = [Board(tree.sysfs, tree.procfs) for tree in trees]

    assert [b.model() for b in boards] == [
        "Raspberry Pi 4 Model B Rev 1.4",
        "Raspberry Pi 5 Model B Rev 1.0",
        "NVIDIA Jetson Orin Nano Developer Kit",
    ]
    assert len({b.boot_id() for b in boards} - {None}) == 3


def test_a_pc_is_named_by_its_firmware(tmp_path: Path):
    put(tmp_path / "class/dmi/id/sys_vendor", "LENOVO")
    put(tmp_path / "class/dmi/id/product_name", "21AH")

    assert Board(tmp_path, tmp_path).model() == "LENOVO 21AH"


def test_nothing_there_is_nothing_known(tmp_path: Path):
    nowhere = Board(tmp_path, tmp_path)

    assert nowhere.model() is None
    assert nowhere.boot_id() is None
    assert nowhere.temperature() is None
    assert nowhere.throttling() == Throttling(None, (), "none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pi4", Temperature(48.199, "cpu-thermal")),
        ("pi5", Temperature(52.35, "cpu-thermal")),
        ("orin", Temperature(50.781, "tj-thermal")),
    ],
)
def test_the_hottest_of_the_processors_sensors_counts(tmp_path: Path, name: str, expected: Temperature):
    tree = board(name, tmp_path)

    assert Board(tree.sysfs, tree.procfs).temperature() == expected


@pytest.mark.parametrize(
    ("zone", "counts"),
    [
        *((zone, True) for zone in ("cpu-thermal", "cpu_thermal", "CPU-therm", "soc-thermal", "soc0-thermal")),
        *((zone, True) for zone in ("x86_pkg_temp", "bigcore0-thermal", "tj-thermal")),
        *((zone, False) for zone in ("gpu-thermal", "GPU-therm", "acpitz", "iwlwifi_1", "PMIC-Die", "Tboard_tegra")),
    ],
)
def test_other_sensors_are_not_the_processors(tmp_path: Path, zone: str, counts: bool):
    put(tmp_path / "class/thermal/thermal_zone0/type", zone)
    put(tmp_path / "class/thermal/thermal_zone0/temp", 40_500)

    assert Board(tmp_path, tmp_path).temperature() == (Temperature(40.5, zone) if counts else None)


@pytest.mark.parametrize("reading", ["", "hot", "-274000", "999999999999999999999", "\x00\x01"])
def test_a_sensor_that_is_off_or_broken_leaves_the_others(tmp_path: Path, reading: str):
    put(tmp_path / "class/thermal/thermal_zone0/type", "cpu0-thermal")
    put(tmp_path / "class/thermal/thermal_zone0/temp", reading)
    assert Board(tmp_path, tmp_path).temperature() is None

    put(tmp_path / "class/thermal/thermal_zone1/type", "cpu1-thermal")
    put(tmp_path / "class/thermal/thermal_zone1/temp", 30_000)
    assert Board(tmp_path, tmp_path).temperature() == Temperature(30.0, "cpu1-thermal")


def test_a_pi_that_is_well_is_so_by_its_firmware(tmp_path: Path):
    pi = board("pi5", tmp_path)

    assert Board(pi.sysfs, pi.procfs, pi.vcgencmd).throttling() == Throttling(False, (), "vcgencmd", False)


def test_a_pi_without_vcgencmd_knows_of_its_supply_alone(tmp_path: Path):
    pi = board("pi4", tmp_path)
    here = Board(pi.sysfs, pi.procfs)

    assert here.throttling() == Throttling(None, (), "hwmon", False)
    pi.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    assert here.throttling() == Throttling(True, ("under-voltage",), "hwmon", True)


def test_the_kernels_alarm_needs_no_vcgencmd(tmp_path: Path):
    pi = board("pi4", tmp_path)
    pi.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    asked: list[str] = []

    assert Board(pi.sysfs, pi.procfs, asked.append).throttling().source == "hwmon"
    assert asked == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("throttled=0x0\n", Throttling(False, (), "vcgencmd", False)),
        (
            "throttled=0x50005\n",
            Throttling(True, ("under-voltage", "throttled"), "vcgencmd", True, ("under-voltage", "throttled")),
        ),
        ("throttled=0x2", Throttling(True, ("frequency-capped",), "vcgencmd", False)),
        (
            "throttled=0x80008\n",
            Throttling(True, ("soft-temperature-limit",), "vcgencmd", False, ("soft-temperature-limit",)),
        ),
        ("throttled=0x20000\n", Throttling(False, (), "vcgencmd", False, ("frequency-capped",))),
        *(
            (bad, Throttling(None, (), "none"))
            for bad in ("", "throttled=", "throttled=0xzz", "VCHI initialization failed")
        ),
    ],
)
def test_what_the_firmware_prints(tmp_path: Path, answer: str, expected: Throttling):
    assert Board(tmp_path, tmp_path, lambda _: answer).throttling() == expected


def test_a_firmware_that_goes_away_leaves_the_kernel(tmp_path: Path):
    pi = board("pi4", tmp_path)
    answers = iter(["throttled=0x4\n", None])
    here = Board(pi.sysfs, pi.procfs, lambda _: next(answers))

    assert [here.throttling().source for _ in range(2)] == ["vcgencmd", "hwmon"]


def test_a_jetson_throttles_when_its_counters_grow(tmp_path: Path):
    orin = board("orin", tmp_path)
    here = Board(orin.sysfs, orin.procfs)

    assert here.throttling() == Throttling(False, (), "hwmon", False), "what was before is not now"
    orin.put("sys/class/hwmon/hwmon3/oc3_event_cnt", 28)
    assert here.throttling() == Throttling(True, ("over-current",), "hwmon", False)
    assert here.throttling().active is False
    orin.put("sys/class/hwmon/hwmon3/oc1_event_cnt", 1)
    assert here.throttling() == Throttling(True, ("under-voltage",), "hwmon", True)


def test_events_that_a_jetson_does_not_throttle_for_do_not_count(tmp_path: Path):
    orin = board("orin", tmp_path)
    here = Board(orin.sysfs, orin.procfs)
    orin.put("sys/class/hwmon/hwmon3/oc3_throt_en", 0)
    orin.put("sys/class/hwmon/hwmon3/oc3_event_cnt", 99)

    assert here.throttling().active is False


@pytest.mark.parametrize("kind", ["cpufreq-cpu0", "thermal-cpufreq-0", "Processor"])
def test_a_processor_that_the_kernel_cools_is_throttled(tmp_path: Path, kind: str):
    put(tmp_path / "class/thermal/cooling_device0/type", "pwm-fan")
    put(tmp_path / "class/thermal/cooling_device0/cur_state", 3)
    here = Board(tmp_path, tmp_path)
    assert here.throttling() == Throttling(None, (), "none"), "a fan that turns is no throttling"

    put(tmp_path / "class/thermal/cooling_device1/type", kind)
    put(tmp_path / "class/thermal/cooling_device1/cur_state", 0)
    assert here.throttling() == Throttling(False, (), "thermal")
    put(tmp_path / "class/thermal/cooling_device1/cur_state", 2)
    assert here.throttling() == Throttling(True, ("heat",), "thermal")
    put(tmp_path / "class/thermal/cooling_device1/cur_state", "?")
    assert here.throttling() == Throttling(None, (), "none")


def test_heat_and_supply_together_are_both_told(tmp_path: Path):
    pi = board("pi4", tmp_path)
    pi.put("sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    pi.put("sys/class/thermal/cooling_device0/type", "cpufreq-cpu0")
    pi.put("sys/class/thermal/cooling_device0/cur_state", 1)

    assert Board(pi.sysfs, pi.procfs).throttling() == Throttling(True, ("under-voltage", "heat"), "hwmon", True)


def test_an_alarm_that_vanishes_is_not_known(tmp_path: Path):
    pi = board("pi4", tmp_path)
    here = Board(pi.sysfs, pi.procfs)
    (pi.sysfs / "class/hwmon/hwmon1/in0_lcrit_alarm").unlink()

    assert here.throttling() == Throttling(None, (), "none")
