"""The broker's configuration, as the role `mosquitto` renders the example of docs/reference/broker.md, on a real one.

What the page shows is compared with what is rendered: `--update-golden` writes it anew. Only paths, ports and the
cloud's address differ in what runs. Getting it onto a host and live is tested with a fleet of boards.
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from mosquitto import LOOPBACK, PERSISTENT, Authority, Mosquitto, free_port, until
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "deploy" / "ansible"
FILES = ANSIBLE / "roles" / "mosquitto" / "files"
PAGE = ROOT / "docs" / "reference" / "broker.md"
LIVE = "/etc/mosquitto/har"
PASSWORDS = {"home-assistant": "green house", "wrist-9": "nine", "site-7": 'a "cloud" password'}
WRITTEN = ("acl", "broker.conf", "bridges.conf")

BOARDS, USERS = ("kitchen", "hall", "attic"), ("dashboard", "alice", "home-assistant", "worker-1", "edge-1", "wrist-9")
DENIED, GRANTED = 135, {0, 16}
"""Reason codes of an acknowledgement: not authorised; written, and nobody has subscribed to it."""


def _device(name: str) -> set[str]:
    return {f"har/{name}/prediction", f"har/{name}/activity", f"har/{name}/availability"}


def _board(name: str) -> set[str]:
    own = {f"har/{name}/{kind}" for kind in ("status", "health", "telemetry", "check")}
    return own | {"har/reply/alice-1", f"homeassistant/device/{name}/config"}


def _commanded(name: str) -> set[str]:
    return {f"har/{name}/command/status"}


ASKED, ANSWERED = "har/cloud/har-cloud/request", "har/hall/cloud/answer"
SPLIT, SPLIT_ANSWERED = "har/cloud/har-split/request", "har/hall/split/answer"
PASSED_ON = "har/cloud/har-split-cloud/request"
ANSWERS = {ANSWERED, "har/kitchen/cloud/answer", SPLIT_ANSWERED}
WORKER = {f"har/worker-1/{kind}" for kind in ("status", "health", "worker")}
EDGE = {f"har/edge-1/{kind}" for kind in ("status", "health", "worker")}
AGENTS = {f"har/{a}/{kind}" for a in BOARDS for kind in ("status", "health", "telemetry")}
REVISED = {"har/wrist-8/revision", "har/wrist-9/revision"}
DEVICES = _device("waist-07") | _device("wrist-8") | _device("wrist-9") | _device("anything")
MAY_WRITE = {
    "kitchen": _board("kitchen") | _device("waist-07"),
    "hall": _board("hall") | _device("wrist-8") | _device("wrist-9")
    | {ASKED, SPLIT, "har/wrist-8/revision", "har/wrist-9/revision"},
    "attic": _board("attic") | DEVICES,
    "dashboard": set(),
    "alice": _commanded("kitchen") | _commanded("hall") | _commanded("attic"),
    "home-assistant": {"homeassistant/status"},
    "worker-1": WORKER | ANSWERS,
    "edge-1": EDGE | ANSWERS | {PASSED_ON},
    "wrist-9": {"imu/wrist-9/samples"},
}  # fmt: skip
MAY_READ = {
    "kitchen": _board("kitchen") - {"har/reply/alice-1"}
    | _commanded("kitchen") | {"har/waist-07/availability", "homeassistant/status"},
    "hall": _board("hall") - {"har/reply/alice-1"}
    | _commanded("hall")
    | {"har/wrist-8/availability", "har/wrist-9/availability", "homeassistant/status", "imu/wrist-9/samples"}
    | {ANSWERED, SPLIT_ANSWERED},
    "attic": _board("attic") - {"har/reply/alice-1"}
    | _commanded("attic") | {t for t in DEVICES if t.endswith("availability")}
    | {"homeassistant/status", "loft/anything/samples"},
    "dashboard": AGENTS | DEVICES | REVISED | WORKER | EDGE,
    "alice": AGENTS | DEVICES | REVISED | WORKER | EDGE | {"har/reply/alice-1"},
    "home-assistant": AGENTS | DEVICES | REVISED | WORKER | EDGE
    | {"homeassistant/status"} | {f"homeassistant/device/{a}/config" for a in BOARDS},
    "worker-1": WORKER | {ASKED, SPLIT, PASSED_ON},
    "edge-1": EDGE | {ASKED, SPLIT, PASSED_ON},
    "wrist-9": set(),
}  # fmt: skip
TOPICS = sorted(
    set().union(*MAY_WRITE.values(), *MAY_READ.values())
    | {"imu/wrist-8/samples", "else/where", "har/kitchen/command/a/b", "$SYS/broker/har"}
)


def _block(page: str, name: str) -> re.Match[str]:
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```\n", page, re.DOTALL)
    assert found is not None, f"{PAGE} has no block {name}"
    return found


def _ansible(folder: Path, *arguments: object, **extra: Any) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("ansible-playbook"), *arguments, "-e", json.dumps(extra)]
    env = {
        **os.environ,
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
    }
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def _passwords(path: Path, passwords: Mapping[str, str], check: bool = False, **hashes: str) -> dict[str, list[str]]:
    asked = {"path": str(path), "passwords": passwords, "hashes": hashes, "check": check}
    ran = subprocess.run(
        [sys.executable, FILES / "passwords.py"], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    changes: dict[str, list[str]] = json.loads(ran.stdout)
    return changes


def _certificates(folder: Path, who: str, *options: str) -> list[str]:
    ran = subprocess.run(
        ["sh", FILES / "har-certificates", *options, folder], input=who, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's `certificates` and, in `hub`, what the role writes for it."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "hosts.yml").write_text(_block(PAGE.read_text(), "inventory")[1])
    (folder / "render.yml").write_text(
        "- hosts: brokers\n  gather_facts: false\n  connection: local\n  tasks:\n"
        "    - ansible.builtin.import_role: {name: mosquitto, tasks_from: render}\n"
    )
    (folder / "hub").mkdir()
    _certificates(folder / "cloud", "server cloud localhost")
    shutil.copy(folder / "cloud" / "ca.crt", folder / "cloud-ca.crt")
    ran = _ansible(
        folder, "-i", "hosts.yml", ANSIBLE / "playbooks" / "certificates.yml", "render.yml",
        mosquitto_stage=str(folder / "hub"),
        ansible_python_interpreter=sys.executable,
        vault_home_assistant=PASSWORDS["home-assistant"], vault_wrist_9=PASSWORDS["wrist-9"],
        vault_cloud=PASSWORDS["site-7"],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # Nothing secret is said, however it is called.
    assert not [p for p in PASSWORDS.values() if p in ran.stdout + ran.stderr]
    return folder


@dataclass(frozen=True)
class Hub:
    """The example's broker, running."""

    broker: Mosquitto
    folder: Path
    """Its configuration."""
    certificates: Path
    by_certificate: int
    by_password: int

    def client(self, user: str, client_id: str = "", **more: Any) -> "Client":
        """Return a connected client that is `user`."""
        if user in PASSWORDS:
            return Client(self.by_password, self.ca, client_id, login=(user, PASSWORDS[user]), **more)
        return Client(self.by_certificate, self.ca, client_id, identity=self.certificates / "clients" / user, **more)

    @property
    def ca(self) -> Path:
        return self.certificates / "ca-bundle.crt"


