"""`har-agent check` without connecting: what is looked at, how it is judged, and what it says to do."""

import fcntl
import json
import os
import pty
import socket
import tomllib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from boards import board, put
from fakes import FakeClock
from mosquitto import Authority, free_port
from typer.testing import CliRunner

from agent.adapters.clock import SystemClock
from agent.adapters.outbox import SqliteOutbox
from agent.app import compose
from agent.app.check import (
    ERROR,
    OK,
    WARNING,
    Finding,
    Places,
    check_board,
    check_broker,
    check_clock,
    check_cloud,
    check_hardware,
    check_model,
    check_mqtt_in,
    check_outbox,
    check_prometheus,
    check_runtime_dir,
    check_serial,
    check_state_dir,
    check_system,
    check_user,
    effective,
    effective_toml,
    read_config,
    running_agent,
)
from agent.app.check_connect import Heard, judge
from agent.cli import build
from agent.cli.check import view
from agent.config import Config, load, load_with_origins
from agent.core.settings import (
    AgentSettings,
    BrokerSettings,
    CloudSettings,
    InputSettings,
    ModelSettings,
    MqttInSettings,
    OutboxSettings,
    SerialSettings,
    TelemetrySettings,
    WindowSettings,
)
from agent.core.slots import RolledBack, SlotState, dump
from agent.records import BadFrame, Loss, Outgoing, SampleBatch

