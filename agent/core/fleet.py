"""What a subscriber knows of devices and agents, from the messages of `agent.core.messages`.

Anybody who may publish to a broker may publish anything: what is no such message is counted and changes nothing, text
is cleaned of all that a terminal would obey, and memory is bounded.
"""

import json
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from agent.core.messages import AvailabilityState, HealthState

DEVICE_MESSAGES = ("prediction", "activity", "availability")
AGENT_MESSAGES = ("status", "health", "telemetry")

MAX_DEVICES = 5000
MAX_AGENTS = 500
HISTORY = 32
"""Windows of a device that are remembered."""

_MAX_PAYLOAD = 1 << 16
_MAX_IDS = 20_000
_LONGEST_ID = 300
_LONGEST_NAME = 64
_LONGEST_TEXT = 200
_MAX_REASONS = 10
_REORDERED = 10_000
_RATE_NS = 30_000_000_000
_AVAILABILITY: tuple[str, ...] = get_args(AvailabilityState)
_HEALTH: tuple[str, ...] = get_args(HealthState)


class Window(NamedTuple):
    """One window of a device, as it is shown. `t_ns`: when it came."""

    t_ns: int
    activity: str
    confidence: float
    known: bool


@dataclass
class Device:
    """A device. `seen_ns`: when its last live prediction came. `historical`: it shows what was stored and sent later.

    `windows`: live ones received; `late`: historical ones.
    """

    name: str
    activity: str | None = None
    label: str | None = None
    confidence: float | None = None
    known: bool = True
    novelty: float | None = None
    latency_ms: float | None = None
    model: str | None = None
    availability: str | None = None
    reason: str | None = None
    seen_ns: int | None = None
    historical: bool = False
    windows: int = 0
    late: int = 0
    boot: str = ""
    seq: int = -1
    history: deque[Window] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def windows_per_s(self, now_ns: int) -> float:
        """Live predictions a second, over the last half minute."""
        times = [w.t_ns for w in self.history if now_ns - w.t_ns <= _RATE_NS]
        return (len(times) - 1) * 1e9 / max(now_ns - times[0], 1) if len(times) > 1 else 0.0

    def age_s(self, now_ns: int) -> float | None:
        """Seconds since the last live prediction."""
        return None if self.seen_ns is None else max(now_ns - self.seen_ns, 0) / 1e9

    def as_dict(self, now_ns: int) -> dict[str, Any]:
        """Return plain values, for JSON."""
        age_s = self.age_s(now_ns)
        names = ("activity", "label", "confidence", "known", "novelty", "latency_ms", "model")
        return {
            "kind": "device",
            "device": self.name,
            **{name: getattr(self, name) for name in names},
            "availability": self.availability,
            "reason": self.reason,
            "historical": self.historical,
            "windows": self.windows,
            "late": self.late,
            "windows_per_s": round(self.windows_per_s(now_ns), 3),
            "age_s": None if age_s is None else round(age_s, 3),
        }


@dataclass
class Agent:
    """An agent. `seen_ns`: when it last said something that was not retained. `reasons`: code and text of each."""

    name: str
    state: str | None = None
    health: str | None = None
    reasons: tuple[tuple[str, str], ...] = ()
    version: str | None = None
    release: str | None = None
    board: str | None = None
    model: str | None = None
    watts: float | None = None
    power_source: str | None = None
    power_error_pct: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    streams: float | None = None
    windows_per_s: float | None = None
    outbox_depth: float | None = None
    seen_ns: int | None = None

    def age_s(self, now_ns: int) -> float | None:
        """Seconds since it last said something."""
        return None if self.seen_ns is None else max(now_ns - self.seen_ns, 0) / 1e9

    def as_dict(self, now_ns: int) -> dict[str, Any]:
        """Return plain values, for JSON."""
        age_s = self.age_s(now_ns)
        names = ("state", "health", "version", "release", "board", "model", "watts", "power_source", "power_error_pct")
        more = ("temperature_c", "throttled", "streams", "windows_per_s", "outbox_depth")
        return {
            "kind": "agent",
            "agent": self.name,
            **{name: getattr(self, name) for name in (*names, *more)},
            "reasons": [{"code": code, "text": text} for code, text in self.reasons],
            "age_s": None if age_s is None else round(age_s, 3),
        }