@pytest.fixture
def hub(rendered: Path, tmp_path: Path) -> Iterator[Hub]:
    """The example's broker, on ports of the loopback, with a cloud that is not there."""
    with start_hub(rendered, tmp_path, free_port()) as running:
        yield running


class start_hub(ExitStack):  # noqa: N801
    """Run what was rendered, in a `folder`; its cloud is on a port of this machine."""

    def __init__(self, rendered: Path, folder: Path, cloud: int) -> None:
        super().__init__()
        self._config = folder / "hub"
        self._ports = free_port(), free_port()
        shutil.copytree(rendered / "hub", self._config)
        (folder / "db").mkdir()
        for name in WRITTEN:
            text = (self._config / name).read_text()
            text = text.replace(LIVE, str(self._config)).replace("cloud.example:8883", f"localhost:{cloud}")
            for port, ours in zip((8883, 8884), self._ports, strict=True):
                text = text.replace(f"listener {port}\n", f"listener {ours} {LOOPBACK}\n")
            (self._config / name).write_text(text)
        # The bridge's list comes second, as in conf.d.
        (self._config / "conf.d").mkdir()
        (self._config / "conf.d" / "har.conf").symlink_to("../broker.conf")
        (self._config / "conf.d" / "har_bridges.conf").symlink_to("../bridges.conf")
        lines = f"persistence true\npersistence_location {folder}/db/\ninclude_dir {self._config}/conf.d\n"
        self._hub = Hub(Mosquitto(folder, lines), self._config, rendered / "certificates", *self._ports)

    def __enter__(self) -> Hub:  # type: ignore[override]  # what is used is the hub
        self.enter_context(self._hub.broker)
        return self._hub


