"""Power meters on trees that look like /sys."""

from pathlib import Path

import pytest
from fakes import FakeClock

from agent.adapters.host import HostMetrics
from agent.adapters.power import UNMEASURED, open_power_meter
from agent.records import PowerReading


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def rapl(sysfs: Path, zone: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    put(sysfs / "class/powercap" / zone, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj)
    return sysfs / "class/powercap" / zone


def test_nothing_there_is_nothing_measured(tmp_path: Path, clock: FakeClock):
    assert open_power_meter(clock, tmp_path).read() == UNMEASURED == PowerReading(None, "none", None)


def test_rapl_is_energy_over_time_summed_over_packages_not_their_parts(tmp_path: Path, clock: FakeClock):
    one, two = rapl(tmp_path, "intel-rapl:0", "package-0", 100), rapl(tmp_path, "intel-rapl:1", "package-1", 0)
    rapl(tmp_path, "intel-rapl:0:0", "core", 0)
    rapl(tmp_path, "intel-rapl:2", "psys", 0)
    meter = open_power_meter(clock, tmp_path)
    clock.now_ns += 2_000_000_000
    put(one, energy_uj=30_000_100)
    put(two, energy_uj=10_000_000)

    assert meter.read() == PowerReading(20.0, "rapl", None)
    clock.now_ns += 1_000_000_000
    assert meter.read() == PowerReading(0.0, "rapl", None)
    assert meter.read() == UNMEASURED, "no time has passed"


def test_a_rapl_counter_that_wraps_does_not_go_backwards(tmp_path: Path, clock: FakeClock):
    zone = rapl(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=9_999_999)
    meter = open_power_meter(clock, tmp_path)
    clock.now_ns += 1_000_000_000
    put(zone, energy_uj=1_000_000)

    assert meter.read() == PowerReading(2.0, "rapl", None)


def test_a_rapl_counter_that_cannot_be_read_leaves_the_boards_sensor(tmp_path: Path, clock: FakeClock):
    zone = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    (zone / "energy_uj").write_text("")
    put(tmp_path / "class/hwmon/hwmon0", name="ina219", power1_input=3_250_000)

    assert open_power_meter(clock, tmp_path).read() == PowerReading(3.25, "hwmon", None)


def test_a_sensor_that_vanishes_is_unmeasured(tmp_path: Path, clock: FakeClock):
    put(tmp_path / "class/hwmon/hwmon0", name="ina219", power1_input=3_250_000)
    meter = open_power_meter(clock, tmp_path)
    (tmp_path / "class/hwmon/hwmon0/power1_input").unlink()

    assert meter.read() == UNMEASURED


def test_of_several_rails_the_one_named_as_the_supply_counts(tmp_path: Path, clock: FakeClock):
    chip = tmp_path / "class/hwmon/hwmon1"
    put(chip, name="ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=1200)
    put(chip, in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=400)

    assert open_power_meter(clock, tmp_path).read() == PowerReading(6.0, "hwmon", None)


def test_several_rails_without_a_named_supply_are_not_added_up(tmp_path: Path, clock: FakeClock):
    chip = tmp_path / "class/hwmon/hwmon1"
    put(chip, name="ina3221", in1_input=5000, curr1_input=1200, in2_input=5000, curr2_input=400)

    assert open_power_meter(clock, tmp_path).read() == UNMEASURED


def test_a_graphics_card_is_not_the_board(tmp_path: Path, clock: FakeClock):
    put(tmp_path / "class/hwmon/hwmon0", name="amdgpu", power1_average=90_000_000)

    assert open_power_meter(clock, tmp_path).read() == UNMEASURED


def test_this_process_has_used_time_and_memory():
    host = HostMetrics()
    before = host.cpu_seconds()
    sum(range(2_000_000))

    assert host.cpu_seconds() >= before >= 0
    assert 2**20 < host.rss_bytes() < 2**36
