"""What Home Assistant is told, so that it shows a board and its sensors by itself: MQTT device discovery.

Sources: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (topic, shared options, components,
removal, birth message), https://www.home-assistant.io/integrations/sensor/#device-class (units by class) and
https://www.home-assistant.io/integrations/sensor.mqtt/ (options, state "None"). The rules are checked in
tests/contract/test_home_assistant.py.

Nothing is taken from predictions: there is one every second, which a recorder of states would keep, and those that are
sent late would be taken for what is now.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from agent.core.settings import HomeAssistantSettings
from agent.core.wire import encode, topic_level
from agent.records import UNKNOWN

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_APPLICATION = "har-edge-agent"
_BIRTH = b"online"
_STREAM_AVAILABLE = "{{ 'online' if value_json is defined and value_json.state != 'offline' else 'offline' }}"
"""What a broker forgets is an empty message, which is no JSON."""

_STREAM_PLATFORMS = {"activity": "sensor", "confidence": "sensor", "problem": "binary_sensor"}


class Discovery:
    """The discovery messages of one agent. Pure: who sends them, and when, is not decided here.

    Attributes:
        topic: where `payload` goes, retained; an empty message there removes everything.
        birth_topic: where Home Assistant says that it has started, which is when `payload` is wanted again.
    """

    def __init__(self, settings: HomeAssistantSettings, root: str, agent: str, version: str, board: str = "") -> None:
        """`root`: first level of the agent's topics. `version`: of the agent. `board`: what the board calls itself."""
        self._max_devices = settings.max_devices
        self._root = root
        self._agent = agent
        self._agent_id = object_id(agent)
        self._version = version
        self._board = board
        self.topic = f"{settings.prefix}/device/{self._agent_id}/config"
        self.birth_topic = f"{settings.prefix}/status"

    def is_birth(self, topic: str, payload: bytes) -> bool:
        """Whether a message says that Home Assistant has started."""
        return topic == self.birth_topic and payload == _BIRTH

    def shown(self, streams: Iterable[str]) -> list[str]:
        """Return which of `streams` are described: the first by name, as many as are configured."""
        return sorted(streams)[: self._max_devices]

    def payload(self, labels: Sequence[str], streams: Sequence[str], removed: Sequence[str] = ()) -> bytes:
        """Return the message that describes the agent and `streams`, which `shown` has chosen.

        `labels`: the model's. `removed`: streams that were described before and shall be shown no more; they are
        named in one message and left out of the next.
        """
        components: dict[str, dict[str, Any]] = self._of_agent()
        for stream in streams:
            components |= self._of_stream(stream, labels)
        for stream in set(removed).difference(streams):
            components |= {_key(stream, kind): {"p": platform} for kind, platform in _STREAM_PLATFORMS.items()}
        device: dict[str, Any] = {
            "ids": [f"{_APPLICATION}:{self._agent_id}"],
            "name": self._agent,
            "mf": _APPLICATION,
            "sw": self._version,
        }
        if self._board:
            device["mdl"] = self._board
        return encode(
            {
                "dev": device,
                "o": {"name": _APPLICATION, "sw": self._version},
                "availability": [self._agent_available()],
                "qos": 1,
                "cmps": components,
            }
        )

    def _of_agent(self) -> dict[str, dict[str, Any]]:
        telemetry, health = self._topic("telemetry"), self._topic("health")
        measured = {"p": "sensor", "state_topic": telemetry, "state_class": "measurement"}
        diagnostic = {"entity_category": "diagnostic"}
        components = {
            "problem": {
                "p": "binary_sensor",
                "name": "Problem",
                "device_class": "problem",
                "state_topic": health,
                "value_template": "{{ 'OFF' if value_json.state == 'ok' else 'ON' }}",
                "json_attributes_topic": health,
                "json_attributes_template": (
                    "{{ {'reasons': value_json.reasons | map(attribute='text') | list} | tojson }}"
                ),
            },
            "temperature": measured
            | diagnostic
            | {
                "name": "Temperature",
                "device_class": "temperature",
                "unit_of_measurement": "°C",
                "value_template": "{{ value_json.temperature_c }}",
            },
            "power": measured
            | diagnostic
            | {
                "name": "Power",
                "device_class": "power",
                "unit_of_measurement": "W",
                "value_template": "{{ value_json.power.watts }}",
                "json_attributes_topic": telemetry,
                "json_attributes_template": "{{ {'source': value_json.power.source} | tojson }}",
            },
            "latency": measured
            | diagnostic
            | {
                "name": "Latency, 99 %",
                "device_class": "duration",
                "unit_of_measurement": "ms",
                "value_template": "{{ value_json.latency_ms.delivered.p99 | default(none) }}",
            },
            "windows": measured
            | diagnostic
            | {
                "name": "Windows",
                "unit_of_measurement": "windows/s",
                "value_template": "{{ value_json.windows_per_s }}",
            },
            "outbox": measured
            | diagnostic
            | {
                "name": "Waiting messages",
                "unit_of_measurement": "messages",
                "value_template": "{{ value_json.outbox.depth }}",
            },
            "written": measured
            | diagnostic
            | {
                "name": "Written to disk a day",
                "device_class": "data_size",
                "unit_of_measurement": "B",
                "value_template": "{{ value_json.outbox.written_bytes_per_day }}",
            },
        }
        return {
            f"agent_{kind}": {"unique_id": f"{_APPLICATION}:{self._agent_id}:{kind}"} | component
            for kind, component in components.items()
        }

    def _of_stream(self, stream: str, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        topic = f"{self._root}/{topic_level(stream)}"
        activity, availability = f"{topic}/activity", f"{topic}/availability"
        both = [self._agent_available(), {"topic": availability, "value_template": _STREAM_AVAILABLE}]
        components: dict[str, dict[str, Any]] = {
            "activity": {
                "name": f"{stream} activity",
                "device_class": "enum",
                "options": list(dict.fromkeys([*labels, UNKNOWN])),
                "state_topic": activity,
                "value_template": "{{ value_json.activity }}",
                "json_attributes_topic": activity,
                "json_attributes_template": "{{ {'previous': value_json.previous, 'time': value_json.time} | tojson }}",
                "availability": both,
                "availability_mode": "all",
            },
            "confidence": {
                "name": f"{stream} confidence",
                "unit_of_measurement": "%",
                "state_class": "measurement",
                "entity_category": "diagnostic",
                "state_topic": activity,
                "value_template": "{{ (value_json.confidence * 100) | round(1) }}",
                "availability": both,
                "availability_mode": "all",
            },
            "problem": {
                "name": f"{stream} problem",
                "device_class": "problem",
                "entity_category": "diagnostic",
                "state_topic": availability,
                "value_template": "{{ 'OFF' if value_json is defined and value_json.state == 'online' else 'ON' }}",
                "json_attributes_topic": availability,
                "json_attributes_template": (
                    "{{ {'reason': value_json.reason | default(none)} | tojson if value_json is defined else '{}' }}"
                ),
            },
        }
        of_stream = f"{_APPLICATION}:{self._agent_id}:stream:{object_id(stream)}"
        return {
            _key(stream, kind): {"p": platform, "unique_id": f"{of_stream}:{kind}"} | components[kind]
            for kind, platform in _STREAM_PLATFORMS.items()
        }

    def _agent_available(self) -> dict[str, str]:
        return {"topic": self._topic("status"), "value_template": "{{ value_json.state }}"}

    def _topic(self, name: str) -> str:
        return f"{self._root}/{topic_level(self._agent)}/{name}"


def object_id(name: str) -> str:
    """Return `name` with the characters that Home Assistant allows; one that is not the name ends with a hash of it."""
    allowed = "".join(c if c in _ID_CHARACTERS else "_" for c in name)[:100]
    if allowed == name and name:
        return name
    return f"{allowed}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _key(stream: str, kind: str) -> str:
    return f"stream_{object_id(stream)}_{kind}"