class Client:
    """A client of MQTT 5 with TLS, connected and with a thread of its own inside `with`."""

    def __init__(
        self,
        port: int,
        ca: Path | None,
        client_id: str = "",
        *,
        identity: Path | None = None,
        login: tuple[str, str] | None = None,
        keep_s: int = 0,
        host: str = "localhost",
    ) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.connected: list[int] = []
        self._lost = False
        self._acknowledged: dict[int, int] = {}
        self._subscribed: list[int] = []
        self._changed = threading.Condition()
        self._port, self._host, self._keep_s = port, host, keep_s
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        self._client.max_inflight_messages_set(1000)
        if login is not None:
            self._client.username_pw_set(*login)
        if ca is not None:
            context = ssl.create_default_context(cafile=str(ca))
            # As Python 3.13 does by itself.
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            if identity is not None:
                context.load_cert_chain(f"{identity}.crt", f"{identity}.key")
            self._client.tls_set_context(context)
        self._client.on_connect = lambda c, u, f, code, p: self._note(lambda: self.connected.append(code.value))
        self._client.on_disconnect = lambda c, u, f, code, p: self._note(lambda: setattr(self, "_lost", True))
        self._client.on_publish = lambda c, u, mid, code, p: self._note(
            lambda: self._acknowledged.update({mid: code.value})
        )
        self._client.on_subscribe = lambda c, u, mid, codes, p: self._note(
            lambda: self._subscribed.extend(code.value for code in codes)
        )
        self._client.on_message = lambda c, u, m: self._note(lambda: self.received.append((m.topic, bytes(m.payload))))

    def __enter__(self) -> Self:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types here
        properties.SessionExpiryInterval = self._keep_s
        self._client.connect(self._host, self._port, clean_start=False, properties=properties)
        self._client.loop_start()
        try:
            self.until(lambda: self.connected or self._lost)
            if not self.connected:
                raise ConnectionError("closed without an answer")
        except BaseException:
            self._client.loop_stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def until(self, condition: Callable[[], Any], within_s: float = 10) -> Any:
        """Wait for something that a callback brings."""
        with self._changed:
            assert self._changed.wait_for(condition, within_s), "it did not happen in time"
            return condition()

    def subscribe(self, *filters: str) -> list[int]:
        """Subscribe with QoS 1, and return the answers."""
        before = len(self._subscribed)
        self._client.subscribe([(f, SubscribeOptions(qos=1)) for f in filters])
        self.until(lambda: len(self._subscribed) == before + len(filters))
        return self._subscribed[before:]

    def publish(self, topic: str, payload: bytes = b"x", retain: bool = False) -> int:
        """Publish with QoS 1, and return the reason code of the acknowledgement."""
        return self.publish_all([(topic, payload)], retain)[0]

    def publish_all(self, messages: Sequence[tuple[str, bytes]], retain: bool = False) -> list[int]:
        """Publish many with QoS 1, and return the reason codes of their acknowledgements."""
        ids = [self._client.publish(topic, payload, 1, retain).mid for topic, payload in messages]
        self.until(lambda: self._lost or self._acknowledged.keys() >= set(ids))
        if self._lost:
            raise ConnectionError("closed")
        return [self._acknowledged.pop(mid) for mid in ids]

    def _note(self, what: Callable[[], object]) -> None:
        with self._changed:
            what()
            self._changed.notify_all()


