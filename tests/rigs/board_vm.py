"""Rig C: the whole service on an arm64 board that is emulated in full, from bare Debian to power cut.

    .venv/bin/python tests/rigs/board_vm.py [--suite bookworm|trixie] [--json docs/results/board_vm.json]

One core and 512 MB under a kernel and a systemd of its own: what rig B cannot show, since the limits of a unit, its
devices, USB and power are the kernel's. In order, on one disk, each step asserted and printed with its figure:

1. bare Debian boots; the role installs a signed release by ssh; the agent reads a sensor on USB and labels
2. what confines the service is in force: memory, tasks, rights, system calls, devices; size and memory of it
3. the sensor is unplugged and plugged in again
4. the state's disk is full, and has room again
5. cold boot to the first label
6. power cut while the broker is away; what was on the disk arrives; the clock was wrong meanwhile; a sensor that is
   plugged in for the first time after the start is read
7. exit 78 stays down; the disks are whole; the model computes what it should on other processors

On demand, not in CI: some minutes, and a few more the first time, which makes the image. Needs `make test`'s set-up
and root, installs what it lacks with apt-get, and keeps its image in ${RIG_CACHE:-~/.cache/har-edge-agent}/vm-<suite>.
It talks to loopback alone. Times are those of an emulated processor: a real board is faster.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("", "deploy"))

from board_vm_image import HOST, STATE_DIR, SUITES, image, install_tools, run, say
from board_vm_machine import MEMORY_MB, PORT, Board, UsbSensor, wait_for
from live import Listener
from mosquitto import PERSISTENT, Authority, Mosquitto, free_port
from releases import build_release, keypair

from agent import __version__

ROOT = Path(__file__).resolve().parents[2]
NAME = "board"
DEVICE = "imu"
PYTHONS = {"bookworm": "cp311", "trixie": "cp313"}
PI_4, PI_3, PI_5 = "cortex-a72", "cortex-a53", "cortex-a76"
NO_CLOCK = "2020-01-01T00:00:00"
"""What a board without a battery believes at its start, or less."""
CERTIFICATES_DAYS = -1, 30
PATIENCE_S = 300.0
"""An emulated processor on a busy machine takes its time; nothing here is decided by how much."""

# Figures to reach, of issue 4: the installed size, and the memory of the service.
MOST_INSTALLED_MB = 160
MOST_RSS_MB = 100
MOST_EXPOSED = 1.5

_TLS = """
listener {port} 127.0.0.1
cafile {ca}
certfile {certificate}
keyfile {key}
require_certificate true
"""
# Run on the board. The agent alone may read its outbox: this looks at a copy, which SQLite may repair.
_STORED = f"""
cp {STATE_DIR}/outbox.db {STATE_DIR}/outbox.db-wal /run
python3 - <<'END'
import json, sqlite3
db = sqlite3.connect("/run/outbox.db")
print(json.dumps([json.loads(p)["id"] for p, in db.execute("SELECT payload FROM messages ORDER BY key")]))
END
"""


class Rig:
    """A board on this desk: its sensor, the broker that it talks to, and who subscribes there."""

    def __init__(self, suite: str, folder: Path, ending: ExitStack) -> None:
        self.suite = suite
        self.folder = folder
        self.figures: list[dict[str, Any]] = []
        self.authority = Authority(folder)
        self.mqtts_port = free_port()
        certificate, key = self.authority.issue("broker", HOST, CERTIFICATES_DAYS)
        tls = _TLS.format(port=self.mqtts_port, ca=self.authority.certificate, certificate=certificate, key=key)
        self.broker = Mosquitto(folder, PERSISTENT.format(folder=folder) + tls)
        ending.callback(self.broker.kill)
        self.board = Board(image(suite), folder, free_port())
        ending.callback(self.board.power_cut)
        self.sensor = UsbSensor(self.board.usb)
        ending.callback(self.sensor.close)
        self.listener = Listener(self.broker.port)
        ending.callback(self.listener.close)

    def figure(self, name: str, value: float | str, unit: str = "") -> None:
        """Note and print what was measured."""
        value = round(value, 1) if isinstance(value, float) else value
        self.figures.append({"name": name, "value": value, "unit": unit})
        say(f"    {name}: {value} {unit}".rstrip())

    def labels(self, n: int = 1, timeout_s: float = PATIENCE_S) -> float:
        """Wait for `n` predictions that are new and of now, and return the seconds that it took."""
        began, before = time.monotonic(), self.live()
        wait_for(lambda: self.live() >= before + n, timeout_s, f"{n} labels\n{self.agent_said()}")
        return time.monotonic() - began

    def live(self) -> int:
        """How many predictions came as they were made."""
        return sum(not historical for _, _, historical in self.listener.arrivals)

    def status(self) -> dict[str, Any]:
        """What the agent says of itself on the board; empty before it does."""
        said = self.board.ssh("cat /run/har-agent/status.json", check=False)
        return dict(json.loads(said)) if said else {}

    def reasons(self) -> dict[str, str]:
        """Codes and words of its health, as the board has them."""
        return {reason["code"]: reason["text"] for reason in self.status().get("health", {}).get("reasons", ())}

    def told(self, code: str, words: str = "") -> float:
        """Wait until its health on the board gives this reason in these words; return the seconds that it took."""
        began = time.monotonic()
        wait_for(lambda: words in self.reasons().get(code, "\0"), PATIENCE_S, f"{code}: {words}", every_s=2)
        return time.monotonic() - began

    def heard(self, code: str, present: bool = True) -> float:
        """Wait until the broker has, or has no more, this reason of its health; return the seconds that it took."""
        began = time.monotonic()

        def has() -> bool:
            said = self.listener.state(f"har/{NAME}/health") or {"reasons": [{"code": code}] if not present else []}
            return any(reason["code"] == code for reason in said["reasons"]) is present

        wait_for(has, PATIENCE_S, f"{code} to be {'told' if present else 'over'}\n{self.agent_said()}")
        return time.monotonic() - began

    def properties(self, *names: str) -> dict[str, str]:
        """Properties of the service, as systemd has them."""
        said = self.board.ssh(f"systemctl show har-agent --property={','.join(names)}")
        return dict(line.split("=", 1) for line in said.splitlines())

    def agent_said(self) -> str:
        """The end of the agent's log, as far as the board can be asked for it."""
        try:
            return self.board.ssh("journalctl -u har-agent -o cat --no-pager -n 15", check=False, timeout_s=60)
        except subprocess.TimeoutExpired:
            return self.board.said()


