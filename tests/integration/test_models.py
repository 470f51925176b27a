"""`har-agent models` on real bundles and a real state directory, and a running agent that is told."""

import json
import os
import re
import shutil
import signal as signals
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
from fakes import signal
from graphs import exit_head, write_bundle, write_segment
from nacl.signing import SigningKey

from agent.adapters.bundle import load_bundle, pack
from agent.adapters.clock import SystemClock
from agent.adapters.signature import public_pem
from agent.app.compose import open_model, runtime_dir, state_dir
from agent.app.models import build_slots
from agent.config import load
from agent.core.manifest import Exit
from agent.pipeline import Pipeline
from agent.records import Prediction, SampleBatch, Turn
from agent.runtime.engine import TimedModel

KEY = SigningKey(b"k" * 32)
AGENT = str(Path(sys.executable).with_name("har-agent"))


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The state directory that every command here works on."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("HAR_AGENT__AGENT__STATE_DIR", str(folder))
    monkeypatch.setenv("HAR_AGENT_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("[model]\ncanary_windows = 4\n")
    return folder


@pytest.fixture
def public_key(tmp_path):
    path = tmp_path / "release.pub.pem"
    path.write_bytes(public_pem(bytes(KEY.verify_key)))
    return path


def make(folder, har_base, name, *, sign=True, change=lambda raw: None):
    """A bundle of another name, signed."""
    shutil.copytree(har_base, folder / name)
    manifest = folder / name / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["name"] = name
    change(raw)
    manifest.write_text(json.dumps(raw))
    if sign:
        (folder / name / "manifest.sig").write_bytes(KEY.sign(manifest.read_bytes()).signature)
    return folder / name


def har_agent(*arguments, status=0):
    ran = subprocess.run(
        [AGENT, "models", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == status, ran.stderr
    return ran.stdout if status == 0 else ran.stderr


def test_a_signed_bundle_is_installed_listed_and_rolled_back(state, public_key, har_base, tmp_path):
    bundle = make(tmp_path, har_base, "har-mine")
    single = tmp_path / "har-mine.harmodel"
    single.write_bytes(pack(bundle))

    fingerprint = json.loads(har_agent("trust", public_key, "--json"))["trusted"]
    done = json.loads(har_agent("install", single, "--json"))
    rows = json.loads(har_agent("list", "--json"))

    assert done["signed_by"] == fingerprint
    assert done["changed"]
    assert done["agent"] == "no agent is running here"
    assert [(r["where"], r["state"], r["signed_by"]) for r in rows if r["state"]] == [
        ("shipped", "configured, active", None),
        ("slot a", "candidate", fingerprint),
    ]
    assert fingerprint in har_agent("trust", "--list")
    assert f"signed by {fingerprint}" in har_agent("verify", single)
    assert "nothing to roll back" in har_agent("rollback", status=2)
    assert har_agent("trust", "--remove", fingerprint[:12]).startswith(fingerprint)
    assert "no key that is trusted here has signed it" in har_agent("install", single, status=78)


def test_a_bundle_with_context_is_shown_as_such(state, tmp_path):
    bundle = write_bundle(tmp_path / "tiny", 5, novel=True)

    text = har_agent("verify", bundle)
    assert "novelty is that of novelty.onnx, it looks back 6.4 s" in text
    assert "decoder.onnx is not proven" in text
    facts = json.loads(har_agent("verify", bundle, "--json"))
    assert (facts["novelty"], facts["look_back_s"]) == ("novelty.onnx", 6.4)
    har_agent("install", bundle, "--allow-unsigned")
    rows = {row["where"]: row for row in json.loads(har_agent("list", "--json"))}
    assert (rows["slot a"]["novelty"], rows["slot a"]["look_back_s"]) == ("novelty.onnx", 6.4)


def test_a_part_of_a_network_is_verified_and_not_installed(state, tmp_path):
    whole = load_bundle(write_bundle(tmp_path / "tiny", 5, novel=True))
    part = write_segment(tmp_path / "part", whole, "ea", "code")

    assert f"it holds {whole.id}, ea to code; it is not signed" in har_agent("verify", part)
    assert json.loads(har_agent("verify", part, "--json"))["segment"] == f"{whole.id}, ea to code"
    assert f"holds a part of {whole.id}" in har_agent("install", part, "--allow-unsigned", status=78)
    assert not list(state.iterdir())


def test_the_heads_of_exits_are_verified_too(state, tmp_path):
    exits = (Exit("early", "eb", None, 0.9),)
    har_agent("verify", write_bundle(tmp_path / "a", novel=True, graphs={"exit-early.onnx": exit_head()}, exits=exits))
    other = write_bundle(tmp_path / "b", novel=True, graphs={"exit-early.onnx": exit_head(opset=18)}, exits=exits)

    assert "exit-early.onnx cannot be run as one graph" in har_agent("verify", other, status=78)
    assert "exit-early.onnx cannot be run as one graph" in har_agent("install", other, "--allow-unsigned", status=78)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sign": False}, "it is not signed"),
        ({"change": lambda raw: raw["input"].update(rate_hz=100)}, "cannot take over live"),
        ({"change": lambda raw: raw["calibration"].update(temperature=0)}, "must be positive"),
        ({"change": lambda raw: raw["normalisation"].update(mean=[1, 1, 1, 1, 1, 1])}, "fails its golden vectors"),
    ],
)
def test_a_bundle_that_is_refused_leaves_nothing_behind(state, public_key, har_base, tmp_path, how, says):
    har_agent("trust", public_key)

    assert says in har_agent("install", make(tmp_path, har_base, "har-mine", **how), status=78)
    assert [p.name for p in state.iterdir()] == ["trusted"]


@pytest.mark.parametrize("change", ["manifest", "signature", "key", "file"])
def test_a_bundle_that_was_changed_after_signing_is_refused(state, public_key, har_base, tmp_path, change):
    bundle = make(tmp_path, har_base, "har-mine")
    manifest, signature = bundle / "manifest.json", bundle / "manifest.sig"
    if change == "manifest":
        manifest.write_bytes(manifest.read_bytes() + b" ")
    elif change == "signature":
        signature.write_bytes(bytes(64))
    elif change == "key":
        signature.write_bytes(SigningKey(b"o" * 32).sign(manifest.read_bytes()).signature)
    else:
        (bundle / "CARD.md").write_text("other")
    har_agent("trust", public_key)

    assert re.search(r"no key that is trusted|CARD\.md", har_agent("install", bundle, status=78))
    assert not (state / "models").exists()


def test_an_unsigned_bundle_is_taken_on_request_and_that_is_said(state, har_base, tmp_path):
    bundle = make(tmp_path, har_base, "har-mine", sign=False)

    ran = subprocess.run(
        [AGENT, "models", "install", str(bundle), "--allow-unsigned"], capture_output=True, text=True, check=True
    )

    assert "no signature of a trusted key" in ran.stderr
    assert "slot a" in ran.stdout


def test_wrong_usage_is_told(state, public_key, tmp_path):
    assert "give a key to trust" in har_agent("trust", status=2)
    assert "give a key to trust" in har_agent("trust", public_key, "--list", status=2)
    assert "cannot be read" in har_agent("trust", tmp_path / "nowhere.pem", status=69)
    (tmp_path / "secret.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    assert "private key" in har_agent("trust", tmp_path / "secret.pem", status=65)
    assert "no model bundle at" in har_agent("install", tmp_path / "nowhere", status=78)


def test_what_is_damaged_is_listed_as_such(state, har_base, tmp_path, monkeypatch):
    har_agent("install", make(tmp_path, har_base, "har-mine", sign=False), "--allow-unsigned")
    (state / "models" / "a" / "CARD.md").unlink()
    monkeypatch.setenv("HAR_AGENT__MODEL__BUNDLE", str(tmp_path / "nowhere"))

    rows = [row for row in json.loads(har_agent("list", "--json")) if row["where"] != "shipped"]

    assert [r["where"] for r in rows] == [str(tmp_path / "nowhere"), "slot a"]
    assert rows[0]["state"].startswith("configured, active, unusable: ")
    assert "CARD.md cannot be read" in rows[1]["state"]

    (state / "models" / "slots.json").write_text("rot")

    assert "damaged: " in har_agent("list")


def test_a_state_directory_that_cannot_be_used_is_told(state, har_base, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HAR_AGENT__AGENT__STATE_DIR", str(tmp_path / "file"))
    bundle = make(tmp_path, har_base, "har-mine", sign=False)

    assert "cannot be prepared: Not a directory" in har_agent("install", bundle, "--allow-unsigned", status=74)


LISTENER = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(sys.argv[2] or os.getpid(), file=lock, flush=True)
print("ready", flush=True)
got = signal.sigtimedwait([signal.SIGHUP], 30)
print("told" if got else "not told", flush=True)
"""


@pytest.fixture
def listener(state):
    """A process that stands for an agent: it holds the lock and waits for SIGHUP."""
    started = []

    def start(pid=""):
        command = [sys.executable, "-c", LISTENER, str(state / "lock"), pid]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_running_agent_is_told(listener, har_base, tmp_path):
    process = listener()

    said = har_agent("install", make(tmp_path, har_base, "har-mine", sign=False), "--allow-unsigned")

    assert f"the agent (process {process.pid}) was told" in said
    assert process.stdout.readline() == "told\n"


def test_a_number_in_a_lock_that_nobody_holds_is_left_alone(state, har_base, tmp_path):
    (state / "lock").write_text(str(os.getpid()))
    before = signals.signal(signals.SIGHUP, lambda *_: pytest.fail("this process was signalled"))
    try:
        said = har_agent("install", make(tmp_path, har_base, "har-mine", sign=False), "--allow-unsigned")
    finally:
        signals.signal(signals.SIGHUP, before)

    assert "no agent is running here" in said


def test_an_agent_that_cannot_be_told_is_told_by_hand(listener, har_base, tmp_path):
    listener("nonsense")

    said = har_agent("install", make(tmp_path, har_base, "har-mine", sign=False), "--allow-unsigned")

    assert "systemctl reload har-agent" in said


def test_many_installations_at_once_leave_one_whole_candidate(state, har_base, tmp_path):
    bundles = [make(tmp_path, har_base, f"har-{i}", sign=False) for i in range(6)]

    running = [
        subprocess.Popen([AGENT, "models", "install", str(b), "--allow-unsigned"], stderr=subprocess.PIPE, text=True)
        for b in bundles
    ]
    ended = [(p.communicate(timeout=120)[1], p.returncode) for p in running]

    assert [status for _, status in ended] == [0] * 6, ended
    rows = json.loads(har_agent("list", "--json"))
    (candidate,) = [r for r in rows if r["state"] == "candidate"]
    assert candidate["model"] == json.loads((state / "models" / "slots.json").read_text())["models"]["a"]
    assert sorted(p.name for p in (state / "models").iterdir()) == [".lock", "a", "slots.json"]


class Live:
    """A pipeline as `run` has it, with its slots, fed by hand."""

    def __init__(self):
        config = load()
        self.slots = build_slots(config, SystemClock())
        opened = self.slots.open()
        self.timed = TimedModel(opened.model, SystemClock())
        self.pipeline = Pipeline(self.timed, opened.manifest, config.decision, config.window.hop)
        self.slots.attach(self.pipeline, self.timed)
        self.at = 0
        self.predictions = []
        self._values = signal(64 * 50)

    def turn(self):
        part = np.arange(self.at, self.at + 64)
        batch = SampleBatch("s", np.rint(part * 2e7).astype(np.int64), self._values[part % len(self._values)], self.at)
        self.at += 64
        events = self.pipeline.feed([batch])
        self.predictions += [e for e in events if isinstance(e, Prediction)]
        self.slots.after_turn(Turn([batch], [], events, {}))


def test_a_real_bundle_takes_over_is_confirmed_and_rolled_back(state, har_base, tmp_path):
    live = Live()
    live.slots.install(str(make(tmp_path, har_base, "har-mine", sign=False)), allow_unsigned=True)
    for _ in range(30):
        live.turn()

    assert live.slots.status()["slot"] == "a"
    assert live.slots.status()["confirmed"]
    assert live.slots.problem is None
    assert [p.seq for p in live.predictions] == list(range(29))
    assert live.predictions[-1].model.startswith("har-mine@")
    # The same graphs under another name: every label and score is as if nothing had happened.
    unmoved = Pipeline(open_model("har-base"), open_model("har-base").bundle.manifest)
    part = np.arange(30 * 64)
    batch = SampleBatch("s", np.rint(part * 2e7).astype(np.int64), signal(64 * 50)[part], 0)
    expected = [e for e in unmoved.feed([batch]) if isinstance(e, Prediction)]
    assert [p._replace(model="") for p in live.predictions] == [p._replace(model="") for p in expected]

    har_agent("rollback", "--reason", "a test")
    live.slots.reload()
    live.turn()

    assert live.predictions[-1].model.startswith("har-base@")
    assert "a test" in live.slots.problem


def test_a_slot_with_rotten_bytes_is_put_aside(state, har_base, tmp_path):
    live = Live()
    live.slots.install(str(make(tmp_path, har_base, "har-mine", sign=False)), allow_unsigned=True)
    for _ in range(12):
        live.turn()
    encoder = state / "models" / "a" / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1])

    again = Live()

    assert again.slots.status()["model"].startswith("har-base@")
    assert "encoder.onnx" in again.slots.problem
    assert (state / "models" / "a.damaged").is_dir()
    assert "encoder.onnx" in json.loads((state / "models" / "slots.json").read_text())["rolled_back"]["reason"]


def swap_back_and_forth(folder, swaps):
    """Let two installed bundles take turns; print by how many bytes the process grew after the first 20 times."""
    slots_json = Path(folder) / "models" / "slots.json"
    both = [slots_json.read_bytes(), slots_json.read_bytes().replace(b'"active": "b"', b'"active": "a"')]
    both[1] = both[1].replace(b'"previous": "a"', b'"previous": "b"')
    process, live, rss = psutil.Process(), Live(), 0
    for i in range(20 + swaps):
        if i == 20:
            rss = process.memory_info().rss
        slots_json.write_bytes(both[(i + 1) % 2])
        live.slots.reload()
        live.turn()
        live.turn()
    grown = process.memory_info().rss - rss

    models = [p.model.partition("@")[0] for p in live.predictions]
    assert models == ["har-one", *(["har-two"] * 2 + ["har-one"] * 2) * ((20 + swaps) // 2)][: len(models)]
    assert [p.seq for p in live.predictions] == list(range(2 * (20 + swaps) - 1))
    json.dump(grown, sys.stdout)


def test_200_swaps_leave_memory_flat(state, har_base, tmp_path):
    """In a process of its own: what other tests have left in this one's heap is no measure."""
    live = Live()
    for name in ("har-one", "har-two"):
        live.slots.install(str(make(tmp_path, har_base, name, sign=False)), allow_unsigned=True)
        for _ in range(12):
            live.turn()
    tests = Path(__file__).parent
    code = f"from test_models import swap_back_and_forth as run; run({str(state)!r}, 200)"
    paths = os.pathsep.join(map(str, (tests, tests.parent)))

    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) < 5 << 20, f"{int(ran.stdout) / 2**20:.1f} MiB"


def test_installing_loads_the_library_of_signatures_and_running_does_not(state, har_base, tmp_path):
    code = """
import sys
from agent.adapters.clock import SystemClock
from agent.app.models import build_slots
from agent.config import load
from agent.core.manifest import Exit
build_slots(load(), SystemClock()).open()
print("nacl" in sys.modules)
"""
    har_agent("install", make(tmp_path, har_base, "har-mine", sign=False), "--allow-unsigned")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout == "False\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may do as another user")
def test_what_root_does_by_hand_does_not_lock_the_service_out(har_base, public_key, tmp_path, monkeypatch):
    with TemporaryDirectory() as name:  # tmp_path is where others may not even look
        folder = Path(name)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir()
        os.chown(state, 12345, 12345)
        monkeypatch.setenv("HAR_AGENT__AGENT__STATE_DIR", str(state))
        monkeypatch.setenv("HAR_AGENT__AGENT__RUNTIME_DIR", str(folder))
        monkeypatch.setenv("HAR_AGENT_CONFIG", "")
        har_agent("trust", public_key)
        # A bundle that only root may read, as an administrator has it.
        bundle = make(tmp_path, har_base, "har-mine")
        har_agent("install", bundle)
        (state / "models" / "slots.json").write_text(
            (state / "models" / "slots.json")
            .read_text()
            .replace('"active": null', '"active": "a"')
            .replace('"candidate": "a"', '"candidate": null')
        )
        har_agent("rollback")
        har_agent("list")
        for command in ("check", "status"):
            subprocess.run([AGENT, command], capture_output=True, check=False, timeout=60)
        har_agent("trust", "--remove", json.loads(har_agent("trust", "--list", "--json"))[0]["fingerprint"])

        assert {p.lstat().st_uid for p in state.rglob("*")} == {12345}
        assert [p.name for p in folder.iterdir()] == ["state"]


def test_folders_are_those_of_the_configuration_else_of_systemd(tmp_path):
    nothing = load(environ={})

    def resolved(environ, config=nothing):
        code = "import json, sys; from agent.app.compose import *; from agent.config import load; c = load(environ={});"
        code += "print(json.dumps([str(state_dir(c)), str(runtime_dir(c))]))"
        plain = {k: v for k, v in os.environ.items() if not k.endswith(("_DIRECTORY", "RUNTIME_DIR"))}
        ran = subprocess.run([sys.executable, "-c", code], env=plain | environ, capture_output=True, check=True)
        return json.loads(ran.stdout)

    usual = Path("/run/har-agent")
    run = str(usual) if os.access(usual if usual.exists() else usual.parent, os.W_OK) else "/var/lib/har-agent"
    assert resolved({}) == ["/var/lib/har-agent", run]
    assert resolved({"STATE_DIRECTORY": "/a:/b", "RUNTIME_DIRECTORY": "/c:/d"}) == ["/a", "/c"]
    own = load(environ={"HAR_AGENT__AGENT__STATE_DIR": "/own", "HAR_AGENT__AGENT__RUNTIME_DIR": "/run/own"})
    assert (state_dir(own), runtime_dir(own)) == (Path("/own"), Path("/run/own"))