def _refused(port: int, ca: Path | None, **more: Any) -> str:
    """Try to connect, and return how it was refused."""
    if ca is not None:
        # paho leaves a socket behind whose handshake fails.
        context = ssl.create_default_context(cafile=str(ca))
        with socket.create_connection((LOOPBACK, port), 5) as wire:
            try:
                context.wrap_socket(wire, server_hostname="localhost").close()
            except ssl.SSLCertVerificationError as e:
                return f"we refuse it: {e.verify_message}"
    try:
        with Client(port, ca, **more) as client:
            return {0: "let in", 134: "bad user name or password", 135: "not authorised"}[client.connected[0]]
    except ConnectionError as e:
        return str(e)


def _has_last(client: Client) -> bool:
    return bool(client.received) and client.received[-1][1] == b"last"


def _next_turn(hub: Hub) -> None:
    """Return when the broker has saved all that it has acknowledged.

    It does at the end of each turn of its loop, after the acknowledgements; a connection is answered in a later turn.
    """
    with hub.client("alice"):
        pass


def test_the_page_shows_what_is_rendered(rendered: Path, update_golden: bool) -> None:
    page = PAGE.read_text()
    for name in WRITTEN:
        found = _block(page, name)
        text = (rendered / "hub" / name).read_text().replace(PASSWORDS["site-7"], "…")
        if update_golden:
            page = page[: found.start(1)] + text + page[found.end(1) :]
        else:
            assert found[1] == text
    if update_golden:
        PAGE.write_text(page)


@pytest.mark.parametrize(("section", "key", "on"), [("cloud", "when", "always"), ("split", "cut", "auto")])
def test_a_board_may_ask_unless_that_is_off_and_off_is_no_text_in_yaml(
    tmp_path: Path, section: str, key: str, on: str
) -> None:
    (tmp_path / "hosts.yml").write_text(
        "brokers: {hosts: {hub: }}\n"
        "boards:\n"
        f"  vars: {{har_agent_config: {{{section}: {{{key}: {on}, service: big}}}}}}\n"
        "  hosts:\n"
        "    asks: {}\n"
        f"    own: {{har_agent_config_host: {{{section}: {{service: other}}}}}}\n"
        f"    text: {{har_agent_config_host: {{{section}: {{{key}: 'off'}}}}}}\n"
        f"    bare: {{har_agent_config_host: {{{section}: {{{key}: off}}}}}}\n"
    )
    (tmp_path / "show.yml").write_text(
        "- hosts: brokers\n  gather_facts: false\n  connection: local\n"
        f"  vars_files: [{ANSIBLE}/roles/mosquitto/defaults/main.yml]\n"
        "  tasks:\n"
        "    - ansible.builtin.debug:\n"
        '        msg: "asked {% for board in mosquitto_boards %}{{ board.name }}={{ board.'
        + section
        + ' }} {% endfor %}."\n'
    )
    ran = _ansible(tmp_path, "-i", "hosts.yml", "show.yml", ansible_python_interpreter=sys.executable)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "asked asks=big own=other text= bare= ." in ran.stdout