class _UnreadableError(Exception):
    """A message is not what its topic says."""


class Fleet:
    """Messages in, the latest state of each device and agent out.

    A prediction is taken once, by its `id`. A historical one, or one older than what is shown, is counted and changes
    nothing that is newer.
    """

    def __init__(self, root: str) -> None:
        """`root`: first levels of every topic."""
        self._prefix = f"{root}/"
        self.devices: dict[str, Device] = {}
        """By their level of the topic, the one that was heard last at the end."""
        self.agents: dict[str, Agent] = {}
        self._ids: dict[str, None] = {}
        self.messages = self.repeats = self.unreadable = self.forgotten = 0

    def feed(self, topic: str, payload: bytes, t_ns: int, *, retained: bool = False) -> Device | Agent | None:
        """Take one message; return what it was about if that changed, None otherwise. `t_ns`: when it came."""
        self.messages += 1
        try:
            return self._take(topic, payload, t_ns, retained=retained)
        except _UnreadableError:
            self.unreadable += 1
            return None

    def _take(self, topic: str, payload: bytes, t_ns: int, *, retained: bool) -> Device | Agent | None:
        name, _, kind = topic.removeprefix(self._prefix).partition("/")
        if not topic.startswith(self._prefix) or not name or kind not in (*DEVICE_MESSAGES, *AGENT_MESSAGES):
            raise _UnreadableError
        if not payload and kind != "prediction":
            # How a retained message is cleared: an agent was told to forget it.
            forgotten: dict[str, Any] = self.devices if kind in DEVICE_MESSAGES else self.agents
            forgotten.pop(name, None)
            return None
        said = _parsed(payload)
        if kind in AGENT_MESSAGES:
            return self._agent(name, kind, said, t_ns, retained=retained)
        if kind == "prediction":
            return self._prediction(name, said, t_ns)
        return self._told(name, kind, said, retained=retained)

    def _prediction(self, name: str, said: dict[str, Any], t_ns: int) -> Device | None:
        identity, confidence, seq = said.get("id"), number(said.get("confidence")), said.get("seq")
        activity, label = text(said.get("activity"), _LONGEST_NAME), text(said.get("label"), _LONGEST_NAME)
        if (
            not isinstance(identity, str)
            or len(identity) > _LONGEST_ID
            or confidence is None
            or not isinstance(seq, int)
            or isinstance(seq, bool)
            or activity is None
            or label is None
        ):
            raise _UnreadableError
        if identity in self._ids:
            self.repeats += 1
            return None
        self._ids[identity] = None
        if len(self._ids) > _MAX_IDS:
            del self._ids[next(iter(self._ids))]
        device = self._device(name, said)
        late = said.get("historical") is True
        boot = identity.partition(":")[0]
        if late:
            device.late += 1
        # QoS 1 may bring messages out of order, by no more than are under way at once.
        newer = boot != device.boot or seq > device.seq or seq < device.seq - _REORDERED
        if not newer or (late and device.seen_ns is not None):
            return None
        confidence = min(max(confidence, 0.0), 1.0)
        device.activity, device.label, device.confidence = activity, label, confidence
        device.known = said.get("known") is not False
        device.novelty = number(said.get("novelty"))
        latency = said.get("latency_ms")
        device.latency_ms = number(latency.get("total")) if isinstance(latency, dict) else None
        device.model = text(said.get("model"), _LONGEST_NAME)
        device.boot, device.seq, device.historical = boot, seq, late
        if not late:
            device.seen_ns = t_ns
            device.windows += 1
            device.history.append(Window(t_ns, activity, confidence, device.known))
        return device

    def _told(self, name: str, kind: str, said: dict[str, Any], *, retained: bool) -> Device | None:
        if kind == "availability":
            state = said.get("state")
            if state not in _AVAILABILITY:
                raise _UnreadableError
            device = self._device(name, said)
            device.availability, device.reason = state, text(said.get("reason"), _LONGEST_TEXT)
            return device
        activity, confidence = text(said.get("activity"), _LONGEST_NAME), number(said.get("confidence"))
        if activity is None:
            raise _UnreadableError
        device = self._device(name, said)
        if retained and device.seen_ns is not None:
            return None
        device.activity = activity
        if device.confidence is None and confidence is not None:
            device.confidence = min(max(confidence, 0.0), 1.0)
        return device

    def _agent(self, name: str, kind: str, said: dict[str, Any], t_ns: int, *, retained: bool) -> Agent | None:
        state = said.get("state")
        if (kind == "status" and state not in ("online", "offline")) or (kind == "health" and state not in _HEALTH):
            raise _UnreadableError
        agent = self.agents.get(name)
        if agent is None:
            if len(self.agents) >= MAX_AGENTS:
                self.forgotten += 1
                return None
            agent = self.agents[name] = Agent(text(name, _LONGEST_NAME) or "?")
        if not retained:
            agent.seen_ns = t_ns
        if kind == "status":
            agent.state = state
            for key in ("version", "release", "board", "model"):
                setattr(agent, key, text(said.get(key), _LONGEST_NAME) or getattr(agent, key))
        elif kind == "health":
            agent.health, agent.reasons = state, _reasons(said.get("reasons"))
        else:
            agent.model = text(said.get("model"), _LONGEST_NAME) or agent.model
            agent.temperature_c = number(said.get("temperature_c"))
            agent.streams, agent.windows_per_s = number(said.get("streams")), number(said.get("windows_per_s"))
            power, throttling, outbox = (_part(said, key) for key in ("power", "throttling", "outbox"))
            agent.watts, agent.power_error_pct = number(power.get("watts")), number(power.get("error_pct"))
            agent.power_source = text(power.get("source"), _LONGEST_NAME)
            now = throttling.get("now")
            agent.throttled = now if isinstance(now, bool) else None
            agent.outbox_depth = number(outbox.get("depth"))
        return agent

    def _device(self, level: str, said: dict[str, Any]) -> Device:
        device = self.devices.pop(level, None)
        if device is None:
            if len(self.devices) >= MAX_DEVICES:
                del self.devices[next(iter(self.devices))]
                self.forgotten += 1
            device = Device("")
        # The topic is what a broker's access rules guard; a message may only spell its device out.
        device.name = text(said.get("device"), _LONGEST_NAME) or text(level, _LONGEST_NAME) or "?"
        self.devices[level] = device
        return device


def text(value: Any, longest: int) -> str | None:
    """Return text as one line that a terminal can only print; None for what is no text, or empty.

    Control characters, escape sequences and what turns the direction of writing become `�`.
    """
    if not isinstance(value, str) or not value:
        return None
    cut = value if len(value) <= longest else value[: longest - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in cut)


def number(value: Any) -> float | None:
    """Return a finite number; None for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _parsed(payload: bytes) -> dict[str, Any]:
    if len(payload) > _MAX_PAYLOAD:
        raise _UnreadableError
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError) as e:
        raise _UnreadableError from e
    if not isinstance(said, dict):
        raise _UnreadableError
    return said


def _part(said: dict[str, Any], key: str) -> dict[str, Any]:
    part = said.get(key)
    return part if isinstance(part, dict) else {}


def _reasons(said: Any) -> tuple[tuple[str, str], ...]:
    reasons = [r for r in said if isinstance(r, dict)] if isinstance(said, list) else []
    read = ((text(r.get("code"), _LONGEST_NAME), text(r.get("text"), _LONGEST_TEXT)) for r in reasons[:_MAX_REASONS])
    return tuple((code or "?", what or "") for code, what in read)