CLOCK = SystemClock()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HAR_AGENT_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A system in which there is nothing."""
    return Places(*(tmp_path / name for name in ("sys", "proc", "dev", "run")))


@pytest.fixture
def terminal() -> Iterator[str]:
    """A character device that may be opened."""
    master, slave = pty.openpty()
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def states(findings: object) -> list[tuple[str, str]]:
    return [(f.id, f.state) for f in findings]  # type: ignore[attr-defined]


def only(findings: object) -> Finding:
    (finding,) = findings  # type: ignore[misc]
    return finding


# --- configuration


def test_every_problem_of_the_configuration_is_a_finding(tmp_path: Path):
    loaded, findings = read_config(write(tmp_path, "[decision]\nsmothing_s = 1\n[window]\nhop = 0\n"))

    assert loaded is None
    assert states(findings) == [("configuration", ERROR)] * 2
    assert "config.toml:2: [decision] has no key smothing_s; did you mean smoothing_s?" in findings[0].text
    assert "config.toml:4: window.hop" in findings[1].text


@pytest.mark.parametrize("text", ["not toml", "[a\n"])
def test_a_file_that_is_no_toml_is_one_finding(tmp_path: Path, text: str):
    loaded, findings = read_config(write(tmp_path, text))

    assert loaded is None
    assert only(findings).state == ERROR


def test_no_source_is_an_error(tmp_path: Path):
    loaded, findings = read_config(write(tmp_path, "[window]\nhop = 64\n"))

    assert loaded is not None
    assert states(findings) == [("configuration", OK), ("configuration", ERROR)]
    assert findings[0].text.endswith("config.toml: 1 values are set")
    assert "no source" in findings[1].text


def test_what_is_printed_says_the_same_when_it_is_read(tmp_path: Path):
    text = """
        [serial."left \\"arm\\" \U0001f9be\\u007f"]
        port = "/dev/ttyUSB0"
        rate_hz = 50
        [serial.waist-07]
        acc_scale = 6.1e-05
        [broker.cloud]
        url = "mqtts://example.org"
        [mqtt_in]
        filter = "imu/{device}/samples"
        [commands]
        enabled = false
    """
    path = write(tmp_path, text)
    printed = effective_toml(load_with_origins(path, {}))

    assert load(write(tmp_path, printed), {}) == load_with_origins(write(tmp_path, text), {}).config


def test_every_value_is_printed_with_where_it_came_from(tmp_path: Path):
    path = write(tmp_path, "[window]\nhop = 8\n[serial.imu]\nport = '/dev/ttyUSB0'\n")
    loaded = load_with_origins(path, {"HAR_AGENT__DECISION__HOLD_S": "3"}, {"model.bundle": "other"})
    values = effective(loaded)

    assert values["window.hop"] == {"value": 8, "origin": f"{path}:2"}
    assert values["decision.hold_s"] == {"value": 3.0, "origin": "HAR_AGENT__DECISION__HOLD_S"}
    assert values["model.bundle"] == {"value": "other", "origin": "--model"}
    assert values["serial.imu.port"]["origin"] == f"{path}:4"
    assert values["serial.imu.rate_hz"] == {"value": None, "origin": "default"}
    assert values["broker.local.url"]["origin"] == "default"
    lines = [" ".join(line.split()) for line in effective_toml(loaded).splitlines()]
    assert f"hop = 8 # {path}:2" in lines
    assert "# rate_hz is not set # default" in lines


# --- serial


def test_a_port_that_suits_is_well(places: Places, terminal: str):
    config = Config(serial={"imu": SerialSettings(port=terminal, rate_hz=50)})

    assert states(check_serial(config, places)) == [("serial.imu", OK)]


def test_a_lasting_name_is_advised(places: Places, terminal: str):
    links = places.dev / "serial/by-id"
    links.mkdir(parents=True)
    (links / "usb-sensor").symlink_to(terminal)
    config = Config(serial={"imu": SerialSettings(port=terminal, rate_hz=50)})
    lasting = Config(serial={"imu": SerialSettings(port=str(links / "usb-sensor"), rate_hz=50)})

    advised = only(check_serial(config, places))
    assert (advised.state, advised.fix) == (WARNING, f'port = "{links}/usb-sensor"')
    assert only(check_serial(lasting, places)).state == OK


def test_what_is_wrong_with_a_port_is_said(places: Places, tmp_path: Path, terminal: str):
    file = tmp_path / "file"
    file.touch()
    serial = {
        "unset": SerialSettings(rate_hz=50),
        "away": SerialSettings(port=str(tmp_path / "none"), rate_hz=50),
        "file": SerialSettings(port=str(file), rate_hz=50),
        "timeless": SerialSettings(port=terminal),
    }
    found = list(check_serial(Config(serial=serial), places))

    assert states(found) == [(f"serial.{name}", ERROR) for name in serial]
    for finding, said in zip(found, ("not set", "No such file", "no serial port", "set its rate_hz"), strict=True):
        assert said in finding.text
        assert finding.fix


@pytest.mark.parametrize(("mode", "advice"), [(0o660, "sudo usermod -aG "), (0o620, "udev")])
def test_a_port_that_may_not_be_opened_names_its_group_if_that_helps(
    places: Places, terminal: str, monkeypatch: pytest.MonkeyPatch, mode: int, advice: str
):
    Path(terminal).chmod(mode)
    if Path(terminal).stat().st_gid == 0:
        advice = "udev"  # nobody should become a member of root's
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = only(check_serial(Config(serial={"imu": SerialSettings(port=terminal, rate_hz=50)}), places))

    assert found.state == ERROR
    assert advice in found.fix


def test_two_sections_cannot_read_one_port(places: Places, tmp_path: Path, terminal: str):
    link = tmp_path / "link"
    link.symlink_to(terminal)
    serial = {"a": SerialSettings(port=terminal, rate_hz=50), "b": SerialSettings(port=str(link), rate_hz=50)}

    assert states(check_serial(Config(serial=serial), places)) == [("serial.a", OK), ("serial.b", ERROR)]


# --- MQTT


def test_a_broker_that_is_not_there_is_an_error():
    settings = MqttInSettings(filter="imu/{device}/samples", broker="cloud")

    assert list(check_mqtt_in(Config())) == []
    assert only(check_mqtt_in(Config(mqtt_in=settings))).state == ERROR
    assert only(check_mqtt_in(Config(mqtt_in=settings, broker={"cloud": BrokerSettings()}))).state == OK


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("mqtt://localhost", OK),
        ("mqtt://127.0.0.2", OK),
        ("mqtt://[::1]", OK),
        ("mqtt://192.168.1.2", WARNING),
        ("mqtt://broker.example.org", WARNING),
        ("mqtts://broker.example.org", OK),
    ],
)
def test_a_password_that_everybody_can_read_is_a_warning(tmp_path: Path, url: str, state: str):
    secret = tmp_path / "secret"
    secret.write_text("sesame")
    secret.chmod(0o600)
    ca = str(Authority(tmp_path).issue("lasting", days=(-1, 400))[0]) if url.startswith("mqtts") else ""
    broker = BrokerSettings(url, user="har", password_file=str(secret), ca_file=ca)
    found = only(check_broker("a", broker, CLOCK))

    assert found.state == state
    assert "sesame" not in str(found)


def test_what_may_leave_the_board_is_told():
    brokers = {name: BrokerSettings(f"mqtts://{name}.example:8883") for name in ("home", "far")}
    assert list(check_cloud(Config(broker=brokers))) == []

    codes = Config(broker=brokers, cloud=CloudSettings(when="low-confidence unknown"))
    samples = CloudSettings("always", broker="far", service="ours", payload="window", windows=16, privacy="window")
    assert [only(check_cloud(c)) for c in (codes, Config(broker=brokers, cloud=samples))] == [
        Finding(
            "cloud",
            OK,
            "windows in doubt (low-confidence unknown) may leave the board as codes: through broker home, to workers "
            "of the service har-cloud",
        ),
        Finding(
            "cloud",
            OK,
            "windows in doubt (always) may leave the board as samples, with the 15 before each: through broker far, "
            "to workers of the service ours",
        ),
    ]


def test_files_of_a_broker_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    missing = only(check_broker("a", BrokerSettings(user="har", password_file=str(tmp_path / "none")), CLOCK))
    assert (missing.state, "does not exist" in missing.text) == (ERROR, True)

    # systemd brings it only when it starts the service.
    bare = BrokerSettings(user="har", password_file="mqtt-password")
    later = only(check_broker("a", bare, CLOCK))
    assert (later.state, "LoadCredential=mqtt-password" in later.fix) == (WARNING, True)

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert only(check_broker("a", bare, CLOCK)).state == ERROR

    (tmp_path / "mqtt-password").write_text("sesame")
    (tmp_path / "mqtt-password").chmod(0o400)
    assert only(check_broker("a", bare, CLOCK)).state == OK

    (tmp_path / "mqtt-password").chmod(0o444)
    assert "chmod o-r" in only(check_broker("a", bare, CLOCK)).fix


def test_credentials_of_commands_by_hand_are_those_that_systemd_would_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(compose, "CREDENTIALS", tmp_path / "credentials")
    assert compose.credentials_dir() is None
    (tmp_path / "credentials").mkdir()
    assert compose.credentials_dir() == tmp_path / "credentials"
    bare = BrokerSettings(user="har", password_file="mqtt-password")
    # Not there either: systemd may know another place.
    assert only(check_broker("a", bare, CLOCK)).state == WARNING
    (tmp_path / "credentials/mqtt-password").touch(0o600)
    assert only(check_broker("a", bare, CLOCK)).state == OK

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert compose.credentials_dir() == tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may do as another user")
def test_credentials_that_only_root_may_read_are_told_of_to_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with TemporaryDirectory() as name:  # tmp_path is where others may not even look
        folder = Path(name)
        monkeypatch.setattr(compose, "CREDENTIALS", folder)
        (folder / "mqtt-password").touch(0o600)
        os.seteuid(12345)
        try:
            found = only(check_broker("a", BrokerSettings(user="har", password_file="mqtt-password"), CLOCK))
        finally:
            os.seteuid(0)

    assert (found.state, "may not be read by this user" in found.text) == (WARNING, True)
    assert found.fix.startswith("run this as root; or")


def test_a_password_without_a_user_is_not_sent(tmp_path: Path):
    (tmp_path / "secret").touch(0o600)

    found = only(check_broker("a", BrokerSettings(password_file=str(tmp_path / "secret")), CLOCK))
    assert (found.state, found.fix) == (WARNING, "set user")


def test_certificates_are_looked_into(tmp_path: Path):
    authority = Authority(tmp_path)
    good, good_key = authority.issue("good", days=(-1, 400))
    soon, soon_key = authority.issue("soon", days=(-1, 10))
    expired, expired_key = authority.issue("expired", days=(-10, -1))
    later, later_key = authority.issue("later", days=(2, 20))
    broken = tmp_path / "broken.crt"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    def found(certificate: Path, key: Path, ca: Path = broken) -> list[Finding]:
        broker = BrokerSettings("mqtts://localhost", ca_file=str(ca), cert_file=str(certificate), key_file=str(key))
        return list(check_broker("a", broker, CLOCK))

    # The authority's own certificate is for 30 days, and of its file the longest one counts.
    ca = tmp_path / "both.crt"
    ca.write_text(authority.certificate.read_text() + good.read_text())
    assert [f.state for f in found(good, good_key, ca)] == [OK]
    assert [(f.state, "expires on" in f.text) for f in found(soon, soon_key, ca)] == [(WARNING, True)]
    assert [(f.state, "has expired on" in f.text) for f in found(expired, expired_key, ca)] == [(ERROR, True)]
    early = found(later, later_key, ca)
    assert [(f.state, "is not valid before" in f.text) for f in early] == [(ERROR, True)]
    assert "set this board's clock, which says" in early[0].fix
    # One CA of the file that is valid is enough; without any, that is told.
    ca.write_text(authority.certificate.read_text() + later.read_text())
    assert [f.state for f in found(good, good_key, ca)] == [WARNING]
    ca.write_text(later.read_text())
    assert [(f.state, f.text.startswith("ca_file")) for f in found(good, good_key, ca)] == [(ERROR, True)]
    ca.write_text(authority.certificate.read_text() + good.read_text())
    assert "does not belong to cert_file" in only(found(good, soon_key, ca)).text
    assert "holds nothing that can be used" in only(found(good, good_key)).text


# --- model, state, outbox


def test_the_model_is_proven(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path)))
    found = only(check_model(config))

    assert (found.id, found.state) == ("model.configured", OK)
    assert "golden vectors are right on this board" in found.text


def test_a_hop_and_a_bundle_that_do_not_fit_are_errors(tmp_path: Path):
    agent = AgentSettings(state_dir=str(tmp_path))
    too_far = only(check_model(Config(agent=agent, window=WindowSettings(hop=100_000))))
    missing = only(check_model(Config(agent=agent, model=ModelSettings(bundle="none"))))

    assert (too_far.state, too_far.fix) == (ERROR, "correct window.hop")
    assert (missing.state, "no model bundle at 'none'" in missing.text) == (ERROR, True)


def test_slots_are_told_of(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path)))
    rolled_back = RolledBack("har-mine@12345678", "failed in service", "2026-05-04T10:21:07Z")
    state = SlotState(active="a", models={"a": "har-mine@12345678", "b": None}, rolled_back=rolled_back)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/slots.json").write_bytes(dump(state))

    # The slot is empty, though it is in service.
    assert states(check_model(config)) == [("model.slots", WARNING), ("model.configured", OK), ("model.a", ERROR)]

    (tmp_path / "models/slots.json").write_text("{")
    assert states(check_model(config)) == [("model.slots", WARNING), ("model.configured", OK)]


def test_the_state_directory_is_there_or_can_be_made(tmp_path: Path, places: Places):
    there, later = (
        only(check_state_dir(Config(agent=AgentSettings(state_dir=str(p))), places))
        for p in (tmp_path, tmp_path / "a/b")
    )

    assert (there.state, later.state) == (OK, OK)
    assert "will be made" in later.text


def test_a_state_directory_that_cannot_serve_is_told_of(
    tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "file"
    file.touch()
    config = Config(agent=AgentSettings(state_dir=str(tmp_path)))
    on_file = Config(agent=AgentSettings(state_dir=str(file / "state")))
    huge = Config(agent=AgentSettings(state_dir=str(tmp_path)), outbox=OutboxSettings(max_mb=100_000))
    roomy = os.statvfs_result((4096, 4096, 100, 100, 10_000, 100, 100, 100, 0, 255))
    read_only = os.statvfs_result((4096, 4096, 100, 100, 100, 100, 100, 100, os.ST_RDONLY, 255))

    assert only(check_state_dir(on_file, places)).state == ERROR
    monkeypatch.setattr(os, "statvfs", lambda _: roomy)
    full = only(check_state_dir(huge, places))
    assert (full.state, "41 MB left" in full.text) == (WARNING, True)
    put(places.procfs / "self/mounts", f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0")
    assert "tmpfs" in next(check_state_dir(config, places)).text
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused = only(check_state_dir(config, places))
    assert (refused.state, "sudo install -d" in refused.fix) == (ERROR, True)
    assert check_runtime_dir(config).state == WARNING
    monkeypatch.setattr(os, "statvfs", lambda _: read_only)
    assert "read-only" in only(check_state_dir(config, places)).text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may do as another user")
def test_whoever_is_not_the_agents_user_is_told_so_first():
    with TemporaryDirectory() as name:  # tmp_path is where others may not even look
        folder = Path(name)
        folder.chmod(0o755)
        os.chown(folder, 54321, 54321)
        config = Config(agent=AgentSettings(state_dir=name))
        as_root = list(check_user(config))
        os.seteuid(12345)
        try:
            told = only(check_user(config))
        finally:
            os.seteuid(0)

    assert as_root == []
    assert told == Finding("user", WARNING, told.text, "sudo har-agent check")
    assert "what follows is what 12345 may do" in told.text


def test_messages_that_wait_are_counted_without_touching_them(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path)))
    assert "no agent has run here" in only(check_outbox(config, None, CLOCK)).text

    outbox = SqliteOutbox(tmp_path / "outbox.db", config.outbox, CLOCK)
    outbox.append([Outgoing("har/imu/prediction", b"{}")] * 3)
    # As it lies there after kill -9: with its log.
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("outbox.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    outbox.close()
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    killed = only(check_outbox(Config(agent=AgentSettings(state_dir=str(copy))), None, CLOCK))

    assert "3 messages wait" in killed.text
    assert "3 messages wait" in only(check_outbox(config, None, CLOCK)).text
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_an_outbox_that_is_full_damaged_or_was_set_aside_is_told_of(tmp_path: Path):
    small = Config(agent=AgentSettings(state_dir=str(tmp_path)), outbox=OutboxSettings(max_mb=0.1))
    with closing(SqliteOutbox(tmp_path / "outbox.db", small.outbox, CLOCK)) as outbox:
        outbox.append([Outgoing("har/imu/prediction", bytes(90_000))])
    assert only(check_outbox(small, None, CLOCK)).state == WARNING

    (tmp_path / "outbox.db").write_bytes(b"no database" * 1000)
    (tmp_path / "outbox.corrupt-1").touch()
    (tmp_path / "outbox.corrupt-1-wal").touch()
    aside, damaged = check_outbox(small, None, CLOCK)
    assert (aside.state, "1 damaged files" in aside.text) == (WARNING, True)
    assert (damaged.state, "is damaged" in damaged.text) == (WARNING, True)

    memory = Config(agent=AgentSettings(state_dir=str(tmp_path / "m")), outbox=OutboxSettings(durability="memory"))
    assert "in memory" in only(check_outbox(memory, None, CLOCK)).text


def test_the_outbox_of_a_running_agent_is_left_to_it(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path), runtime_dir=str(tmp_path)))
    (tmp_path / "outbox.db").write_bytes(b"not to be opened")
    said = {"pid": os.getpid(), "telemetry": {"outbox": {"depth": 7}}}
    (tmp_path / "status.json").write_text(json.dumps(said))

    assert "7 messages wait" in only(check_outbox(config, os.getpid(), CLOCK)).text


def test_a_running_agent_is_seen_by_its_lock(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path), runtime_dir=str(tmp_path)))
    assert running_agent(config) is None

    with closing(SqliteOutbox(tmp_path / "outbox.db", config.outbox, CLOCK)):
        assert running_agent(config) == os.getpid()

    # The number of one that has gone stays in the file.
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert running_agent(config) is None


def test_another_lock_on_another_file_is_not_taken_for_it(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path), runtime_dir=str(tmp_path)))
    (tmp_path / "lock").write_text("1\n")
    with (tmp_path / "other").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        assert running_agent(config) is None


def test_an_agent_without_an_outbox_on_disk_is_seen_by_its_status(tmp_path: Path):
    config = Config(agent=AgentSettings(state_dir=str(tmp_path), runtime_dir=str(tmp_path)))
    said = {"pid": os.getpid(), "health": {"state": "ok"}, "updated_ns": CLOCK.monotonic_ns(), "interval_s": 60}
    (tmp_path / "status.json").write_text(json.dumps(said))

    assert running_agent(config) == os.getpid()


def test_the_port_of_prometheus_is_tried():
    port = free_port()
    config = Config(telemetry=TelemetrySettings(prometheus_port=port))
    assert list(check_prometheus(Config(), None)) == []
    assert only(check_prometheus(config, None)).state == OK

    with socket.create_server(("127.0.0.1", port)):
        assert only(check_prometheus(config, None)).state == WARNING
        assert only(check_prometheus(config, os.getpid())).state == OK


# --- clock, board, system


class WallClock(FakeClock):
    def __init__(self, year: int, synced: bool = True) -> None:
        super().__init__()
        self.is_synced = synced
        self._wall_ns = int(datetime(year, 5, 4, tzinfo=UTC).timestamp()) * 10**9

    def wall_ns(self) -> int:
        return self._wall_ns


def test_who_keeps_the_clock_right_is_told(places: Places):
    put(places.procfs / "17/comm", "chronyd")
    (places.sysfs / "class/rtc/rtc0").mkdir(parents=True)
    found = only(check_clock(places, WallClock(2027)))
    assert (found.state, found.text) == (OK, "kept right by chrony; a real-time clock")

    put(places.run / "systemd/timesync/synchronized", "")
    assert "systemd-timesyncd" in only(check_clock(places, WallClock(2027))).text


def test_a_clock_that_nobody_keeps_right_is_a_warning(places: Places):
    alone = only(check_clock(places, WallClock(2027, synced=False)))
    assert (alone.state, "apt install" in alone.fix, "no real-time clock" in alone.text) == (WARNING, True, True)

    put(places.procfs / "17/comm", "systemd-timesyn")
    tried = only(check_clock(places, WallClock(2027, synced=False)))
    assert (tried.state, "systemd-timesyncd runs" in tried.text) == (WARNING, True)

    assert only(check_clock(places, WallClock(1970))).state == ERROR


def test_a_board_is_described(tmp_path: Path):
    tree = board("pi5", tmp_path)
    places = Places(tree.sysfs, tree.procfs, tmp_path / "dev", tmp_path / "run")
    found = {f.id: f for f in check_hardware(Config(), places, FakeClock(), tree.vcgencmd)}

    assert found["board"].text == "Raspberry Pi 5 Model B Rev 1.0"
    assert "°C" in found["board.temperature"].text
    assert "(pmic)" in found["board.power"].text


def test_a_board_that_is_hot_and_weak_is_a_warning(places: Places):
    put(places.sysfs / "class/thermal/thermal_zone0/type", "cpu-thermal")
    put(places.sysfs / "class/thermal/thermal_zone0/temp", 84_000)
    put(places.sysfs / "class/hwmon/hwmon0/name", "rpi_volt")
    put(places.sysfs / "class/hwmon/hwmon0/in0_lcrit_alarm", 1)
    config = Config(telemetry=TelemetrySettings(power="rapl"))
    found = {f.id: f for f in check_hardware(config, places, FakeClock(), lambda _: None)}

    assert {name: f.state for name, f in found.items()} == {
        "board": OK,
        "board.temperature": WARNING,
        "board.throttling": WARNING,
        "board.power": WARNING,
    }
    assert "stronger supply" in found["board.throttling"].fix


def test_a_system_without_wheels_is_a_warning():
    assert next(check_system("aarch64", 8)).state == OK
    assert next(check_system("armv7l", 4)).state == WARNING
    assert next(check_system("aarch64", 4)).state == WARNING
    assert ERROR not in {f.state for f in check_system()}


def test_without_a_configuration_the_board_is_still_looked_at(places: Places):
    areas = {f.id.partition(".")[0] for f in check_board(None, places, FakeClock())}

    assert areas == {"clock", "board", "system"}


# --- what came, held against what is configured


def heard(
    rate_hz: float = 50.0,
    n: int = 150,
    acc: float = 1.0,
    turn: float = 0.1,
    device_hz: float | None = None,
    bad: int = 0,
) -> Heard:
    got = Heard()
    for k in range(n):
        values = np.array([[0.0, 0.0, acc, turn, 0.0, 0.0]], np.float32)
        t_ns = np.array([round(k * 1e9 / (device_hz or rate_hz))])
        got.take([SampleBatch("imu", t_ns, values, k, round(k * 1e9 / rate_hz))])
    got.take([BadFrame("imu", Loss.COLUMNS, 1)] * bad)
    return got


COUNTED = InputSettings(rate_hz=50.0)
TIMED = InputSettings(time="ms")


def test_samples_as_they_should_be_are_well():
    found = only(judge("serial.imu", heard(bad=2), COUNTED, False))

    assert found.state == OK
    assert found.text.startswith("50.0 samples/s, 2 wrong_number_of_columns; acceleration 1.00 g, mean x +0.00")


@pytest.mark.parametrize(
    ("what", "settings", "state", "fix"),
    [
        ({"acc": 9.81}, COUNTED, WARNING, 'acc_unit = "m/s2"'),
        ({"acc": 0.1}, InputSettings(rate_hz=50.0, acc_unit="m/s2"), WARNING, 'acc_unit = "g"'),
        ({"acc": 16384.0}, COUNTED, WARNING, "correct acc_unit and acc_scale"),
        ({"turn": 90.0}, COUNTED, WARNING, 'gyro_unit = "deg/s", or correct gyro_scale'),
        ({"rate_hz": 100.0}, COUNTED, WARNING, "rate_hz = 100, if it is meant to send as often"),
        ({"device_hz": 0.05}, TIMED, WARNING, "correct time: it is the unit of the sensor's times"),
        ({"rate_hz": 2.0, "device_hz": 2.0}, TIMED, ERROR, "change how often the sensor sends"),
        (
            {"bad": 20},
            COUNTED,
            WARNING,
            "compare format and baud with the sensor's; a long or thin cable also does this",
        ),
    ],
)
def test_samples_that_do_not_fit_say_what_to_set(what: dict, settings: InputSettings, state: str, fix: str):
    described, wrong = judge("serial.imu", heard(**what), settings, settings == TIMED)

    assert described.state == OK
    assert (wrong.state, wrong.fix) == (state, fix)


def test_rates_of_many_devices_are_not_judged():
    assert only(judge("mqtt_in", heard(rate_hz=4000.0), COUNTED, None)).state == OK


def test_a_sensor_that_never_turns_is_asked_to():
    assert "turn it by hand" in only(judge("serial.imu", heard(turn=0.0), COUNTED, False)).text


# --- the command


def test_findings_are_lines_with_what_to_do():
    findings = [
        Finding("clock", OK, "kept right by chrony"),
        Finding("serial.imu", WARNING, "not by id", 'port = "x"'),
        Finding("port./dev/ttyUSB0", OK, "it sends csv", "a section that fits:", "[serial.imu]\nbaud = 9600\n"),
    ]
    assert view(findings).splitlines() == [
        "ok       clock              kept right by chrony",
        "warning  serial.imu         not by id",
        '                            do: port = "x"',
        "ok       port./dev/ttyUSB0  it sends csv",
        "                            a section that fits:",
        "",
        "    [serial.imu]",
        "    baud = 9600",
        "",
        "0 errors, 1 warnings",
    ]


def har_agent(*arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(build(["check"]), ["check", *arguments])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.stdout


def config_text(tmp_path: Path, port: str) -> str:
    return (
        f'[agent]\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}"\n'
        f'[serial.imu]\nport = "{port}"\nrate_hz = 50\n'
    )


def test_the_exit_status_tells_of_errors(tmp_path: Path, terminal: str):
    status, said = har_agent("--json", "--config", str(write(tmp_path, config_text(tmp_path, terminal))))
    assert status == 0
    assert json.loads(said)["errors"] == 0
    assert not (tmp_path / "state").exists()

    status, said = har_agent("--json", "--config", str(write(tmp_path, config_text(tmp_path, "/dev/none"))))
    assert status == 1
    wrong = [f for f in json.loads(said)["findings"] if f["state"] == "error"]
    assert [(f["id"], set(f)) for f in wrong] == [("serial.imu", {"id", "state", "text", "fix", "section"})]


def test_a_configuration_that_cannot_be_used_is_told_like_everything_else(tmp_path: Path):
    path = str(write(tmp_path, "[window]\nhop = 0\n"))
    status, said = har_agent("--config", path)
    assert status == 1
    assert "error    configuration" in said
    assert "system.python" in said

    status, said = har_agent("--config", path, "--print")
    assert status == 1
    assert said.count("\n") == 3


def test_the_configuration_is_printed(tmp_path: Path, terminal: str):
    path = write(tmp_path, config_text(tmp_path, terminal))
    status, said = har_agent("--config", str(path), "--print")
    assert status == 0
    assert tomllib.loads(said)["serial"]["imu"]["rate_hz"] == 50

    status, said = har_agent("--config", str(path), "--print", "--json")
    assert json.loads(said)["serial.imu.port"] == {"value": terminal, "origin": f"{path}:5"}