def test_writes_and_reads_what_the_rules_say_and_nothing_else(hub: Hub) -> None:
    everybody = {user: hub.client(user) for user in (*BOARDS, *USERS)}
    with ExitStack() as stack:
        written, read = {}, {}
        for client in everybody.values():
            stack.enter_context(client)
            client.subscribe("#")
        for user, client in everybody.items():
            codes = client.publish_all([(topic, user.encode()) for topic in TOPICS if not topic.startswith("$")])
            assert set(codes) <= GRANTED | {DENIED}
            allowed = zip((t for t in TOPICS if not t.startswith("$")), codes, strict=True)
            written[user] = {topic for topic, code in allowed if code in GRANTED}
        # A last message to each tells that all before it have come.
        for user, client in everybody.items():
            ping = next((t for t in sorted(MAY_READ[user]) for w in MAY_WRITE.values() if t in w), None)
            if ping is not None:
                writer = next(u for u, topics in MAY_WRITE.items() if ping in topics)
                everybody[writer].publish(ping, b"last")
                client.until(partial(_has_last, client))
            read[user] = {topic for topic, _ in client.received}

    assert written == MAY_WRITE

    # Nobody in the example sends for the loft.
    assert read == {user: topics - {"loft/anything/samples"} for user, topics in MAY_READ.items()}


