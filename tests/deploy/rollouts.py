"""What tests of rollouts share: a fleet with a broker, an operator who runs playbooks, and releases good and bad."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fleet import ROOT, Board, Fleet, RigError
from live import Listener, wait_until
from releases import HERE, build_release, keypair

from agent.adapters.bundle import pack

ANSIBLE = ROOT / "deploy/ansible"
BROKER_PORT = 8883
WINDOW_S = 2.56
HOP_S = 1.28
"""Of the shipped bundle: 128 and 64 samples at 50 Hz."""
VERIFY_S = 20
"""How long a release may take to be healthy; a start takes about 3 s, and a first window 2.56 s more."""

_RECAP = re.compile(r"^(\S+)\s*: (ok=.*)$", re.MULTILINE)


class Ran(NamedTuple):
    """What became of a playbook. `counts`: of the recap, by host. `boards`: outcome and reason of each, as reported."""

    rc: int
    said: str
    seconds: float
    counts: dict[str, dict[str, int]]
    boards: dict[str, dict[str, Any]]

    def outcomes(self) -> dict[str, str]:
        """Return the outcome of each board."""
        return {name: found["outcome"] for name, found in self.boards.items()}

    def changed(self) -> dict[str, int]:
        """Return how many tasks changed something, by host."""
        return {host: counts["changed"] for host, counts in self.counts.items()}

    def why(self, board: str) -> str:
        """Return the reason that was given for a board."""
        return str(self.boards[board]["reason"])


class Operator:
    """A person with the checkout, the keys and the certificates, in the hub: the last board is the broker's."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.boards, self.broker = fleet.boards[:-1], fleet.boards[-1]
        self.key, self.public_key = keypair(folder, "release")
        self.certificates = fleet.folder / "certificates"
        self.model_key, model_public_key = keypair(folder, "model")
        self.other_key, _ = keypair(folder, "other")
        self.releases: dict[str, Path] = {}
        # A copy: what is edited meanwhile must not change what a second run finds.
        self._checkout = shutil.copytree(ANSIBLE, folder / "checkout", dirs_exist_ok=True)
        self._runs = 0
        self._listeners: list[Listener] = []
        self.settings: dict[str, Any] = {
            "har_agent_release_key": str(self.public_key),
            "har_agent_trusted_keys": [str(model_public_key)],
            "har_agent_wait_healthy_s": VERIFY_S,
            "har_agent_soak_s": 2,
            "har_agent_canary_soak_s": 4,
            # The kernel's clock is the host's, which nothing may keep right.
            "har_agent_batches": [2, "100%"],
            "har_agent_config": {
                "broker": {
                    "fleet": {
                        "url": f"mqtts://{self.broker.name}:{BROKER_PORT}",
                        "ca_file": "ca.crt",
                        "cert_file": "client.crt",
                        "key_file": "client.key",
                    }
                },
                "telemetry": {"interval_s": 10.0},
                "homeassistant": {"enabled": True},
                "model": {"canary_windows": 4},
            },
            "har_agent_credentials": {
                "ca.crt": {"src": f"{self.certificates}/ca-bundle.crt"},
                "client.crt": {"src": f"{self.certificates}/clients/{{{{ inventory_hostname }}}}.crt"},
                "client.key": {"src": f"{self.certificates}/clients/{{{{ inventory_hostname }}}}.key"},
            },
            "mosquitto_users": [{"name": "test", "role": "operator", "read": ["homeassistant/#"]}],
        }  # fmt: skip

    def start(self, playbook: str, *arguments: str, only: Sequence[Board] = (), **given: Any) -> "Playing":
        """Start a playbook with the operator's settings; `given` go over them."""
        self._runs += 1
        report = self.folder / f"report-{self._runs}.json"
        groups = {"boards": self.boards, "brokers": [self.broker]}
        inventory = self.fleet.inventory(groups, self.settings, _sensor_of)
        extra = self.folder / f"given-{self._runs}.json"
        extra.write_text(json.dumps(given))
        limit = ["--limit", ",".join(board.name for board in only)] if only else []
        command = [
            Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, "-e", f"@{extra}", *limit, *arguments,
            playbook if "/" in playbook else f"playbooks/{playbook}.yml",
        ]  # fmt: skip
        env = {
            "HAR_ROLLOUT_REPORT": str(report),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.fleet.folder / "ssh"),
            "ANSIBLE_NOCOLOR": "1",
            # Seconds, twice, until a board counts as unreachable.
            "ANSIBLE_TIMEOUT": "5",
        }
        return Playing(self.fleet, self.fleet.start(command, env=env, cwd=self._checkout), report)

    def play(self, playbook: str, *arguments: str, only: Sequence[Board] = (), **given: Any) -> Ran:
        """Run a playbook to its end."""
        return self.start(playbook, *arguments, only=only, **given).result()

    def play_each(self, playbook: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Ran]:
        """Run a playbook for each of some boards by itself, at the same time; `given`: by board."""
        playing = {name: self.start(playbook, only=[self.fleet[name]], **their) for name, their in given.items()}
        with ThreadPoolExecutor(len(playing)) as pool:
            ran = {name: pool.submit(one.result) for name, one in playing.items()}
        return {name: one.result() for name, one in ran.items()}

    def listen(self, name: str = "test") -> Listener:
        """Return a subscriber to everything, that proves who it is as the user `test`."""
        own = self.certificates / "clients"
        with self.fleet.hub():
            files = self.certificates / "ca-bundle.crt", own / "test.crt", own / "test.key"
            listener = Listener(
                BROKER_PORT, f"{name}-listener", host=self.broker.address, tls=files, also="homeassistant/#"
            )
        self._listeners.append(listener)
        return listener

    def prepare(self) -> None:
        """Do what is done once: plug sensors in, build releases, make certificates, and set the broker up."""
        with ThreadPoolExecutor(1) as beside:
            releases = beside.submit(make_releases, self.folder / "releases", self.key)
            for board in self.boards:
                board.sensor()
            for ran in (self.play("certificates"), self.play("site", "--limit", "brokers")):
                if ran.rc:
                    raise RigError(ran.said)
            self.releases = releases.result()

    def close(self) -> None:
        """End what runs in this process."""
        for listener in self._listeners:
            listener.close()


