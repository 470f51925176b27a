"""The unit files, by systemd's own tools: accepted without a word, and confined as far as was decided.

What they do on a board is proven by `sandbox.py`, in the tests of a fleet.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
AGENT, WORKER = "har-agent.service", "har-agent-cloud-worker@.service"
UNITS = (AGENT, WORKER)
DROP_INS = sorted(path.name for path in (SYSTEMD / "drop-ins").glob("*.conf"))
MOST_EXPOSURE = 15
"""1.5 of 10, as systemd-analyze counts its threshold."""
WITH_DROP_INS = {"hotplug.conf": 15, "power.conf": 15, "no-user-namespaces.conf": 15, "clock.conf": 17}
"""What each takes back. The clock's is over the threshold of the unit, which is why it is none of it."""
SERIAL = ("ttyUSB", "ttyACM", "ttyAMA", "ttyS", "ttyTHS", "rfcomm", "pts")
"""Kinds of serial port that the documentation names, and pseudo terminals."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=30)


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The root of a board that has the units, and as much else as they name."""
    for name in ("opt/har-agent/current/bin/har-agent", "bin/sh"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for target in ("sysinit", "basic", "shutdown", "network", "multi-user"):
        (units / f"{target}.target").write_text("[Unit]\n")
    for unit in UNITS:
        shutil.copy(SYSTEMD / unit, units)
    (units / f"{AGENT}.d").mkdir()
    return tmp_path


def add(board: Path, drop_in: str) -> None:
    shutil.copy(SYSTEMD / "drop-ins" / drop_in, board / f"etc/systemd/system/{AGENT}.d")


def verify(board: Path, unit: str) -> str:
    """What systemd has to say of a unit. Its exit status alone hides unknown settings."""
    done = analyze("verify", f"--root={board}", "--man=no", unit.replace("@.", "@eu."))
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield name, value


def values(unit: str, name: str) -> list[str]:
    return [value for key, value in settings((SYSTEMD / unit).read_text()) if key == name]


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_of_a_unit(board: Path, unit: str) -> None:
    assert verify(board, unit) == ""


@needs_systemd
def test_systemd_would_say_so_of_a_setting_that_it_does_not_know(board: Path) -> None:
    (board / f"etc/systemd/system/{AGENT}.d/wrong.conf").write_text("[Service]\nProtectEverything=yes\n")

    assert "ProtectEverything" in verify(board, AGENT)


@needs_systemd
@pytest.mark.parametrize("drop_in", DROP_INS)
def test_systemd_has_nothing_to_say_of_a_drop_in(board: Path, drop_in: str) -> None:
    add(board, drop_in)

    assert verify(board, AGENT) == ""


@needs_systemd
def test_the_drop_ins_go_together(board: Path) -> None:
    for drop_in in DROP_INS:
        add(board, drop_in)

    assert verify(board, AGENT) == ""


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_confined(unit: str) -> None:
    done = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(SYSTEMD / unit)
    )  # fmt: skip

    assert done.returncode == 0, done.stdout


@needs_systemd
@pytest.mark.parametrize("drop_in", DROP_INS)
def test_a_drop_in_takes_back_no_more_than_it_says(board: Path, drop_in: str) -> None:
    add(board, drop_in)

    done = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={WITH_DROP_INS[drop_in]}", f"--root={board}", AGENT
    )  # fmt: skip

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", SERIAL)
def test_a_kind_of_serial_port_is_admitted(kind: str) -> None:
    assert f"char-{kind} rw" in values(AGENT, "DeviceAllow")


def test_no_other_device_is_admitted() -> None:
    assert len(values(AGENT, "DeviceAllow")) == len(SERIAL)
    assert values(AGENT, "DevicePolicy") == ["closed"]
    assert values(WORKER, "PrivateDevices") == ["yes"]


def test_the_agent_is_a_lasting_user_and_a_worker_is_none() -> None:
    # A lasting user: ports are opened by group, and the same user runs the commands by hand.
    assert values(AGENT, "User") == ["har-agent"]
    assert values(AGENT, "DynamicUser") == []
    # The groups are the user's, not the unit's: a group that a board lacks would keep the service from starting.
    assert values(AGENT, "SupplementaryGroups") == []
    assert values(WORKER, "DynamicUser") == ["yes"]


def test_the_user_is_declared_with_the_group_of_serial_ports() -> None:
    lines = [line.split() for line in (SYSTEMD / "sysusers.d/har-agent.conf").read_text().splitlines()]

    assert ["m", "har-agent", "dialout"] in lines
    assert [line[:2] for line in lines if line and line[0] == "u"] == [["u", "har-agent"]]


def test_a_worker_keeps_nothing_and_has_nothing_to_read_again() -> None:
    # SIGHUP would end it.
    for name in ("StateDirectory", "RuntimeDirectory", "CacheDirectory", "ExecReload", "ReadWritePaths"):
        assert values(WORKER, name) == []
    assert values(WORKER, "ProtectSystem") == ["strict"]


@pytest.mark.parametrize("unit", UNITS)
def test_it_never_gives_up_but_for_what_cannot_get_better(unit: str) -> None:
    assert values(unit, "Restart") == ["always"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert "78" in values(unit, "RestartPreventExitStatus")[0].split()


@pytest.mark.parametrize("unit", UNITS)
def test_onnx_runtime_reports_to_nobody(unit: str) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in values(unit, "Environment")


def test_a_credential_that_is_not_there_keeps_nothing_from_starting() -> None:
    # One that is named with an absolute path does: status 243.
    for unit in UNITS:
        assert all(re.fullmatch(r"[a-z-]+", value) for value in values(unit, "LoadCredential"))


def test_what_both_units_withhold_is_the_same() -> None:
    own = {
        "Description", "ExecStart", "ExecReload", "User", "Group", "DynamicUser", "StateDirectory",
        "StateDirectoryMode", "RuntimeDirectory", "RuntimeDirectoryPreserve", "MemoryMax", "TasksMax", "LimitNOFILE",
        "CPUWeight", "DeviceAllow", "PrivateDevices", "NoExecPaths", "ReadOnlyPaths", "Wants", "After",
    }  # fmt: skip
    agent, worker = (
        [(k, v) for k, v in settings((SYSTEMD / unit).read_text()) if k not in own and not k.startswith("[")]
        for unit in UNITS
    )

    assert sorted(agent) == sorted(worker)


def test_the_drivers_of_usb_adapters_are_there_before_their_devices_are_looked_up() -> None:
    drivers = "modprobe@usbserial.service modprobe@cdc_acm.service"

    assert values("har-agent.service", "Wants") == [drivers]
    assert drivers in values("har-agent.service", "After")


def test_every_setting_that_is_taken_back_is_documented() -> None:
    page = (ROOT / "docs/reference/systemd.md").read_text()

    assert [name for name in DROP_INS if name not in page] == []
    assert [kind for kind in SERIAL if kind not in page] == []