def test_strangers_are_refused(hub: Hub, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    other.issue("kitchen", "kitchen")
    stranger, kitchen = tmp_path / "other-kitchen", hub.certificates / "clients" / "kitchen"

    assert _refused(hub.by_password, hub.ca) == "not authorised"
    assert _refused(hub.by_password, hub.ca, login=("wrist-9", "eight")) == "not authorised"
    assert _refused(hub.by_password, hub.ca, login=("kitchen", "")) == "not authorised"
    assert _refused(hub.by_password, hub.ca, login=("nobody", "nobody")) == "not authorised"
    assert _refused(hub.by_password, hub.ca, identity=kitchen) == "not authorised"
    assert _refused(hub.broker.port, None) == "not authorised"
    assert _refused(hub.by_certificate, hub.ca) == "closed without an answer"
    assert _refused(hub.by_certificate, hub.ca, identity=stranger) == "closed without an answer"
    assert _refused(hub.by_certificate, hub.ca, login=("alice", "")) == "closed without an answer"
    assert _refused(hub.by_certificate, other.certificate, identity=kitchen).startswith("we refuse it: ")
    # And not for some other reason:
    assert _refused(hub.by_certificate, hub.ca, identity=kitchen) == "let in"


def test_a_name_that_is_given_beside_a_certificate_counts_for_nothing(hub: Hub) -> None:
    kitchen = hub.certificates / "clients" / "kitchen"
    with Client(hub.by_certificate, hub.ca, identity=kitchen, login=("alice", "")) as client:
        assert client.publish("har/hall/command/status") == DENIED
        assert client.publish("har/kitchen/status") in GRANTED


def test_rights_that_are_taken_away_are_gone_after_a_reload(hub: Hub) -> None:
    with hub.client("kitchen") as kitchen, hub.client("alice") as alice:
        assert kitchen.publish("har/kitchen/status") in GRANTED
        rules = (hub.folder / "acl").read_text()
        (hub.folder / "acl").write_text(rules.replace("user kitchen\n", "user elsewhere\n"))
        hub.broker.reload()
        until(lambda: kitchen.publish("har/kitchen/status") == DENIED)
        assert alice.publish("har/kitchen/command/status") in GRANTED


def test_a_new_certificate_is_shown_after_a_reload(hub: Hub, rendered: Path, tmp_path: Path) -> None:
    _certificates(tmp_path / "new", "server hub localhost")
    for end in ("crt", "key"):
        shutil.copy(tmp_path / "new" / "servers" / f"hub.{end}", hub.folder / f"server.{end}")
    kitchen = hub.certificates / "clients" / "kitchen"
    hub.broker.reload()

    until(lambda: _refused(hub.by_certificate, tmp_path / "new" / "ca.crt", identity=kitchen) == "let in")


def test_what_was_acknowledged_survives_kill_9(hub: Hub) -> None:
    with hub.client("dashboard", "dashboard-1", keep_s=3600) as dashboard:
        dashboard.subscribe("har/+/prediction")
    sent = [("har/waist-07/prediction", b"%d" % n) for n in range(700)]
    with hub.client("kitchen") as kitchen:
        kitchen.publish("har/kitchen/status", b"on", retain=True)
        assert set(kitchen.publish_all(sent)) == {0}
        _next_turn(hub)
        hub.broker.kill()
    hub.broker.start()

    with hub.client("dashboard", "dashboard-1", keep_s=3600) as dashboard:
        dashboard.until(lambda: len(dashboard.received) >= 700)
        assert dashboard.received == sent
        dashboard.subscribe("har/+/status")
        dashboard.until(lambda: ("har/kitchen/status", b"on") in dashboard.received)


def test_packets_that_are_too_large_end_the_connection_and_others_go_on(hub: Hub) -> None:
    with hub.client("kitchen") as kitchen, hub.client("dashboard") as dashboard:
        dashboard.subscribe("har/#")
        assert kitchen.publish("har/kitchen/health", bytes(1_000_000)) == 0
        with hub.client("hall") as hall, pytest.raises(ConnectionError):
            hall.publish("har/hall/health", bytes(1_100_000))
        assert kitchen.publish("har/kitchen/health") == 0


class Cloud:
    """A broker elsewhere, with TLS and passwords of its own."""

    def __init__(self, rendered: Path, folder: Path, port: int) -> None:
        folder.mkdir()
        self._ca = rendered / "cloud" / "ca.crt"
        self.port = port
        _passwords(folder / "passwords", {"site-7": PASSWORDS["site-7"], "ops": "ops"})
        server = rendered / "cloud" / "servers" / "cloud"
        self.broker = Mosquitto(
            folder,
            PERSISTENT.format(folder=folder).replace("allow_anonymous true", "allow_anonymous false")
            + f"per_listener_settings false\npassword_file {folder}/passwords\n"
            f"listener {port} {LOOPBACK}\ncertfile {server}.crt\nkeyfile {server}.key\n",
        )

    def client(self) -> Client:
        return Client(self.port, self._ca, "ops-1", login=("ops", "ops"), keep_s=3600)


def _bridged(hub: Hub, state: bytes) -> None:
    """Wait until the hub says whether its bridge is up."""
    with hub.client("alice") as alice:
        alice.subscribe("$SYS/broker/connection/#")
        alice.until(lambda: alice.received and alice.received[-1][1] == state, 20)


def test_the_bridge_forwards_queues_while_the_cloud_is_away_and_makes_no_circles(
    rendered: Path, tmp_path: Path
) -> None:
    cloud = Cloud(rendered, tmp_path / "cloud", free_port())
    with start_hub(rendered, tmp_path, cloud.port) as hub:
        with cloud.broker, cloud.client() as ops, hub.client("kitchen") as kitchen:
            _bridged(hub, b"1")
            ops.subscribe("#")
            kitchen.publish("har/waist-07/prediction", b"live")
            kitchen.publish("har/kitchen/telemetry", b"stays")
            ops.until(lambda: ("site-7/har/waist-07/prediction", b"live") in ops.received)

            kitchen.subscribe("har/kitchen/command/+")
            ops.publish("site-7/har/kitchen/command/status", b"asked")
            kitchen.until(lambda: ("har/kitchen/command/status", b"asked") in kitchen.received)
            kitchen.publish("har/reply/ops-1", b"answered")
            ops.until(lambda: ("site-7/har/reply/ops-1", b"answered") in ops.received)
            # Each once: the command did not come back, telemetry did not go.
            assert sorted(ops.received) == [
                ("site-7/har/kitchen/command/status", b"asked"),
                ("site-7/har/reply/ops-1", b"answered"),
                ("site-7/har/waist-07/prediction", b"live"),
            ]
            assert len(kitchen.received) == 1

        missed = [("har/waist-07/prediction", b"%d" % n) for n in range(300)]
        with hub.client("kitchen") as kitchen:
            assert set(kitchen.publish_all(missed)) <= GRANTED
        # Also when the hub dies meanwhile.
        _next_turn(hub)
        hub.broker.kill()
        hub.broker.start()
        with cloud.broker, cloud.client() as ops:
            ops.until(lambda: len(ops.received) >= 300, 20)
            assert ops.received == [(f"site-7/{topic}", payload) for topic, payload in missed]


def test_an_agent_finds_all_that_it_needs(hub: Hub, tmp_path: Path) -> None:
    folder = hub.certificates
    (tmp_path / "config.toml").write_text(
        f'[agent]\nname = "hall"\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'
        f'[broker.hub]\nurl = "mqtts://localhost:{hub.by_certificate}"\nca_file = "{hub.ca}"\n'
        f'cert_file = "{folder}/clients/hall.crt"\nkey_file = "{folder}/clients/hall.key"\n'
        '[mqtt_in]\nfilter = "imu/{device}/samples"\nrate_hz = 50\n'
    )
    ran = subprocess.run(
        [sys.executable, "-m", "agent", "check", "--connect", "--config", tmp_path / "config.toml", "--json"],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
    )  # fmt: skip
    said = [f for f in json.loads(ran.stdout)["findings"] if f["id"].startswith("broker.hub")]
    assert {f["state"] for f in said} == {"ok"}, said
    assert any("and back in" in f["text"] for f in said), said


def test_passwords_that_fit_stay_and_check_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    assert _passwords(path, {"a": "1", "b": "2"}, check=True) == {"came": ["a", "b"], "changed": [], "went": []}
    assert not path.exists()
    _passwords(path, {"a": "1", "b": "2"})
    first = path.read_text()
    assert _passwords(path, {"a": "1", "b": "2"}) == {"came": [], "changed": [], "went": []}
    assert path.read_text() == first
    given = first.splitlines()[1].split(":", 1)[1]

    assert _passwords(path, {"a": "3"}, c=given) == {"came": ["c"], "changed": ["a"], "went": ["b"]}
    assert path.read_text().splitlines()[1] == f"c:{given}"


def test_passwords_of_mosquitto_passwd_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("a:secret\n")
    subprocess.run(["mosquitto_passwd", "-U", path], check=True)
    assert _passwords(path, {"a": "secret"}) == {"came": [], "changed": [], "went": []}


WHO = "server hub hub.example,localhost,127.0.0.1\nclient kitchen\n"


def _verifies(folder: Path, name: str, by: str = "ca-bundle.crt") -> bool:
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / by), str(folder / f"{name}.crt")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_certificates_are_made_once_and_renewed_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    assert _certificates(folder, WHO, "-n") == ["new authority", "server hub: new", "client kitchen: new"]
    assert not folder.exists()
    assert _certificates(folder, WHO) == ["new authority", "server hub: new", "client kitchen: new"]
    assert _certificates(folder, WHO) == []
    assert all(_verifies(folder, name) for name in ("servers/hub", "clients/kitchen"))
    assert {oct(p.stat().st_mode & 0o777) for p in folder.rglob("*.key")} == {"0o600"}

    before = (folder / "clients" / "kitchen.crt").read_text()
    assert _certificates(folder, WHO, "-d", "500", "-r", "450", "-n") == [
        "server hub: ends soon",
        "client kitchen: ends soon",
    ]
    assert (folder / "clients" / "kitchen.crt").read_text() == before
    assert _certificates(folder, "server hub hub.example\nclient kitchen\n") == ["server hub: other addresses"]
    # One that was cut short has a key and no certificate.
    (folder / "clients" / "kitchen.crt").unlink()
    assert _certificates(folder, "client kitchen\n") == ["client kitchen: new"]