def _sensor_of(board: Board) -> dict[str, Any]:
    port = {"port": "/dev/serial-imu", "format": "csv", "time": "ms"}
    return {"har_agent_config_host": {"serial": {f"imu-{board.name}": port}}}


class Playing:
    """A playbook that runs."""

    def __init__(self, fleet: Fleet, process: subprocess.Popen[str], report: Path) -> None:
        self.process = process
        self._fleet = fleet
        self._report = report
        self._began = time.monotonic()

    def result(self, timeout_s: float = 300) -> Ran:
        """Wait for its end."""
        said, _ = self.process.communicate(timeout=timeout_s)
        seconds = time.monotonic() - self._began
        counts = {
            host: {k: int(v) for k, v in (pair.split("=") for pair in line.split())}
            for host, line in _RECAP.findall(said)
        }
        boards = json.loads(self._report.read_text())["boards"] if self._report.exists() else {}
        return Ran(self.process.returncode, said, seconds, counts, boards)

    def cut_after(self, line: str, then_s: float) -> None:
        """Cut the controller's power `then_s` after it has said `line`; it must not have ended by then."""
        assert self.process.stdout is not None
        told = []
        for said in self.process.stdout:
            told.append(said)
            if line in said:
                break
        time.sleep(then_s)
        ended = self.process.poll()
        self._fleet.cut_controller()
        told.append(self.process.communicate()[0])
        assert ended is None, f"it ended with {ended} before it was cut off at {line}\n{''.join(told)}"


def _replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has changed: {text.count(old)} of {old!r}"
    path.write_text(text.replace(old, new))


def crashes_at_start(tree: Path) -> None:
    """Every check passes, and the daemon ends with an exception."""
    _replace_once(tree / "agent/app/run.py", "    live = build(config, clock, log, ending)\n",
                  '    raise RuntimeError("this release cannot start")\n')  # fmt: skip


