"""Check: what on this board would keep the agent from working, found before it starts, and what to do about it.

What is found is a value, never an exception. Nothing is connected or changed here, and an agent that runs is not
disturbed: not even its lock is tried. What needs connections is in `check_connect`.
"""

import base64
import grp
import ipaddress
import json
import os
import platform
import pwd
import re
import shutil
import socket
import sqlite3
import ssl
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import psutil

from agent.adapters.board import Board
from agent.adapters.clock import SystemClock
from agent.adapters.mqtt import credential, sentences
from agent.adapters.power import Vcgencmd, open_power_meter
from agent.adapters.prometheus import HOST
from agent.adapters.slot_store import FolderSlotStore
from agent.app.compose import build_pipeline, credentials_dir, runtime_dir, state_dir
from agent.app.status import read_status
from agent.config import DEFAULT_PATH, PATH_VARIABLE, Config, Loaded, load_with_origins, section_kind
from agent.core.decoders.formats import decoder
from agent.core.settings import BrokerSettings
from agent.core.slots import SLOTS
from agent.errors import ConfigError, InferenceError, ModelContractError
from agent.ports import Clock
from agent.records import PowerReading

State = Literal["ok", "warning", "error"]
OK: State = "ok"
WARNING: State = "warning"
ERROR: State = "error"

_EXPIRES_SOON_DAYS = 30
_HOT_C = 80.0
"""A Raspberry Pi begins to slow down here (its documentation, "Frequency management and thermal control")."""
_LEAST_MEMORY = 100 << 20
_FIRST_YEAR = 2026
_MOST_COPIED = 512 << 20
_METER_S = 0.1
_WHEELS = ("x86_64", "aarch64")
_PACKAGES = ("numpy", "onnxruntime", "paho-mqtt", "psutil", "pynacl", "pyserial", "structlog", "typer")


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do if it is not well.

    `id`: area, and what in it, such as `serial.imu`. `section`: lines of a configuration that would suit, to be copied.
    """

    id: str
    state: State
    text: str
    fix: str = ""
    section: str = ""


class Places(NamedTuple):
    """Where the system keeps what is looked at."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")


_PLACES = Places()


# --- the configuration


def read_config(path: Path | None) -> tuple[Loaded | None, list[Finding]]:
    """Return the configuration, None if it cannot be used, and what there is to say of it."""
    try:
        loaded = load_with_origins(path)
    except ConfigError as e:
        first, *problems = str(e).split("\n  ")
        fix = "correct that; `har-agent check` without other options looks again"
        return None, [Finding("configuration", ERROR, line, fix) for line in problems or [first]]
    given = sum("." in key for key in loaded.origin if key not in _named_sections(loaded.config))
    named = path or os.environ.get(PATH_VARIABLE)
    source = str(named or DEFAULT_PATH) if named or DEFAULT_PATH.exists() else f"no {DEFAULT_PATH}, defaults"
    findings = [Finding("configuration", OK, f"{source}: {given} values are set")]
    config = loaded.config
    if not config.serial and not config.mqtt_in.filter:
        fix = "`har-agent check --connect` suggests a section for what is plugged in; or set filter in [mqtt_in]"
        findings.append(Finding("configuration", ERROR, "no source of samples is configured", fix))
    return loaded, findings