def test_an_authority_is_replaced_while_everybody_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    _certificates(folder, WHO)
    old = (folder / "ca.crt").read_text()

    assert _certificates(folder, WHO, "-c", "prepare") == ["next authority"]
    assert _certificates(folder, WHO, "-c", "prepare") == []
    assert old in (folder / "ca-bundle.crt").read_text()
    bundle = folder / "ca-bundle.crt"
    prepared = bundle.read_text()

    switched = ["the next authority issues", "server hub: other authority", "client kitchen: other authority"]
    assert _certificates(folder, WHO, "-c", "switch", "-n") == switched
    shutil.copytree(folder, tmp_path / "before")
    assert _certificates(folder, WHO, "-c", "switch") == switched
    assert _certificates(folder, WHO, "-c", "switch") == []
    # Who has the bundle of before trusts new certificates, and who has new ones trusts those of before.
    (tmp_path / "before" / "ca-new.crt").write_text(bundle.read_text())
    assert _verifies(tmp_path / "before", "clients/kitchen", "ca-new.crt")
    (folder / "ca-before.crt").write_text(prepared)
    assert _verifies(folder, "clients/kitchen", "ca-before.crt")

    assert _certificates(folder, WHO, "-c", "finish") == ["the authority before is trusted no longer"]
    assert _certificates(folder, WHO) == []
    assert bundle.read_text() == (folder / "ca.crt").read_text() != old
    assert _verifies(folder, "clients/kitchen")