def install(rig: Rig) -> None:
    """Bare Debian, and then the role by ssh."""
    board = rig.board
    board.power_on(PI_4)
    rig.sensor.plug()
    board.wait_for_ssh()
    rig.figure("power on to ssh, first boot", time.monotonic() - board.powered_on, "s")
    rig.broker.start()

    tag = f"{PYTHONS[rig.suite]}-aarch64"
    key, public_key = keypair(rig.folder, "release")
    release = build_release(rig.folder / "release", __version__, [tag], key)
    report = play(rig, release, public_key)
    assert report["outcome"] == "done", report
    rig.labels(3)

    said = json.loads(board.ssh("/usr/local/bin/har-agent version --json"))
    wanted = json.loads((release / "release.json").read_text())["release"]
    assert said["release"]["release"] == wanted == rig.status()["release"], said
    assert said["machine"] == "aarch64", said


def play(rig: Rig, release: Path, public_key: Path) -> dict[str, Any]:
    """Run the role on the board, tell how it goes, and return what it reports of it."""
    certificate, key = rig.authority.issue("client", NAME, CERTIFICATES_DAYS)
    config = {
        "agent": {"name": NAME},
        "serial": {DEVICE: {"port": PORT, "format": "csv", "time": "ms"}},
        "broker": {
            "rig": {
                "url": f"mqtts://{HOST}:{rig.mqtts_port}",
                "ca_file": "ca.crt",
                "cert_file": "client.crt",
                "key_file": "client.key",
            }
        },
        "mqtt": {"keepalive_s": 10, "retry_longest_s": 5.0},
        "outbox": {"durability": "power-loss"},
    }
    settings = {
        "ansible_host": "127.0.0.1",
        "ansible_port": rig.board.ssh_port,
        "ansible_user": "root",
        "ansible_ssh_common_args": " ".join(rig.board.ssh_options[2:]),
        "har_agent_release_dir": str(release),
        "har_agent_release_key": str(public_key),
        "har_agent_config": config,
        "har_agent_credentials": {
            "ca.crt": {"src": str(rig.authority.certificate)},
            "client.crt": {"src": str(certificate)},
            "client.key": {"src": str(key)},
        },
        "har_agent_wait_healthy_s": PATIENCE_S,
        # Nothing here keeps the board's clock right, and it says so after two minutes.
    }
    inventory = rig.folder / "inventory.json"
    inventory.write_text(json.dumps({"boards": {"hosts": {NAME: settings}}, "brokers": {"hosts": {}}}))
    report = rig.folder / "report.json"
    env = {
        **os.environ,
        "HAR_ROLLOUT_REPORT": str(report),
        "ANSIBLE_HOME": str(rig.folder / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(rig.folder / "ssh"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_TIMEOUT": "60",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "playbooks/site.yml"]
    began, said = time.monotonic(), []
    with subprocess.Popen(
        command, cwd=ROOT / "deploy/ansible", env=env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if task := re.match(r"TASK \[(?:har_agent : )?(.*)\]", line):
                say(f"    {time.monotonic() - began:4.0f} s  {task[1]}")
    assert process.returncode == 0, "".join(said)
    rig.figure("the role on a bare board", time.monotonic() - began, "s")
    return dict(json.loads(report.read_text())["boards"][NAME])


def confinement(rig: Rig) -> None:
    """What the unit asks for is what this kernel enforces."""
    board = rig.board
    limits = rig.properties("MainPID", "ControlGroup", "MemoryMax", "MemoryHigh", "TasksMax")
    group = f"/sys/fs/cgroup{limits['ControlGroup']}"
    enforced = board.ssh(f"cd {group} && cat memory.max memory.high pids.max memory.current").split()
    wanted = [limits[name].replace("infinity", "max") for name in ("MemoryMax", "MemoryHigh", "TasksMax")]
    assert enforced[:3] == wanted, (enforced, wanted)
    rig.figure("memory.max of the service", int(enforced[0]) / 2**20, "MiB")
    rig.figure("memory.current of the service", int(enforced[3]) / 2**20, "MiB")
    # Somebody else under that limit takes more than it, and is killed; the agent is none the wiser.
    greedy = f"""b'x' * ({limits["MemoryMax"]} + (32 << 20))"""
    died = board.ssh(
        f"systemd-run --quiet --wait --property=MemoryMax={limits['MemoryMax']} --property=MemorySwapMax=0 "
        f'--unit=greedy python3 -c "{greedy}" || systemctl show greedy --property=Result --value'
    )
    assert died.strip() == "oom-kill", died
    rig.figure("a process that takes more than that", died.strip())
    # And somebody in its place, although root, does not get at the disk.
    denied = board.ssh(f"echo $$ >{group}/cgroup.procs; head -c 1 /dev/vda 2>&1 >/dev/null || true")
    assert "Operation not permitted" in denied, denied
    rig.figure("root in the service's control group reads a disk", denied.strip())

    process = status_of(board.ssh(f"cat /proc/{limits['MainPID']}/status"))
    assert process["NoNewPrivs"] == "1"
    assert process["Seccomp"] == "2"
    assert {int(process[cap], 16) for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}, process
    assert process["Uid"].split()[0] != "0"
    rss = int(process["VmRSS"].split()[0]) / 1024
    rig.figure("resident memory of the agent", rss, "MiB")
    assert rss <= MOST_RSS_MB, rss
    exposure = float(
        re.findall(r"exposure level for har-agent.service: ([0-9.]+)", board.ssh(
            "systemd-analyze security --no-pager har-agent.service", timeout_s=PATIENCE_S
        ))[0]
    )  # fmt: skip
    rig.figure("systemd-analyze security of the live unit", exposure)
    assert exposure <= MOST_EXPOSED

    installed = int(board.ssh("du -s --block-size=1 /opt/har-agent").split()[0]) / 1e6
    rig.figure("installed size, /opt/har-agent", installed, "MB")
    assert installed <= MOST_INSTALLED_MB, installed


def status_of(text: str) -> dict[str, str]:
    """The fields of a /proc/PID/status."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def unplugged(rig: Rig) -> None:
    """The sensor is pulled out for some seconds."""

    def gaps() -> int:
        return sum(rig.status()["telemetry"]["gaps"].values())

    before = gaps()
    was = rig.board.ssh(f"readlink -f {PORT}").strip()
    # Somebody else holds the old device, so that its name is not free when the sensor is back.
    rig.board.ssh(f"systemd-run --quiet --unit=holder -p Type=exec -p StandardInput=file:{was} sleep infinity")
    rig.sensor.unplug()
    rig.figure("sensor unplugged: health says so after", rig.heard("source_away"), "s")
    gone = rig.board.ssh(f"test ! -e {PORT} && echo gone", check=False).strip()
    assert gone == "gone", f"{PORT} is still there"
    rig.sensor.plug()
    rig.figure("sensor plugged in again: a label after", rig.labels(), "s")
    now = rig.board.ssh(f"readlink -f {PORT}; systemctl stop holder").strip()
    rig.figure("its device was, and is", f"{was}, {now}")
    assert was != now
    rig.heard("source_away", present=False)
    boot = rig.status()["boot"]
    wait_for(lambda: gaps() > before, PATIENCE_S, "the gap to be counted", every_s=2)
    rig.figure("gaps counted", json.dumps({why: n for why, n in rig.status()["telemetry"]["gaps"].items() if n}))
    assert rig.status()["boot"] == boot


def full_disk(rig: Rig) -> None:
    """Not a byte is free where the agent keeps its state."""
    rig.board.ssh(f"dd if=/dev/zero of={STATE_DIR}/filler bs=64k 2>/dev/null || sync")
    rig.broker.stop()
    rig.figure("state's disk full, broker away: health says so after", rig.told("outbox_degraded"), "s")
    rig.broker.start()
    rig.figure("labels go on, the first after", rig.labels(), "s")
    rig.heard("outbox_degraded")
    rig.labels(3)
    rig.board.ssh(f"rm {STATE_DIR}/filler")
    rig.figure("room again: health says so after", rig.heard("outbox_degraded", present=False), "s")
    nothing_missing(rig)


def cold_boot(rig: Rig) -> None:
    """Shut down in order, and power on: when does the first label come?"""
    board, before = rig.board, rig.status()["boot"]
    board.power_off()
    wait_for(lambda: rig.listener.state(f"har/{NAME}/status")["state"] == "offline", 30, "its word that it goes")
    nothing_missing(rig)
    rig.sensor.unplug()
    seen = len(rig.listener.arrivals)
    board.power_on(PI_4)
    rig.sensor.plug()
    rig.labels()
    at, name, _ = next(one for one in rig.listener.arrivals[seen:] if not one[1].startswith(before))
    rig.figure("cold boot: power on to the first label at the broker", at - board.powered_on, "s")
    board.wait_for_ssh()
    uptime, now = map(float, board.ssh("cut -d' ' -f1 /proc/uptime; date +%s.%N").split())
    first = rig.listener.predictions[name]
    made = datetime.fromisoformat(first["time"]).timestamp() + first["latency_ms"]["total"] / 1000
    rig.figure("cold boot: the same by the clock of its kernel, when it was made", made - (now - uptime), "s")
    took = board.ssh("systemd-analyze time | head -n 1").strip()
    rig.figure("cold boot: systemd says", took)
    monotonic = rig.properties("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    started, ready = (int(value) / 1e6 for value in monotonic.values())
    rig.figure("cold boot: the agent was started at", started, "s")
    rig.figure("cold boot: it was ready, with the first samples, at", ready, "s")


def power_cut(rig: Rig) -> None:
    """Power goes while the broker is away; the clock is wrong when it is back, and the sensor is plugged in later."""
    board = rig.board
    rig.labels(2)
    boot = rig.status()["boot"]
    rig.broker.stop()
    # What is seen last may not have reached the disk yet; what was seen at the look before has.
    looks: list[list[str]] = []

    def enough() -> bool:
        looks.append(json.loads(board.ssh(_STORED)))
        return len(looks) > 1 and len(set(looks[-2]) - rig.listener.ids()) >= 10

    wait_for(enough, PATIENCE_S, "predictions in the outbox", every_s=3)
    board.power_cut()
    rig.sensor.unplug()
    waiting = set(looks[-2]) - rig.listener.ids()
    rig.figure("power cut: predictions on the disk, and nowhere else", len(waiting))

    board.power_on(PI_3, clock=NO_CLOCK)
    rig.broker.start()
    board.wait_for_ssh()
    believed = int(board.ssh("date +%s"))
    rig.figure("what a board without a clock believes", f"{datetime.fromtimestamp(believed, UTC):%Y-%m-%d}")
    assert believed < time.time() + CERTIFICATES_DAYS[0] * 86400, "its clock is not wrong enough"
    rig.told("broker_away", "not valid yet")
    rig.figure("what it says of its broker then", rig.reasons()["broker_away"])
    assert not waiting & rig.listener.ids()
    board.ssh(f"date --set=@{time.time():.0f}")
    began = time.monotonic()
    wait_for(lambda: waiting <= rig.listener.ids(), PATIENCE_S, f"what was stored\n{rig.agent_said()}")
    rig.figure("clock set: all of them have arrived after", time.monotonic() - began, "s")
    assert all(rig.listener.predictions[name]["historical"] for name in waiting)
    nothing_missing(rig)

    assert rig.status()["boot"] != boot
    assert rig.status()["windows"] == 0
    assert "ttyUSB" not in board.ssh("ls /dev")
    rig.sensor.plug()
    rig.figure("a sensor that this board had not seen since it started: a label after", rig.labels(), "s")
    nothing_missing(rig)


def unusable_configuration(rig: Rig) -> None:
    """The service ends with 78, and nobody starts it again for nothing."""
    board, config = rig.board, "/etc/har-agent/config.toml"
    board.ssh(
        f"cp -p {config} /root/config.toml; echo 'nonsense = 1' >{config}; systemctl restart har-agent", check=False
    )
    time.sleep(12)  # longer than RestartSec
    left = rig.properties("ActiveState", "ExecMainStatus", "NRestarts", "Result")
    assert (left["ActiveState"], left["ExecMainStatus"], left["NRestarts"]) == ("failed", "78", "0"), left
    rig.figure("a configuration that cannot be used", f"exit {left['ExecMainStatus']}, stays down")
    board.ssh(f"mv /root/config.toml {config}; systemctl start har-agent")
    rig.labels()


def disks_and_processors(rig: Rig) -> None:
    """Nothing is broken on the disks, and every processor that boards have computes what it should."""
    board = rig.board
    as_agent = "setpriv --reuid=har-agent --regid=har-agent --init-groups --reset-env"
    verify = f"{as_agent} /usr/local/bin/har-agent models verify har-base"

    def golden(cpu: str) -> None:
        said = board.ssh(verify)
        assert "golden vectors are right" in said, said
        rig.figure(f"golden vectors on {cpu}", "right")

    golden(PI_3)
    board.power_off()
    flat = rig.folder / "root.raw"
    run("qemu-img", "convert", "-O", "raw", board.root_disk, flat)
    for disk in (flat, board.state_disk):
        run("e2fsck", "-f", "-n", disk)
    flat.unlink()
    rig.figure("file systems after all this", "clean")
    rig.sensor.unplug()
    board.power_on(PI_5)
    rig.sensor.plug()
    board.wait_for_ssh()
    golden(PI_5)
    rig.labels(2)
    nothing_missing(rig)


def nothing_missing(rig: Rig) -> None:
    """No number is missing at the subscriber, and what came twice said the same."""
    assert rig.listener.holes() == [], rig.listener.holes()
    assert rig.listener.differing() == []


STEPS: tuple[tuple[str, Callable[[Rig], None]], ...] = (
    ("the role installs a release on a bare Debian", install),
    ("what confines the service", confinement),
    ("the sensor is unplugged and plugged in again", unplugged),
    ("the state's disk is full", full_disk),
    ("cold boot", cold_boot),
    ("power cut while the broker is away; a wrong clock; a sensor that comes later", power_cut),
    ("a configuration that cannot be used", unusable_configuration),
    ("disks and processors", disks_and_processors),
)


def main() -> None:
    """Run all steps; raises with what was asserted, and the end of the board's console, if one fails."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    install_tools()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="har-board-vm-") as name, ExitStack() as ending:
        rig = Rig(given.suite, Path(name), ending)
        for title, step in STEPS:
            say(f"[{time.monotonic() - began:4.0f} s] {title}")
            try:
                step(rig)
            except BaseException:
                say(f"failed\n{rig.board.said()}\n{rig.agent_said()}")
                raise
        listener = rig.listener
        rig.figure("predictions that came in all", len(listener.ids()))
        rig.figure("of those, came again", listener.repeats())
        rig.figure("all of it took", time.monotonic() - began, "s")
    if given.json:
        qemu = run("qemu-system-aarch64", "--version").splitlines()[0]
        machine = {
            "emulator": qemu,
            "memory_mb": MEMORY_MB,
            "debian": given.suite,
            "host": platform.machine(),
            "host_cores": os.cpu_count(),
            "host_load": round(os.getloadavg()[2], 1),
        }
        given.json.write_text(json.dumps({"v": 1, "machine": machine, "figures": rig.figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
