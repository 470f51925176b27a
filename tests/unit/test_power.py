"""Power meters on trees that look like /sys, as the boards have them."""

import os
import stat
import time
from pathlib import Path

import pytest
from boards import board, put
from fakes import FakeClock

from agent.adapters.host import HostMetrics
from agent.adapters.power import UNMEASURED, Vcgencmd, open_power_meter
from agent.core.settings import TelemetrySettings
from agent.ports import PowerMeter
from agent.records import PowerReading

SECOND_NS = 1_000_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Machine:
    """A made-up /sys and /proc, without a firmware to ask."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.sysfs = folder / "sys"
        self.procfs = folder / "proc"
        self.clock = clock
        self.firmware: dict[str, str] = {}

    def chip(self, number: int = 0, **files: object) -> Path:
        return self._put(self.sysfs / f"class/hwmon/hwmon{number}", files)

    def battery(self, name: str = "BAT0", **files: object) -> Path:
        return self._put(self.sysfs / "class/power_supply" / name, {"type": "Battery", "status": "Discharging"} | files)

    def rapl(self, zone: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
        files = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj}
        return self._put(self.sysfs / "class/powercap" / zone, files)

    def cores(self, busy: int, idle: int) -> None:
        put(self.procfs / "stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\nintr 12")

    def meter(self, power: str = "auto", **settings: float) -> PowerMeter:
        wanted = TelemetrySettings(power=power, **settings)
        return open_power_meter(self.clock, wanted, self.sysfs, self.procfs, self.firmware.get)

    def _put(self, folder: Path, files: dict[str, object]) -> Path:
        for name, value in files.items():
            put(folder / name, value)
        return folder


@pytest.fixture
def machine(tmp_path: Path, clock: FakeClock) -> Machine:
    return Machine(tmp_path, clock)


# boards


def test_an_orin_measures_its_input_and_not_its_parts(tmp_path: Path, clock: FakeClock):
    orin = board("orin", tmp_path)
    meter = open_power_meter(clock, None, orin.sysfs, orin.procfs, orin.vcgencmd)

    assert meter.read() == PowerReading(5.016, "ina3221", None)


def test_a_pi_5_measures_its_rails_and_says_what_it_does_not_see(tmp_path: Path, clock: FakeClock):
    pi = board("pi5", tmp_path)
    reading = open_power_meter(clock, None, pi.sysfs, pi.procfs, pi.vcgencmd).read()

    assert reading.source == "pmic"
    assert reading.watts == pytest.approx(10.800, abs=0.001), "twelve rails; EXT5V and BATT have no current"
    assert reading.error_pct == pytest.approx(100 * (0.1451 + 0.5879 / 10.8), abs=0.1)


def test_a_pi_4_has_only_a_model(tmp_path: Path, clock: FakeClock):
    pi = board("pi4", tmp_path)
    meter = open_power_meter(clock, None, pi.sysfs, pi.procfs, pi.vcgencmd)
    pi.put("proc/stat", "cpu  1250 0 500 9250 0 0 0 0 0 0")

    assert meter.read() == PowerReading(pytest.approx(2.7 + 0.25 * 3.7), "model", 30)


def test_a_chip_that_was_added_goes_before_the_model(tmp_path: Path, clock: FakeClock):
    pi = board("pi4", tmp_path)
    for name, value in {"name": "ina219", "curr1_input": 700, "in0_input": 7, "in1_input": 5100}.items():
        pi.put(f"sys/class/hwmon/hwmon2/{name}", value)
    pi.put("sys/class/hwmon/hwmon2/power1_input", 3_570_000)

    assert open_power_meter(clock, None, pi.sysfs, pi.procfs, pi.vcgencmd).read() == PowerReading(3.57, "ina219", None)


# which meter


def test_nothing_there_is_nothing_measured(machine: Machine):
    assert machine.meter().read() == UNMEASURED == PowerReading(None, "none", None)


def test_the_first_that_works_wins(machine: Machine, clock: FakeClock):
    chip, battery = machine.chip(name="ina226", power1_input=1_000_000), machine.battery(power_now=3_000_000)
    zone = machine.rapl("intel-rapl:0", "package-0", 0)
    machine.firmware["pmic_read_adc"] = (
        "VDD_CORE_A current(7)=2.0A\n VDD_CORE_A current(7)=2.00A\nVDD_CORE_V volt(15)=1.00V"
    )
    machine.cores(0, 0)
    sources = []
    for gone in (chip, None, battery, zone):
        meter = machine.meter(idle_watts=1, busy_watts=2)
        clock.now_ns += SECOND_NS
        sources.append(meter.read().source)
        if gone is None:
            machine.firmware.clear()
        else:
            for path in gone.iterdir():
                path.unlink()
    meter = machine.meter(idle_watts=1, busy_watts=2)
    machine.cores(1, 1)
    sources.append(meter.read().source)

    assert sources == ["ina226", "pmic", "battery", "rapl", "model"]


@pytest.mark.parametrize(
    ("power", "source"),
    [("hwmon", "hwmon"), ("battery", "battery"), ("rapl", "rapl"), ("none", "none"), ("pmic", "none")],
)
def test_the_configured_one_is_used_and_no_other(machine: Machine, clock: FakeClock, power: str, source: str):
    machine.chip(name="ltc2945", power1_input=1_000_000)
    machine.battery(power_now=3_000_000)
    machine.rapl("intel-rapl:0", "package-0", 0)
    meter = machine.meter(power)
    clock.now_ns += SECOND_NS

    assert meter.read().source == source


def test_called_with_a_clock_alone_it_looks_at_this_machine(clock: FakeClock):
    assert isinstance(open_power_meter(clock).read(), PowerReading)


# sensors of the board


def test_of_several_rails_the_one_named_as_the_supply_counts(machine: Machine):
    chip = machine.chip(1, name="ina3221", in1_label="POM_5V_IN", in1_input=5000, curr1_input=1200)
    machine.chip(1, in2_label="POM_5V_GPU", in2_input=5000, curr2_input=400)

    meter = machine.meter()
    assert meter.read() == PowerReading(6.0, "ina3221", None)
    put(chip / "curr1_input", 600)
    assert meter.read() == PowerReading(3.0, "ina3221", None)


def test_several_rails_without_a_named_supply_are_not_added_up(machine: Machine):
    machine.chip(1, name="ina3221", in1_label="VDD_GPU_SOC", in1_input=5000, curr1_input=1200)
    machine.chip(1, in2_label="VDD_CPU_CV", in2_input=5000, curr2_input=400)
    machine.chip(1, in3_label="VIN_SYS_5V0", in3_input=5000, curr3_input=900)

    assert machine.meter().read() == UNMEASURED


def test_a_channel_that_is_switched_off_does_not_hide_the_others(machine: Machine):
    machine.chip(name="ina3221", in1_input=5000, curr1_input=1200, in2_input="", curr2_input="")

    assert machine.meter().read() == PowerReading(6.0, "ina3221", None)


def test_a_chip_that_counts_energy_gives_the_mean(machine: Machine, clock: FakeClock):
    chip = machine.chip(name="ltc2947", energy1_input=1_000_000, power1_input=99_000_000)
    meter = machine.meter()
    clock.now_ns += 2 * SECOND_NS
    put(chip / "energy1_input", 9_000_000)

    assert meter.read() == PowerReading(4.0, "hwmon", None)
    assert meter.read() == UNMEASURED, "no time has passed"
    clock.now_ns += SECOND_NS
    put(chip / "energy1_input", 500)
    assert meter.read() == UNMEASURED, "the counter began anew"
    clock.now_ns += SECOND_NS
    put(chip / "energy1_input", 1_000_500)
    assert meter.read() == PowerReading(1.0, "hwmon", None)


def test_a_graphics_card_is_not_the_board(machine: Machine):
    machine.chip(name="amdgpu", power1_average=90_000_000)

    assert machine.meter().read() == UNMEASURED


@pytest.mark.parametrize("content", [b"", b"n/a\n", b"\xff\xfe\x00", b"9" * 5000, b"1.5\n"])
def test_garbage_is_unmeasured(machine: Machine, content: bytes):
    chip = machine.chip(name="ina219", power1_input=3_250_000)
    battery = machine.battery(power_now=1, current_now=1, voltage_now=1)
    zone = machine.rapl("intel-rapl:0", "package-0", 0)
    machine.cores(1, 1)
    meters = [machine.meter(kind, idle_watts=1, busy_watts=2) for kind in ("hwmon", "battery", "rapl", "model")]
    for path in (chip / "power1_input", zone / "energy_uj", machine.procfs / "stat"):
        path.write_bytes(content)
    for name in ("power_now", "current_now", "voltage_now"):
        (battery / name).write_bytes(content)

    assert [meter.read() for meter in meters] == [UNMEASURED] * 4
    assert machine.meter(idle_watts=1, busy_watts=2).read() == UNMEASURED
    (chip / "name").write_bytes(content)
    assert machine.meter("hwmon").read() == UNMEASURED


def test_what_vanishes_is_unmeasured_until_it_is_back(machine: Machine):
    chip = machine.chip(name="ina219", power1_input=3_250_000)
    meter = machine.meter()
    (chip / "power1_input").unlink()

    assert meter.read() == UNMEASURED
    put(chip / "power1_input", 2_000_000)
    assert meter.read() == PowerReading(2.0, "ina219", None)


# firmware


def test_a_firmware_that_stops_answering_is_unmeasured(machine: Machine):
    machine.firmware["pmic_read_adc"] = (
        "VDD_CORE_A current(7)=2.000A\nVDD_CORE_V volt(15)=1.500V\nNO_VOLT_A current(9)=9.0A\n"
    )
    meter = machine.meter()

    assert meter.read() == PowerReading(3.0, "pmic", pytest.approx(100 * (0.1451 + 0.5879 / 3), abs=0.1))
    for answer in (
        "",
        'error=1 error_msg="Command not registered"',
        "VDD_CORE_A current(7)=naA\nVDD_CORE_V volt(15)=1.5V",
    ):
        machine.firmware["pmic_read_adc"] = answer
        assert meter.read() == UNMEASURED
    machine.firmware.clear()
    assert meter.read() == UNMEASURED


def program(folder: Path, script: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)
    return str(path)


def test_vcgencmd_is_found_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program(tmp_path, 'test "$1" = get_throttled && echo throttled=0x0')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    vcgencmd = Vcgencmd()

    assert vcgencmd("get_throttled") == "throttled=0x0\n"
    assert vcgencmd("other") is None, "it failed"
    (tmp_path / "vcgencmd").unlink()
    assert vcgencmd("get_throttled") is None, "it is gone"


def test_no_vcgencmd_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert Vcgencmd()("get_throttled") is None


def test_a_program_in_the_current_folder_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program(tmp_path, "echo throttled=0x0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert Vcgencmd()("get_throttled") is None
    monkeypatch.setenv("PATH", ".")
    assert Vcgencmd()("get_throttled") is None


def test_a_vcgencmd_that_hangs_is_given_up(tmp_path: Path):
    vcgencmd = Vcgencmd(program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    began = time.monotonic()

    assert vcgencmd("get_throttled") is None
    assert time.monotonic() - began < 5
    pid = int((tmp_path / "pid").read_text())
    program(tmp_path, "echo throttled=0x1")
    while (answer := vcgencmd("get_throttled")) is None:
        assert time.monotonic() - began < 5
    assert answer == "throttled=0x1\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# batteries


def test_a_battery_counts_while_it_is_discharging(machine: Machine):
    battery = machine.battery(power_now=7_500_000)
    meter = machine.meter()

    assert meter.read() == PowerReading(7.5, "battery", None)
    put(battery / "status", "Charging")
    assert meter.read() == UNMEASURED
    put(battery / "status", "Discharging")
    assert meter.read() == PowerReading(7.5, "battery", None)


def test_batteries_are_added_up_by_current_and_voltage_if_need_be(machine: Machine):
    machine.battery("BAT0", current_now=-1_000_000, voltage_now=4_000_000)
    machine.battery("BAT1", power_now=2_000_000)
    machine.battery("mouse", scope="Device", power_now=500_000)
    machine.battery("AC", type="Mains")

    assert machine.meter().read() == PowerReading(6.0, "battery", None)


def test_a_full_battery_leaves_the_meter_after_it(machine: Machine, clock: FakeClock):
    machine.battery(status="Full", power_now=0)
    machine.rapl("intel-rapl:0", "package-0", 0)
    meter = machine.meter()
    clock.now_ns += SECOND_NS

    assert meter.read().source == "rapl"
    assert machine.meter("battery").read() == UNMEASURED, "as configured: it may be discharging later"


# processors


def test_rapl_is_energy_over_time_summed_over_packages_not_their_parts(machine: Machine, clock: FakeClock):
    one, two = machine.rapl("intel-rapl:0", "package-0", 100), machine.rapl("intel-rapl:1", "package-1", 0)
    machine.rapl("intel-rapl:0:0", "core", 0)
    machine.rapl("intel-rapl:2", "psys", 0)
    meter = machine.meter()
    clock.now_ns += 2 * SECOND_NS
    put(one / "energy_uj", 30_000_100)
    put(two / "energy_uj", 10_000_000)

    assert meter.read() == PowerReading(20.0, "rapl", None)
    clock.now_ns += SECOND_NS
    assert meter.read() == PowerReading(0.0, "rapl", None)
    assert meter.read() == UNMEASURED, "no time has passed"


def test_a_rapl_counter_that_wraps_does_not_go_backwards(machine: Machine, clock: FakeClock):
    zone = machine.rapl("intel-rapl:0", "package-0", 9_000_000, range_uj=9_999_999)
    meter = machine.meter()
    clock.now_ns += SECOND_NS
    put(zone / "energy_uj", 1_000_000)

    assert meter.read() == PowerReading(2.0, "rapl", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_rapl_counter_that_only_root_may_read_is_no_meter(machine: Machine):
    (machine.rapl("intel-rapl:0", "package-0", 0) / "energy_uj").chmod(0)

    assert machine.meter().read() == UNMEASURED


# model


def test_a_model_follows_the_busy_share_between_two_reads(machine: Machine):
    machine.cores(100, 900)
    meter = machine.meter("model", idle_watts=2, busy_watts=6)

    assert meter.read() == UNMEASURED, "no time has passed"
    machine.cores(125, 975)
    assert meter.read() == PowerReading(3.0, "model", 20)
    machine.cores(225, 975)
    assert meter.read() == PowerReading(6.0, "model", 20)
    machine.cores(225, 1075)
    assert meter.read() == PowerReading(2.0, "model", 20)


def test_a_board_that_is_not_in_the_table_has_no_model(machine: Machine):
    machine.cores(1, 1)
    put(machine.procfs / "device-tree/model", "Raspberry Pi 3 Model B Rev 1.2\0")

    assert machine.meter("model").read() == UNMEASURED
    assert machine.meter("model", idle_watts=2).read() == UNMEASURED, "half of it is configured"


def test_a_figure_that_is_configured_goes_before_the_tables(tmp_path: Path, clock: FakeClock):
    pi = board("pi4", tmp_path)
    settings = TelemetrySettings(power="model", idle_watts=3.0)
    meter = open_power_meter(clock, settings, pi.sysfs, pi.procfs, pi.vcgencmd)
    pi.put("proc/stat", "cpu  1000 0 500 9500 0 0 0 0 0 0")

    assert meter.read() == PowerReading(3.0, "model", 30)


def test_a_model_without_proc_stat_is_none(machine: Machine):
    assert machine.meter("model", idle_watts=1, busy_watts=2).read() == UNMEASURED


# this process


def test_this_process_has_used_time_and_memory():
    host = HostMetrics()
    before = host.cpu_seconds()
    sum(range(2_000_000))

    assert host.cpu_seconds() >= before >= 0
    assert 2**20 < host.rss_bytes() < 2**36
    assert host.threads() >= 1


def test_an_open_file_is_counted(tmp_path: Path):
    host = HostMetrics()
    before = host.open_files()
    assert before is not None
    with (tmp_path / "file").open("w"):
        assert host.open_files() == before + 1
    assert host.open_files() == before


def test_what_was_written_and_deleted_before_it_reached_the_disk_does_not_count(tmp_path: Path):
    put(tmp_path / "self/io", "rchar: 1\nwchar: 9000\nwrite_bytes: 8192\ncancelled_write_bytes: 4096")
    assert HostMetrics(tmp_path).disk_bytes_written() == 4096
    put(tmp_path / "self/io", "write_bytes: 10\ncancelled_write_bytes: 4096")
    assert HostMetrics(tmp_path).disk_bytes_written() == 0


@pytest.mark.parametrize("content", ["", "write_bytes: many", "write_bytes: 1"])
def test_disk_writes_that_cannot_be_read_are_not_known(tmp_path: Path, content: str):
    put(tmp_path / "self/io", content)

    assert HostMetrics(tmp_path).disk_bytes_written() is None
    assert HostMetrics(tmp_path / "none").disk_bytes_written() is None
    assert HostMetrics(tmp_path / "none").open_files() is None