def effective(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return every value by `section.key`, and where it came from; secrets are in files, and only those are named."""
    return {
        f"{section}.{key}": {"value": value, "origin": loaded.origin.get(f"{section}.{key}", "default")}
        for section, settings in _settings(loaded.config)
        for key, value in settings.items()
    }


def effective_toml(loaded: Loaded) -> str:
    """Return `effective` as TOML that says the same when it is read."""
    lines: list[str] = []
    for section, settings in _settings(loaded.config):
        family, _, name = section.partition(".")
        lines += ["", f"[{family}.{_toml_key(name)}]" if name else f"[{section}]"]
        for key, value in settings.items():
            origin = loaded.origin.get(f"{section}.{key}", "default")
            text = f"{key} = {_toml(value)}" if value is not None else f"# {key} is not set"
            lines.append(f"{text:<40} # {origin}")
    return "\n".join(lines[1:])


def _settings(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in fields(Config):
        value = getattr(config, section.name)
        named = section_kind(section.name)[1]
        for name, settings in (
            ((f"{section.name}.{n}", s) for n, s in value.items()) if named else [(section.name, value)]
        ):
            yield name, {f.name: getattr(settings, f.name) for f in fields(settings)}


def _named_sections(config: Config) -> set[str]:
    return {name for name, _ in _settings(config) if "." in name}


def _toml_key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: str | float) -> str:
    # JSON's escapes are TOML's, but for surrogate pairs, and a character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- what can be told without connecting


def check_board(config: Config | None, places: Places = _PLACES, clock: Clock | None = None) -> Iterator[Finding]:
    """Look at everything that needs no connection; only at the board and the system without a configuration."""
    clock = clock or SystemClock()
    if config is not None:
        yield from check_user(config)
        running = running_agent(config, places, clock)
        yield _agent(running)
        yield from check_serial(config, places)
        yield from check_mqtt_in(config)
        for name, broker in config.broker.items():
            yield from check_broker(name, broker, clock)
        yield from check_cloud(config)
        yield from check_split(config)
        yield from check_model(config)
        yield from check_state_dir(config, places)
        yield check_runtime_dir(config)
        yield from check_outbox(config, running, clock)
        yield from check_prometheus(config, running)
    yield from check_clock(places, clock)
    yield from check_hardware(config or Config(), places, clock)
    yield from check_system()


def running_agent(config: Config, places: Places = _PLACES, clock: Clock | None = None) -> int | None:
    """Return the process id of the agent that uses this state directory, None if none does. Takes no lock."""
    try:
        with (state_dir(config) / "lock").open("rb") as lock:
            about, said = os.fstat(lock.fileno()), lock.read(32).strip()
        locks = (places.procfs / "locks").read_text("ascii", "replace").splitlines()
    except OSError:
        locks, about, said = [], None, b""
    own = int(said) if said.isdigit() else 0
    for line in locks:
        # 3: FLOCK  ADVISORY  WRITE 25778 fe:00:2998866 0 EOF (proc_locks(5))
        match = re.match(r"\d+: FLOCK +\S+ +WRITE (-?\d+) (\w+):(\w+):(\d+) ", line)
        if match is None or about is None or int(match[4]) != about.st_ino:
            continue
        device = (int(match[2], 16), int(match[3], 16))
        # Some file systems show another device there than to whoever asks for the file.
        if device == (os.major(about.st_dev), os.minor(about.st_dev)) or int(match[1]) == own:
            return own or max(int(match[1]), 0) or None
    # An outbox in memory has no lock.
    status = read_status(config, clock)
    pid = status.said.get("pid")
    return pid if isinstance(pid, int) and status.state in ("ok", "degraded", "failing", "starting") else None


def _agent(running: int | None) -> Finding:
    if running is None:
        return Finding("agent", OK, "no agent is running here")
    return Finding("agent", OK, f"an agent is running, process {running}; `har-agent status` tells how it is")


def check_serial(config: Config, places: Places = _PLACES) -> Iterator[Finding]:
    """Look at every `[serial.NAME]`: its settings, its port, and whether this user may open that."""
    used: dict[str, str] = {}
    for name, settings in config.serial.items():
        area, wrong = f"serial.{name}", False
        try:
            decoder(settings.format, name, settings)
        except ConfigError as e:
            wrong = True
            yield Finding(area, ERROR, str(e), f"set it in [serial.{name}]; `har-agent check --connect` measures it")
        for finding in _port(area, settings.port, places):
            wrong = True
            yield finding
        real = os.path.realpath(settings.port) if settings.port else ""
        if real and real in used:
            wrong = True
            text = f"serial.{used[real]} reads the same port, {real}: only one of them can open it"
            yield Finding(area, ERROR, text, "take one of the two sections out")
        used.setdefault(real, name)
        if not wrong:
            yield Finding(area, OK, f"{settings.port}: {settings.format} at {settings.baud} baud")


def _port(area: str, port: str, places: Places) -> Iterator[Finding]:
    """What is wrong with a port's name, or with the rights to it."""
    links = places.dev / "serial/by-id"
    try:
        lasting = {os.path.realpath(link): str(link) for link in sorted(links.iterdir())}
    except OSError:
        lasting = {}
    known = f"there are {', '.join(lasting.values())}" if lasting else f"nothing is in {links}"
    if not port:
        yield Finding(area, ERROR, "port is not set", f"set it, best as {links}/…; {known}")
        return
    try:
        mode = os.stat(port)  # noqa: PTH116  of whatever the links lead to
    except OSError as e:
        yield Finding(area, ERROR, f"{port}: {e.strerror or e}", f"plug the sensor in, or correct port; {known}")
        return
    if not stat.S_ISCHR(mode.st_mode):
        yield Finding(area, ERROR, f"{port} is no serial port", f"set port; {known}")
        return
    if not os.access(port, os.R_OK | os.W_OK):
        yield Finding(area, ERROR, f"{port} may not be opened by {_user()}", _grant(mode))
        return
    better = lasting.get(os.path.realpath(port))
    if better is not None and os.path.dirname(port) != str(links):  # noqa: PTH120
        text = f"{port} may be another sensor after the next start, or when it is plugged in again"
        yield Finding(area, WARNING, text, f'port = "{better}"')


def _grant(port: os.stat_result) -> str:
    """How this user comes to open a port: through its group, if that is one for ports."""
    both = stat.S_IRGRP | stat.S_IWGRP
    try:
        group = grp.getgrgid(port.st_gid).gr_name if port.st_gid and port.st_mode & both == both else ""
    except KeyError:
        group = ""
    if not group:
        return 'let udev give the port to a group: SUBSYSTEM=="tty", …, GROUP="dialout", MODE="0660"'
    return f"sudo usermod -aG {group} {_user()}, and log in again, or restart the agent"


def _user(uid: int | None = None) -> str:
    """The name of a user, this one's if none is given."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_mqtt_in(config: Config) -> Iterator[Finding]:
    """Look at `[mqtt_in]`, if it is used."""
    settings = config.mqtt_in
    if not settings.filter:
        return
    if settings.broker and settings.broker not in config.broker:
        text = f"broker is {settings.broker!r}, and there is no section [broker.{settings.broker}]"
        yield Finding("mqtt_in", ERROR, text, f"choose among {', '.join(config.broker)}, or add that section")
        return
    where = f"broker {settings.broker}" if settings.broker else "the first broker that can be reached"
    group = f", shared with the group {settings.share}" if settings.share else ""
    yield Finding("mqtt_in", OK, f"samples of {settings.filter} from {where}{group}")


def check_cloud(config: Config) -> Iterator[Finding]:
    """Say what `[cloud]` lets leave the board, if it is used."""
    settings = config.cloud
    if not settings.enabled:
        return
    what = "codes"
    if settings.payload == "window":
        what = "samples" + (f", with the {settings.windows - 1} before each" if settings.windows > 1 else "")
    text = f"windows in doubt ({settings.when}) may leave the board as {what}: through broker {config.cloud_broker}, "
    yield Finding("cloud", OK, f"{text}to workers of the service {settings.service}")


def check_split(config: Config) -> Iterator[Finding]:
    """Try whether bundles can be run as `[split]` says, if it is used, and say what may leave the board.

    The configured one, without which the agent would not start, and the installed one, of which all would run here. One
    that cannot be used at all is told by `check_model`.
    """
    settings = config.split
    if not settings.enabled:
        return
    from agent.app.compose import open_model
    from agent.app.split import open_split

    correct = 'correct that, or set cut = "off" in [split]: all of it runs here then'
    try:
        split = open_split(config, SystemClock())
    except ConfigError as e:
        yield Finding("split", ERROR, str(e), correct)
        return
    store = FolderSlotStore(state_dir(config))
    slot = store.load()[0].active
    tried = False
    for bundle, state in [(config.model.bundle, ERROR), *([(store.folder(slot), WARNING)] if slot else [])]:
        try:
            trouble = split.around(open_model(bundle)).trouble
        except (ModelContractError, InferenceError):
            continue
        if trouble is not None:
            yield Finding("split", state, trouble, correct)
            return
        tried = True
    if not tried:
        return
    if not settings.asks:
        stop = f"the exit {settings.exit} answers" if settings.exit else "windows that an exit is sure of stop there"
        yield Finding("split", OK, f"nothing leaves the board: {stop}")
        return
    best = "as a tensor, or as samples" if settings.privacy == "window" else "as a tensor"
    what = {"auto": f"{best}, at the cut that is best", "window": "as samples"}.get(
        settings.cut, f"as the tensor {settings.cut}"
    )
    text = f"every window may leave the board {what}: through broker {config.split_broker}, to workers of the service "
    yield Finding("split", OK, f"{text}{settings.service}")


def check_broker(name: str, broker: BrokerSettings, clock: Clock) -> Iterator[Finding]:
    """Look at one `[broker.NAME]`: its files, and whether a password would be seen on the network."""
    area = f"broker.{name}"
    found = [*_broker_files(area, broker, clock), *_broker_secrecy(area, broker)]
    yield from found
    if not found:
        how = "TLS" if broker.tls else "no TLS"
        yield Finding(
            area, OK, f"{broker.url}, MQTT {broker.protocol}, {how}{', as ' + broker.user if broker.user else ''}"
        )


def _broker_secrecy(area: str, broker: BrokerSettings) -> Iterator[Finding]:
    if broker.password_file and not broker.user:
        yield Finding(area, WARNING, "password_file is set, and user is not: no password is sent", "set user")
    if not broker.tls and (broker.ca_file or broker.cert_file or broker.key_file):
        text = "ca_file, cert_file and key_file are for TLS, which mqtt:// does without"
        yield Finding(area, WARNING, text, f'url = "mqtts://{broker.host}:8883"')
    if broker.user and broker.password_file and not broker.tls and not _is_loopback(broker.host):
        text = f"everybody on the way to {broker.host} can read the password and the messages"
        yield Finding(area, WARNING, text, f'url = "mqtts://{broker.host}:8883", and ca_file if its CA is your own')


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _broker_files(area: str, broker: BrokerSettings, clock: Clock) -> Iterator[Finding]:
    """What is wrong with the files that a broker's section names."""
    readable: dict[str, Path] = {}
    for setting in ("password_file", "ca_file", "cert_file", "key_file"):
        named = getattr(broker, setting)
        if not named:
            continue
        path = credential(named, credentials_dir())
        try:
            path.read_bytes()
            open_to_all = setting in ("password_file", "key_file") and path.stat().st_mode & stat.S_IROTH
        except OSError as e:
            if "/" not in named and not os.environ.get("CREDENTIALS_DIRECTORY"):
                where = "may not be read by this user" if isinstance(e, PermissionError) else "is not here"
                text = f"{setting} {path} {where}: systemd may bring it when it starts the agent"
                fix = f"run this as root; or see that the unit has LoadCredential={named}:…, or give a whole path"
                yield Finding(area, WARNING, text, fix)
            else:
                fix = f"let {_user()} read it" if isinstance(e, PermissionError) else "make it, or correct its path"
                yield Finding(area, ERROR, sentences.unreadable(setting, path, e), fix)
            continue
        readable[setting] = path
        if open_to_all:
            yield Finding(area, WARNING, f"everybody on this board may read {setting} {path}", f"chmod o-r {path}")
    if not broker.tls:
        return
    if not broker.ca_file:
        known = ssl.get_default_verify_paths()
        if not (known.cafile or known.capath):
            text = "this system knows no CA, so it can trust no broker's certificate"
            yield Finding(area, ERROR, text, "apt install ca-certificates, or set ca_file")
    yield from _certificates(area, broker, readable, clock)


def _certificates(area: str, broker: BrokerSettings, readable: Mapping[str, Path], clock: Clock) -> Iterator[Finding]:
    if "ca_file" in readable:
        problem = _tried("ca_file", readable["ca_file"], lambda c: c.load_verify_locations(readable["ca_file"]))
        if problem is not None:
            yield Finding(area, ERROR, problem, "correct ca_file")
            return
    for setting in ("ca_file", "cert_file"):
        path = readable.get(setting)
        found = [span for span in map(_validity, _pem_certificates(path) if path else ()) if span is not None]
        if not found:
            continue
        # Of a client's chain the first is its own; of CAs, any may be the one that counts: the best is looked at.
        now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
        valid = [span for span in found if span[0] <= now] or found
        begin, end = found[0] if setting == "cert_file" else max(valid, key=lambda span: span[1])
        clock_says = f"this board's clock, which says {now:%Y-%m-%d %H:%M} UTC"
        if now < begin:
            text = f"{setting} {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC"
            yield Finding(area, ERROR, text, f"set {clock_says}; or wait, or make it anew, if that is right")
        elif end < now:
            fix = f"renew it; or set {clock_says}, if that is wrong"
            yield Finding(area, ERROR, f"{setting} {path} has expired on {end:%Y-%m-%d}", fix)
        elif (end - now).days < _EXPIRES_SOON_DAYS:
            yield Finding(area, WARNING, f"{setting} {path} expires on {end:%Y-%m-%d}", "renew it before that")
    certificate, key = readable.get("cert_file"), readable.get("key_file")
    if certificate is None or (broker.key_file and key is None):
        return
    setting = "key_file" if key is not None else "cert_file"
    # A passphrase that is never right, or OpenSSL would ask for one on the terminal.
    problem = _tried(setting, key or certificate, lambda c: c.load_cert_chain(certificate, key, password=""))
    if problem:
        yield Finding(area, ERROR, problem, "give the certificate and the key that was made for it, both PEM")


def _tried(setting: str, path: Path, use: Callable[[ssl.SSLContext], None]) -> str | None:
    """Why a file cannot be used for TLS."""
    try:
        use(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except (OSError, ValueError) as e:
        return sentences.unreadable(setting, path, e)
    return None


def _pem_certificates(path: Path) -> list[bytes]:
    text = path.read_text("ascii", "replace")
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    try:
        return [base64.b64decode(block) for block in blocks]
    except ValueError:
        return []


def _validity(der: bytes) -> tuple[datetime, datetime] | None:
    """When a certificate's validity begins and ends; None if it cannot be read. Layout: RFC 5280, section 4.1."""
    try:
        inside = _der(_der(der)[0][1])[0][1]
        parts = [part for part in _der(inside) if part[0] != 0xA0]  # less the version, which may be left out
        begin, end = (_der_time(tag, value) for tag, value in _der(parts[3][1])[:2])
    except (ValueError, IndexError):
        return None
    return begin, end


def _der_time(tag: int, value: bytes) -> datetime:
    """A UTCTime, whose years have two digits, or a GeneralizedTime. RFC 5280, section 4.1.2.5.

    Raises:
        ValueError: it is neither.
    """
    year = 4 if tag == 0x18 else 2
    text = value.decode("ascii")
    short = int(text[:year])
    whole = short if year == 4 else short + (1900 if short >= 50 else 2000)
    return datetime.strptime(f"{whole}{text[year:]}", "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _der(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a DER sequence: tag and content of each."""
    out, at = [], 0
    while at + 2 <= len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size]), at + size
        out.append((tag, data[at : at + length]))
        at += length
    return out


def check_model(config: Config) -> Iterator[Finding]:
    """Look at the configured bundle and at those in the slots, and run their golden vectors."""
    try:
        from agent.app.models import BundleLoader, trust_store
    except ImportError as e:
        fix = "install the agent again; on a 32-bit system there is no ONNX Runtime: use a 64-bit one"
        yield Finding("model", ERROR, f"ONNX Runtime cannot be loaded: {e}", fix)
        return
    store = FolderSlotStore(state_dir(config))
    loader = BundleLoader(trust_store(config))
    state, damage = store.load()
    if damage:
        fix = "let this user read it, or install the bundle again: the configured one is in service until then"
        yield Finding("model.slots", WARNING, damage, fix)
    if state.rolled_back is not None:
        given_up = state.rolled_back
        text = f"{given_up.model} was given up at {given_up.time}: {given_up.reason}"
        yield Finding("model.slots", WARNING, text, "`har-agent models verify` it before it is installed again")
    used = [("model.configured", config.model.bundle, state.active is None, "for when nothing is installed")]
    meanings = {state.previous: "kept for a rollback", state.candidate: "waiting for its trial"}
    used += [
        (f"model.{slot}", store.folder(slot), slot == state.active, meanings.get(slot, ""))
        for slot in SLOTS
        if slot == state.active or slot in meanings
    ]
    for area, name, active, otherwise in used:
        needed = ERROR if active or area == "model.configured" else WARNING
        try:
            incoming = loader.inspect(name, allow_unsigned=True)
        except (ModelContractError, InferenceError, ConfigError) as e:
            yield Finding(area, needed, str(e), "`har-agent models install` it again, or set model.bundle")
            continue
        try:
            build_pipeline(incoming.opened.model, incoming.opened.manifest, config)
        except ConfigError as e:
            yield Finding(area, needed, str(e), "correct window.hop")
            continue
        role = "in service" if active else otherwise
        signed = f"signed by {incoming.signed_by[:16]}" if incoming.signed_by else "not signed by a trusted key"
        text = f"{incoming.opened.model.id}, {role}: golden vectors are right on this board; {signed}"
        unsigned = area != "model.configured" and not incoming.signed_by and not config.model.allow_unsigned
        fix = "`har-agent models trust` the key of who made it, or install one that is signed" if unsigned else ""
        yield Finding(area, WARNING if unsigned else OK, text, fix)


def check_user(config: Config) -> Iterator[Finding]:
    """Say that somebody else's agent is looked at: what this user may not do, that one may."""
    folder = state_dir(config)
    owner = _other_owner(folder) if os.geteuid() and folder.is_dir() else None
    if owner is not None:
        text = f"{folder} belongs to {owner}: what follows is what {_user()} may do, not what the agent may"
        yield Finding("user", WARNING, text, "sudo har-agent check")


def check_state_dir(config: Config, places: Places = _PLACES) -> Iterator[Finding]:
    """Look at the state directory: whether it can be written, outlives a restart, and has room for the outbox."""
    folder, area = state_dir(config), "state_dir"
    there = _existing(folder)
    if not there.is_dir():
        yield Finding(area, ERROR, f"{there} is no directory", "set another agent.state_dir")
        return
    try:
        disk = os.statvfs(there)
    except OSError as e:
        yield Finding(area, ERROR, f"{there}: {e.strerror or e}", "check that disk, or set another agent.state_dir")
        return
    if disk.f_flag & os.ST_RDONLY:
        text = f"{there} is on a file system that is read-only: predictions are lost with the end of the agent"
        yield Finding(area, ERROR, text, f"mount it writable, or set another agent.state_dir: see dmesg for {there}")
        return
    if not os.access(there, os.W_OK | os.X_OK):
        if there == folder and _other_owner(there) is not None:
            yield Finding(area, WARNING, f"{folder} may not be written by {_user()}")
            return
        what = "may not be written" if there == folder else f"does not exist, and cannot be made in {there},"
        text = f"{folder} {what} by {_user()}: predictions are lost with the end of the agent"
        yield Finding(area, ERROR, text, f"sudo install -d -o {_user()} {folder}; or set another agent.state_dir")
        return
    if config.outbox.durability != "memory" and (kind := _file_system(there, places)) in ("tmpfs", "ramfs"):
        text = f"{folder} is on a {kind}, which a restart of the board empties"
        yield Finding(area, WARNING, text, "set agent.state_dir to a folder on a disk")
    free = disk.f_bavail * disk.f_frsize / 1e6
    held = sum(p.stat().st_size for p in folder.glob("outbox.db*")) / 1e6 if folder.is_dir() else 0.0
    needed = config.outbox.max_mb - held
    if config.outbox.durability != "memory" and free < needed:
        text = f"{there} has {free:.0f} MB left, and the outbox may come to need {needed:.0f} MB more"
        yield Finding(area, WARNING, text, "make room on that disk, or set outbox.max_mb lower")
    else:
        made = "" if there == folder else ", and will be made"
        yield Finding(area, OK, f"{folder}{made}; {free:.0f} MB left")


def _other_owner(folder: Path) -> str | None:
    """The user that a folder belongs to, if that is neither this one nor root."""
    uid = folder.stat().st_uid
    if uid in (0, os.geteuid()):
        return None
    return _user(uid)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that there is."""
    return next((p for p in (folder, *folder.absolute().parents) if os.path.lexists(p)), Path("/"))


def _file_system(folder: Path, places: Places) -> str:
    """The kind of file system that a folder is on, as far as can be told."""
    try:
        lines = (places.procfs / "self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    real = Path(os.path.realpath(folder))
    # The last of those mounted on one point is the one that is seen.
    mounts = [(line.split()[1], line.split()[2]) for line in lines if line.count(" ") >= 3]
    fitting = [(point, kind) for point, kind in mounts if real.is_relative_to(point)]
    return max(reversed(fitting), key=lambda m: len(m[0]), default=("", ""))[1]


def check_runtime_dir(config: Config) -> Finding:
    """Look at where the agent writes what `har-agent status` reads."""
    folder = runtime_dir(config)
    there = _existing(folder)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("runtime_dir", OK, f"{folder}{'' if there == folder else ', and will be made'}")
    text = f"{folder} may not be written by {_user()}: `har-agent status` would know nothing"
    fix = "run this as the agent's user; or let it write there, or set agent.runtime_dir"
    return Finding("runtime_dir", WARNING, text, fix)


def check_outbox(config: Config, running: int | None, clock: Clock) -> Iterator[Finding]:
    """Look at what waits for a broker; on a copy, so that an agent that starts meanwhile finds the file free."""
    folder, area = state_dir(config), "outbox"
    try:
        aside = sorted(p.name for p in folder.glob("outbox.corrupt-*") if not p.name.endswith(("-wal", "-shm")))
    except OSError:
        aside = []
    if aside:
        text = f"{len(aside)} damaged files were set aside in {folder}: {', '.join(aside)}"
        fix = "check the disk (dmesg, SD card); delete them when nobody wants to look at them"
        yield Finding(area, WARNING, text, fix)
    path = folder / "outbox.db"
    if config.outbox.durability == "memory":
        yield Finding(area, OK, "kept in memory: what the broker does not have is lost with the end of the agent")
        return
    if running is not None:
        telemetry = read_status(config, clock).said.get("telemetry")
        held = telemetry.get("outbox") if isinstance(telemetry, dict) else None
        depth = held.get("depth") if isinstance(held, dict) else None
        text = "in use by the running agent" + (f": {depth} messages wait" if isinstance(depth, int) else "")
        yield Finding(area, OK, text)
        return
    try:
        if not path.exists():
            yield Finding(area, OK, "empty: no agent has run here yet")
            return
        depth, size = _count(path)
    except PermissionError:
        yield Finding(area, WARNING, f"{path} may not be read by {_user()}", "run this as the agent's user")
        return
    except OSError as e:
        yield Finding(area, WARNING, f"{path} cannot be looked into: {e.strerror or e}", "check the disk")
        return
    except sqlite3.Error as e:
        fix = "nothing: the agent sets the file aside and keeps what can be read; check the disk"
        yield Finding(area, WARNING, f"{path} is damaged: {e}", fix)
        return
    full = size / (config.outbox.max_mb * 1e6)
    text = f"{depth} messages wait, {size / 1e6:.2f} MB of {config.outbox.max_mb:g} MB"
    if full > 0.8:
        yield Finding(area, WARNING, text, "start the agent while its broker can be reached, or raise outbox.max_mb")
    else:
        yield Finding(area, OK, text)


def _count(path: Path) -> tuple[int, int]:
    """Messages in an outbox, and their bytes. The file is not opened, only copied with its log.

    Raises:
        OSError: it cannot be copied.
        sqlite3.Error: it is no outbox.
    """
    files = [p for p in (path, Path(f"{path}-wal")) if p.exists()]
    if sum(p.stat().st_size for p in files) > _MOST_COPIED:
        raise OSError(f"it is too large to look into, {path.stat().st_size / 1e6:.0f} MB")
    with TemporaryDirectory(prefix="har-check-") as folder:
        for p in files:
            shutil.copyfile(p, Path(folder) / p.name)
        with closing(sqlite3.connect(Path(folder) / path.name)) as db:
            row = db.execute("SELECT count(*), coalesce(sum(length(topic) + length(payload)), 0) FROM messages")
            depth, size = row.fetchone()
            return int(depth), int(size)


def check_prometheus(config: Config, running: int | None) -> Iterator[Finding]:
    """Look whether the port of the text endpoint is free, if one is configured."""
    port = config.telemetry.prometheus_port
    if not port:
        return
    try:
        # As the endpoint itself binds: connections that are over must not keep the port.
        socket.create_server((HOST, port)).close()
    except OSError as e:
        if running is not None:
            yield Finding("prometheus", OK, f"{HOST}:{port} is in use, as it is when the agent serves it")
            return
        text = f"{HOST}:{port} cannot be listened on: {e.strerror or e}"
        yield Finding("prometheus", WARNING, text, "set telemetry.prometheus_port to a free port from 1024 on, or to 0")
    else:
        yield Finding("prometheus", OK, f"{HOST}:{port} is free")


def check_clock(places: Places, clock: Clock) -> Iterator[Finding]:
    """Look at who keeps the wall clock right. Labels do not depend on it, the time in messages does."""
    keeper = _time_keeper(places)
    try:
        real_time = any((places.sysfs / "class/rtc").iterdir())
    except OSError:
        real_time = False
    battery = "a real-time clock" if real_time else "no real-time clock: after a start, NTP must answer first"
    now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    if now.year < _FIRST_YEAR:
        text = f"it says {now:%Y-%m-%d %H:%M} UTC, which cannot be"
        yield Finding("clock", ERROR, f"{text}; {battery}", "set it: TLS certificates and times in messages need it")
    elif clock.synced():
        yield Finding("clock", OK, f"kept right by {keeper or 'something unknown'}; {battery}")
    else:
        text = f"not synchronised, though {keeper} runs" if keeper else "not synchronised, and nothing is there for it"
        fix = (
            "is the NTP server reachable? `timedatectl timesync-status`, or `chronyc tracking`"
            if keeper
            else "apt install systemd-timesyncd, or chrony"
        )
        yield Finding("clock", WARNING, f"{text}; {battery}", fix)


def _time_keeper(places: Places) -> str:
    """The program that sets the clock, as far as can be told."""
    if (places.run / "systemd/timesync/synchronized").exists():
        return "systemd-timesyncd"
    # /proc shows the first 15 characters of a name.
    known = {"chronyd": "chrony", "systemd-timesyn": "systemd-timesyncd", "ntpd": "ntpd", "ntpsec": "ntpsec"}
    try:
        processes = [p for p in places.procfs.iterdir() if p.name.isdigit()]
    except OSError:
        return ""
    for process in processes:
        try:
            name = (process / "comm").read_text("utf-8", "replace").strip()
        except OSError:
            continue
        if name in known:
            return known[name]
    return ""


def check_hardware(
    config: Config, places: Places, clock: Clock, run: Callable[[str], str | None] | None = None
) -> Iterator[Finding]:
    """Look at the board: how hot it is, whether it holds itself back, and what measures its power."""
    run = run or Vcgencmd()
    board = Board(places.sysfs, places.procfs, run)
    yield Finding("board", OK, board.model() or "it does not say what it is")
    heat, throttling = board.temperature(), board.throttling()
    if heat is not None:
        text = f"{heat.celsius:.0f} °C ({heat.zone})"
        hot = heat.celsius >= _HOT_C
        yield Finding("board.temperature", WARNING if hot else OK, text, "cool it" if hot else "")
    else:
        yield Finding("board.temperature", OK, "nothing measures it")
    if throttling.active:
        fix = "use a stronger supply and a shorter cable" if throttling.under_voltage else "cool the board"
        text = f"the board holds itself back: {', '.join(throttling.reasons)} ({throttling.source})"
        yield Finding("board.throttling", WARNING, text, fix)
    elif throttling.since_boot:
        text = f"not now, but since its start: {', '.join(throttling.since_boot)} ({throttling.source})"
        yield Finding("board.throttling", WARNING, text, "use a stronger supply, and cool the board")
    else:
        text = "nothing tells" if throttling.active is None else f"none ({throttling.source})"
        yield Finding("board.throttling", OK, text)
    yield _power(config, places, clock, run)


def _power(config: Config, places: Places, clock: Clock, run: Callable[[str], str | None]) -> Finding:
    meter = open_power_meter(clock, config.telemetry, places.sysfs, places.procfs, run)
    # Counters and the model give a mean, of the time between two looks.
    reading: PowerReading = meter.read()
    if reading.watts is None:
        clock.sleep(_METER_S)
        reading = meter.read()
    wanted = config.telemetry.power
    if reading.watts is not None:
        error = "" if reading.error_pct is None else f" ± {reading.error_pct:.0f} %"
        return Finding("board.power", OK, f"{reading.watts:.2f} W{error} ({reading.source})")
    if wanted not in ("auto", "none"):
        fix = 'power = "auto" in [telemetry] takes what there is'
        return Finding("board.power", WARNING, f"{wanted} gives no figure on this board", fix)
    return Finding("board.power", OK, "nothing measures it; idle_watts and busy_watts in [telemetry] allow a model")


def check_system(machine: str | None = None, word_bytes: int | None = None) -> Iterator[Finding]:
    """Look at Python, its packages, the processor's kind, and memory."""
    machine, bits = machine or platform.machine(), 8 * (word_bytes or struct.calcsize("P"))
    python = f"Python {platform.python_version()}, {machine}, {bits} bit, as {_user()}"
    if os.geteuid() == 0:
        python += ", who may do more than the agent's own user: `sudo -u har-agent har-agent check` looks with its eyes"
    if machine not in _WHEELS or bits != 64:
        fix = "use a 64-bit system: ONNX Runtime has wheels for x86-64 and 64-bit ARM"
        yield Finding("system.python", WARNING, python, fix)
    else:
        yield Finding("system.python", OK, python)
    versions, missing = [], []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Finding("system.packages", ERROR, f"not installed: {', '.join(missing)}", "install the agent again")
    yield Finding("system.packages", OK, ", ".join(versions))
    try:
        import onnxruntime
    except ImportError as e:
        yield Finding("system.onnxruntime", ERROR, f"it cannot be loaded: {e}", "install the agent again")
    else:
        providers = ", ".join(onnxruntime.get_available_providers())
        yield Finding("system.onnxruntime", OK, f"the agent uses CPUExecutionProvider; there are {providers}")
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**20:.0f} of {memory.total / 2**20:.0f} MiB are available"
    little = memory.available < _LEAST_MEMORY
    yield Finding("system.memory", WARNING if little else OK, text, "end what is not needed" if little else "")