def test_what_cannot_be_meant_is_told_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "check.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.import_role: {name: mosquitto, tasks_from: preflight}\n"
    )
    ran = _ansible(
        tmp_path, "-i", "localhost,", "-c", "local", "check.yml",
        ansible_python_interpreter=sys.executable,
        mosquitto_boards=[
            {"name": "a/b"}, {"name": "e", "devices": ["d"]},
            {"name": "c", "devices": ["d"], "input": "imu/x-{device}"},
        ],
        mosquitto_users=[{"name": "c"}, {"name": "f", "read": ["x\ntopic readwrite #"]}],
        mosquitto_passwords={"g": "x", "f": "x"}, mosquitto_password_hashes={"f": "$7$101$x$y"},
        mosquitto_listeners=[{"port": 1883, "tls": False}, {"port": 1883, "address": "::1\nallow_anonymous true"}],
        mosquitto_log_types=["notice", "error\n"], mosquitto_topic_root="har\n",
        mosquitto_bridges=[
            {"name": "n\n", "host": "h", "topics": [{"filter": "y/#\n"}]},
            {"name": "i", "host": "h", "client_id": "x\nallow_anonymous true", "topics": []},
            {"name": "p", "host": "h", "protocol": "mqttv50\n", "topics": []},
            {"name": "b", "host": "h\n", "topics": [{"filter": "x/#"}, {"filter": "x/#", "direction": "in"}]},
        ],
    )  # fmt: skip
    assert ran.returncode == 2
    told = ran.stdout + ran.stderr
    missing = [
        words for words in (
            "board or user a/b: a name is", "board or user c: is there 2 times", "device d: is read by 2 boards",
            "board c: mqtt_in.filter has one level {device}", "user f: a filter is one line",
            "user f: has a password and the hash of one", "user g: has a password, and is neither",
            "listener 1883: without TLS only on the loopback", "port 1883: has several listeners",
            "bridge b: x/# is there twice", "listener 1883: an address is one word",
            "mosquitto_log_types: error", "mosquitto_topic_root: is one word", ": a name is at most 32 letters",
            ": a filter has no spaces", *(f"bridge {b}: host, client_id and protocol are one word" for b in "ipb"),
        ) if words not in told
    ]  # fmt: skip
    assert missing == [], told


def test_no_rules_at_all_mean_that_nobody_may_anything(rendered: Path, tmp_path: Path) -> None:
    with start_hub(rendered, tmp_path, free_port()) as hub:
        rules = (hub.folder / "acl").read_text()
        (hub.folder / "acl").write_text(rules[: rules.index("\n\n")] + "\n")
        hub.broker.stop()
        hub.broker.start()
        with hub.client("kitchen") as kitchen:
            assert kitchen.publish("har/kitchen/status") == DENIED
            assert kitchen.publish("else/where") == DENIED