def dies_of_sigill(tree: Path) -> None:
    """As a wheel for another processor does: an illegal instruction while the model's runtime is imported."""
    path = tree / "agent/adapters/onnx_model.py"
    path.write_text(path.read_text() + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")


def never_predicts(tree: Path) -> None:
    """It runs, reads samples, and never has a whole window."""
    _replace_once(tree / "agent/pipeline.py", "in stream.ring.push(piece.values):", "in ():")


def says_it_is_degraded(tree: Path) -> None:
    """It predicts, and its health says that something is wrong."""
    _replace_once(
        tree / "agent/runtime/live.py",
        "        health.set(HealthCode.CLOCK_UNSYNCED, unsynced, now_ns)\n",
        '        health.set(HealthCode.OUTBOX_DEGRADED, "this release cannot write to its disk", now_ns)\n',
    )


RELEASES: dict[str, tuple[str, Callable[[Path], None] | None]] = {
    "good": ("0.9.0", None),
    "better": ("0.9.1", None),
    "crashing": ("0.9.2", crashes_at_start),
    "sigill": ("0.9.3", dies_of_sigill),
    "mute": ("0.9.4", never_predicts),
    "degraded": ("0.9.5", says_it_is_degraded),
}
"""What the tests install, by what is to be expected of it."""


def make_releases(folder: Path, key: Path) -> dict[str, Path]:
    """Build and sign all of RELEASES for boards like this machine."""
    folder.mkdir(exist_ok=True)

    def make(name: str) -> Path:
        version, patch = RELEASES[name]
        return build_release(folder / name, version, (HERE,), key, patch)

    # The first fetches the wheels for the others.
    first, *others = RELEASES
    made = {first: make(first)}
    with ThreadPoolExecutor(2) as pool:
        return made | dict(zip(others, pool.map(make, others), strict=True))


def release_id(release: Path) -> str:
    """Return what boards call a release."""
    return str(json.loads((release / "release.json").read_text())["release"])


def tampered(release: Path, folder: Path, how: Callable[[Path], None]) -> Path:
    """Return a copy of a release that somebody changed."""
    shutil.copytree(release, folder, copy_function=shutil.copy)
    how(folder)
    return folder


def flip_a_byte(path: Path, at: float = 0.5) -> None:
    """Change one byte of a file in the middle."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def tampered_wheel(folder: Path, key: Path) -> None:
    """Change the agent's wheel inside the archive, and sign again: only the hash that pip is given tells."""
    archive = next(folder.glob("*.tar"))
    with tarfile.open(archive) as packed:
        members = [(member, packed.extractfile(member)) for member in packed]
        content = {member.name: (member, file.read()) for member, file in members if file}
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as packed:
        for name, (member, data) in content.items():
            half = len(data) // 2
            changed = name.startswith("wheels/har_edge_agent")
            new = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :] if changed else data
            packed.addfile(member, io.BytesIO(new))
    sign_again(folder, key)


def sign_again(release: Path, key: Path) -> None:
    """Bring a release's list of hashes up to date, and sign it with a key."""
    names = [line.split("  ")[1] for line in (release / "SHA256SUMS").read_text().splitlines()]
    digests = {name: hashlib.sha256((release / name).read_bytes()).hexdigest() for name in names}
    (release / "SHA256SUMS").write_text("".join(f"{digests[name]}  {name}\n" for name in names))
    _sign(key, release / "SHA256SUMS", release / "SHA256SUMS.sig")


def _sign(key: Path, path: Path, signature: Path) -> None:
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", path, "-out", signature]
    subprocess.run(command, check=True)


def make_bundle(
    folder: Path, key: Path, version: str, change: Callable[[dict[str, Any]], None] = lambda _: None
) -> Path:
    """Make a signed `.harmodel` of the shipped bundle in another version; `change` alters its manifest further."""
    shutil.copytree(ROOT / "models/har-base", folder, copy_function=shutil.copy)
    manifest = folder / "manifest.json"
    said = json.loads(manifest.read_text())
    said["version"] = version
    change(said)
    manifest.write_text(json.dumps(said))
    _sign(key, manifest, folder / "manifest.sig")
    packed = folder.with_suffix(".harmodel")
    packed.write_bytes(pack(folder))
    return packed


def at_work(listener: Listener, boards: Sequence[Board], timeout_s: float = 60) -> None:
    """Wait until every board has published a prediction that is newer than this call."""
    before = len(listener.arrivals)

    def devices() -> set[str]:
        return {name.split(":")[1] for _, name, _ in listener.arrivals[before:]}

    wanted = {f"imu-{board.name}" for board in boards}
    wait_until(lambda: wanted <= devices(), timeout_s, f"predictions of {sorted(wanted)}")


def boots(listener: Listener, boards: Sequence[Board]) -> dict[str, str]:
    """Return the name of each board's run of the agent, as its retained status says; wait until all are online."""

    def online() -> dict[str, str] | None:
        told = {board.name: listener.state(f"har/{board.name}/status") or {} for board in boards}
        names = {name: said["boot"] for name, said in told.items() if said.get("state") == "online"}
        return names if len(names) == len(boards) else None

    found: dict[str, str] = wait_until(online, 30, "all boards to be online")
    return found


def live_release(board: Board) -> str:
    """The release that a board runs, by its link; empty of a bare board."""
    return board.run('basename "$(readlink -f /opt/har-agent/current)"').stdout.strip()
