"""What a watcher knows: right after honest messages, unharmed after any other."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import fleet as module
from agent.core.fleet import HISTORY, Agent, Device, Fleet, number, text

SECOND = 1_000_000_000

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def prediction(seq: int, device: str = "waist", boot: str = "b1", **more) -> bytes:
    said = {"v": 1, "id": f"{boot}:{device}:{seq}", "device": device, "seq": seq, "label": "walking"}
    said |= {"confidence": 0.75, "novelty": 0.5, "known": True, "activity": "walking", "historical": False}
    return json.dumps(said | {"latency_ms": {"total": 1.5}, "model": "m@1"} | more).encode()


def feed(fleet: Fleet, kind: str, said: object, name: str = "waist", t_ns: int = 0, *, retained: bool = False):
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    return fleet.feed(f"har/{name}/{kind}", payload, t_ns, retained=retained)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("har")


def test_a_prediction_is_what_is_shown(fleet: Fleet):
    device = feed(fleet, "prediction", prediction(0), t_ns=5 * SECOND)

    assert isinstance(device, Device)
    assert device.as_dict(7 * SECOND) == {
        "kind": "device", "device": "waist", "activity": "walking", "label": "walking", "confidence": 0.75,
        "known": True, "novelty": 0.5, "latency_ms": 1.5, "model": "m@1", "availability": None, "reason": None,
        "historical": False, "windows": 1, "late": 0, "windows_per_s": 0.0, "age_s": 2.0,
    }  # fmt: skip


def test_the_rate_falls_when_nothing_comes_any_more(fleet: Fleet):
    for k in range(100):
        feed(fleet, "prediction", prediction(k), t_ns=k * SECOND)

    device = fleet.devices["waist"]
    assert device.windows_per_s(99 * SECOND) == pytest.approx(1)
    assert device.windows_per_s(109 * SECOND) < 0.75
    assert device.windows_per_s(200 * SECOND) == 0
    assert len(device.history) == HISTORY


def test_a_repeat_is_dropped_by_its_id(fleet: Fleet):
    assert feed(fleet, "prediction", prediction(0))
    assert feed(fleet, "prediction", prediction(0)) is None

    assert (fleet.repeats, fleet.devices["waist"].windows) == (1, 1)


def test_ids_are_remembered_within_bounds(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_IDS", 10)
    for k in range(1000):
        feed(fleet, "prediction", prediction(k))

    assert len(fleet._ids) == 10
    assert feed(fleet, "prediction", prediction(995)) is None
    assert fleet.repeats == 1


def test_history_does_not_overwrite_what_is_newer_and_is_marked_where_there_is_nothing_else(fleet: Fleet):
    feed(fleet, "prediction", prediction(1, activity="sitting", historical=True))
    device = fleet.devices["waist"]
    assert (device.activity, device.historical, device.seen_ns, device.windows) == ("sitting", True, None, 0)

    feed(fleet, "prediction", prediction(9))
    feed(fleet, "prediction", prediction(3, activity="sitting", historical=True))
    feed(fleet, "prediction", prediction(2, boot="b0", activity="laying", historical=True))
    feed(fleet, "prediction", prediction(8, activity="standing"))
    assert (device.activity, device.historical, device.late, device.windows, device.seq) == ("walking", False, 3, 1, 9)

    feed(fleet, "prediction", prediction(0, boot="b2", activity="standing"))
    assert (device.activity, device.seq) == ("standing", 0)


def test_retained_messages_tell_what_was_and_not_that_it_is(fleet: Fleet):
    feed(fleet, "activity", {"activity": "sitting", "confidence": 0.9}, retained=True)
    feed(fleet, "availability", {"state": "offline", "reason": "unplugged"}, retained=True)
    device = fleet.devices["waist"]
    assert (device.activity, device.confidence, device.seen_ns) == ("sitting", 0.9, None)
    assert (device.availability, device.reason) == ("offline", "unplugged")

    feed(fleet, "prediction", prediction(0))
    feed(fleet, "activity", {"activity": "sitting", "confidence": 0.9}, retained=True)
    assert device.activity == "walking"


def test_an_agent_is_told_by_its_status_health_and_telemetry(fleet: Fleet):
    status = {"state": "online", "version": "1.2", "release": "1.2+aa", "board": "Pi 5"}
    feed(fleet, "status", status, "board", retained=True)
    reasons = [{"code": "broker_away", "text": "gone", "since_s": 3}, "no", {"text": 4}]
    feed(fleet, "health", {"state": "degraded", "reasons": reasons}, "board", retained=True)
    assert fleet.agents["board"].seen_ns is None
    power = {"watts": 3.5, "source": "ina219", "error_pct": 2}
    telemetry = {"model": "m@1", "temperature_c": 51.5, "throttling": {"now": True}, "power": power}
    agent = feed(fleet, "telemetry", telemetry | {"outbox": {"depth": 7}, "windows_per_s": 2}, "board", t_ns=SECOND)

    assert isinstance(agent, Agent)
    assert agent.as_dict(2 * SECOND) == {
        "kind": "agent", "agent": "board", "state": "online", "health": "degraded", "version": "1.2",
        "release": "1.2+aa", "board": "Pi 5", "model": "m@1", "watts": 3.5, "power_source": "ina219",
        "power_error_pct": 2.0, "temperature_c": 51.5, "throttled": True, "streams": None, "windows_per_s": 2.0,
        "outbox_depth": 7.0, "age_s": 1.0,
        "reasons": [{"code": "broker_away", "text": "gone"}, {"code": "?", "text": ""}],
    }  # fmt: skip


def test_what_is_cleared_is_forgotten(fleet: Fleet):
    feed(fleet, "prediction", prediction(0))
    feed(fleet, "status", {"state": "online"}, "board")
    feed(fleet, "availability", b"")
    feed(fleet, "status", b"", "board")

    assert (fleet.devices, fleet.agents, fleet.unreadable) == ({}, {}, 0)


def test_devices_and_agents_beyond_their_number_are_forgotten_the_longest_silent_first(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_DEVICES", 3)
    monkeypatch.setattr(module, "MAX_AGENTS", 2)
    for k, name in enumerate("abcad"):
        feed(fleet, "prediction", prediction(k, name), name)
        feed(fleet, "status", {"state": "online"}, name)

    assert list(fleet.devices) == ["c", "a", "d"]
    assert list(fleet.agents) == ["a", "b"]
    assert fleet.forgotten == 3


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("prediction", b""),
        ("prediction", b"\xff\xfe"),
        ("prediction", b"[" * 50_000),
        ("prediction", b"{" + b" " * 70_000 + b"}"),
        ("prediction", [1]),
        ("prediction", {"id": 5}),
        ("prediction", prediction(0, confidence=True)),
        ("prediction", prediction(0, confidence="1")),
        ("prediction", prediction(0).replace(b"0.75", b"NaN")),
        ("prediction", prediction(0).replace(b"0.75", b"9" * 4000)),
        ("prediction", prediction(0).replace(b'"seq": 0', b'"seq": 0.5')),
        ("prediction", prediction(0, id="x" * 1000)),
        ("prediction", prediction(0, activity=["walking"])),
        ("availability", {"state": []}),
        ("availability", {"state": "great"}),
        ("activity", {"activity": 3}),
        ("status", {"state": {"a": 1}}),
        ("health", {"state": None}),
        ("other", {}),
        ("prediction/more", prediction(0)),
    ],
)
def test_what_is_no_message_is_counted_and_changes_nothing(fleet: Fleet, kind: str, said: object):
    assert feed(fleet, kind, said) is None

    assert (fleet.unreadable, fleet.devices, fleet.agents) == (1, {}, {})


def test_topics_of_others_are_no_messages(fleet: Fleet):
    for topic in ("har", "har/", "har//prediction", "other/waist/prediction", "harx/waist/prediction", ""):
        fleet.feed(topic, prediction(0), 0)

    assert (fleet.unreadable, fleet.devices) == (6, {})


@given(st.sampled_from([*module.DEVICE_MESSAGES, *module.AGENT_MESSAGES]), st.text(max_size=20), JSON, st.booleans())
def test_any_json_is_survived_and_shown_without_what_a_terminal_obeys(kind, name, said, retained):
    fleet = Fleet("har")
    base = json.loads(prediction(0)) | {"state": "online"}
    for key in base:
        fleet.feed(f"har/{name}/{kind}", json.dumps(base | {key: said}).encode(), 0, retained=retained)
        fleet.feed(f"har/{name}/{kind}", json.dumps(said).encode(), 0, retained=retained)

    for shown in [*fleet.devices.values(), *fleet.agents.values()]:
        assert json.dumps(shown.as_dict(5), allow_nan=False).isprintable()
        assert all(v.isprintable() for v in shown.as_dict(5).values() if isinstance(v, str))


def test_text_is_one_line_that_only_prints():
    assert text("a\x1b[2J\n\x9b\u202eb\ud800", 20) == "a�[2J���b�"
    assert text("x" * 100, 5) == "xxxx…"
    assert text("", 5) is text(5, 5) is text(None, 5) is None


@pytest.mark.parametrize("value", [True, None, "1", [1], float("nan"), float("inf"), 10**400])
def test_what_is_no_finite_number_is_none(value):
    assert number(value) is None
