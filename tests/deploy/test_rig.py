"""The rig itself: what boards are, and that nothing of them is left."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fleet as rig
import pytest
from fleet import Fleet

pytestmark = [pytest.mark.fleet, pytest.mark.usefixtures("boards_can_be_had")]


@pytest.fixture(scope="module")
def pair(boards_can_be_had: None) -> Iterator[Fleet]:
    with Fleet(2) as fleet:
        yield fleet


def traces(tag: str) -> list[str]:
    """Return what there is of a fleet on this machine: processes, mounts, namespaces, control groups, folders."""
    ps = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/mounts").read_text()
    found = [line for line in (ps + mounts).splitlines() if tag in line]
    for folder in ("/run/netns", "/var/tmp", "/sys/fs/cgroup"):
        found += [str(path) for path in Path(folder).rglob(f"*{tag}*")]
    return found


def test_a_board_is_a_small_machine_of_its_own(pair: Fleet, fact: Callable[[str], None]):
    one, two = pair.boards

    assert one.run("systemctl is-system-running").stdout.strip() == "running"
    assert one.run("hostname").stdout.strip() == "board1"
    assert one.run("cat /etc/machine-id").stdout != two.run("cat /etc/machine-id").stdout
    assert int(one.run("ps -e --no-headers | wc -l").stdout) < 20
    limits = [p.read_text().strip() for c in one._cgroups for p in c.glob("memory.limit_in_bytes")]
    limits += [p.read_text().strip() for c in one._cgroups for p in c.glob("memory.max")]
    assert limits == [str(rig.MEMORY)]
    assert one.run("pip --version", check=False).returncode != 0
    assert one.run("python3 -c 'import ensurepip'", check=False).returncode != 0
    one.power_cut()
    began = time.monotonic()
    one.boot()
    fact(f"a board boots in {time.monotonic() - began:.1f} s")


def test_the_hub_reaches_boards_by_ssh_and_nothing_else(pair: Fleet):
    one, two = pair.boards
    ssh = ["ssh", "-i", pair.folder / "key", "-o", f"UserKnownHostsFile={pair.folder / 'known_hosts'}",
           "-o", "ConnectTimeout=1"]  # fmt: skip

    def login(board: rig.Board) -> int:
        return pair.controller([*ssh, f"{rig.OPERATOR}@{board.address}", "sudo", "true"]).returncode

    assert [login(one), login(two)] == [0, 0]
    one.unplug_network()
    assert [login(one), login(two)] == [255, 0]
    one.plug_network()
    assert login(one) == 0
    assert pair.controller(["ip", "route", "get", "192.0.2.1"]).returncode != 0
    assert one.run("ip route get 192.0.2.1", check=False).returncode != 0


def test_a_sensor_plays_after_a_power_cut_too(pair: Fleet):
    one = pair.boards[0]
    one.sensor()
    listen = "until test -e /dev/serial-imu; do sleep .05; done; timeout 2 head -n 20 /dev/serial-imu"

    for _ in range(2):
        lines = one.run(listen).stdout.split()
        times = [int(line.split(",")[0]) for line in lines]
        assert {b - a for a, b in itertools.pairwise(times)} == {20}
        assert {len(line.split(",")) for line in lines} == {7}
        one.run("echo kept >/root/note")
        one.power_cut()
        assert one.leader == 0
        one.boot()
    assert one.read("/root/note") == "kept\n"


def test_a_board_can_have_the_wrong_time(pair: Fleet):
    one = pair.boards[0]

    one.shift_clock(3600)
    ahead = int(one.run("date +%s").stdout) - time.time()
    ahead_in_python = float(one.run("python3 -c 'import time; print(time.time())'").stdout) - time.time()
    one.shift_clock(0)

    assert 3595 < ahead < 3605
    assert 3595 < ahead_in_python < 3605
    assert abs(int(one.run("date +%s").stdout) - time.time()) < 5


def test_nothing_is_left_of_a_fleet_in_whatever_state(pair: Fleet):
    with Fleet(1) as other:
        board = other.boards[0]
        board.run("systemctl stop ssh; systemd-run --quiet sleep 1000")
        other.start(["sleep", "1000"])
        board.unplug_network()
        assert traces(other.tag)

    assert traces(other.tag) == []
    assert pair.boards[0].run("true").returncode == 0


@pytest.mark.parametrize("how", ["TERM", "KILL"])
def test_nothing_is_left_of_a_fleet_whose_process_was_killed(how: str):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from fleet import Fleet\n"
        "with Fleet(1) as fleet:\n    print(fleet.tag, flush=True)\n    time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner:
        tag = owner.stdout.readline().strip()
        subprocess.run(["kill", f"-{how}", str(owner.pid)], check=True)
    if how == "KILL":
        for stale in rig.leftovers():
            stale.down()

    assert traces(tag) == []
