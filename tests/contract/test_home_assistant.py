"""What is published for Home Assistant keeps its rules, and its templates find their values in what is published.

The rules are those of the documentation, and of the schemas that enforce them in the core:
https://www.home-assistant.io/integrations/mqtt/#discovery-topic, #device-discovery-payload, #using-availability-topics;
https://www.home-assistant.io/integrations/sensor.mqtt/, /binary_sensor.mqtt/, /sensor/#device-class;
home-assistant/core: components/mqtt/schemas.py (DEVICE_DISCOVERY_SCHEMA), components/mqtt/sensor.py
(validate_sensor_state_and_device_class_config, _update_state), components/mqtt/entity.py (MQTT_ATTRIBUTES_BLOCKED),
components/sensor/const.py (DEVICE_CLASS_UNITS, DEVICE_CLASS_STATE_CLASSES). Only what the agent may use is here.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest
from built_messages import AGENT, LABELS, ROOT, built

from agent.core.discovery import Discovery, object_id
from agent.core.settings import HomeAssistantSettings
from agent.core.wire import topic_level

TOPIC = re.compile(r"homeassistant/device/[a-zA-Z0-9_-]+/config")
DEVICE_KEYS = {"ids", "name", "mf", "mdl", "sw"}
SHARED = {"dev", "o", "cmps", "availability", "availability_mode", "qos", "state_topic", "encoding"}
ENTITY = {
    "p",
    "unique_id",
    "name",
    "state_topic",
    "value_template",
    "device_class",
    "entity_category",
    "json_attributes_topic",
    "json_attributes_template",
    "availability",
    "availability_mode",
}
KEYS = {"sensor": ENTITY | {"unit_of_measurement", "state_class", "options"}, "binary_sensor": ENTITY}
UNITS = {
    "temperature": {"°C", "°F", "K"},
    "power": {"mW", "W", "kW", "MW", "GW", "TW"},
    "duration": {"d", "h", "min", "s", "ms", "μs"},
    "data_size": {"bit", "B", "kB", "MB", "GB"},
    "enum": {None},
}
STATE_CLASSES = {
    "temperature": {"measurement"},
    "power": {"measurement"},
    "duration": {"measurement", "total", "total_increasing"},
    "data_size": {"measurement", "total", "total_increasing"},
    "enum": set(),
}
BINARY_CLASSES = {"problem", "connectivity"}
BLOCKED_ATTRIBUTES = {"available", "device_class", "device_info", "icon", "name", "state", "unique_id", "friendly_name"}


def broken_rules(topic: str, payload: bytes) -> Iterator[str]:
    """Yield every rule of the documentation that a discovery message breaks."""
    if not TOPIC.fullmatch(topic):
        yield "the topic's object id is of letters, digits, _ and -"
    config = json.loads(payload)
    if not {"dev", "o", "cmps"} <= config.keys() <= SHARED:
        yield "device, origin and components are required, and nothing is there that is not shared"
    if not config["dev"].get("ids") or not config["dev"].keys() <= DEVICE_KEYS:
        yield "a device has identifiers"
    if not config["o"].get("name"):
        yield "an origin has a name"
    yield from broken_availability(config)
    ids = [component["unique_id"] for component in config["cmps"].values() if len(component) > 1]
    if len(set(ids)) < len(ids):
        yield "a unique id is unique"
    for name, component in config["cmps"].items():
        if len(component) > 1 or "p" not in component:
            yield from (f"{name}: {rule}" for rule in broken_component(component))


def broken_component(component: dict[str, Any]) -> Iterator[str]:
    platform = component.get("p")
    if platform not in KEYS:
        yield "a component has a platform"
        return
    if not component.keys() <= KEYS[platform]:
        yield f"keys that a {platform} does not know: {component.keys() - KEYS[platform]}"
    if not component.get("unique_id") or not component.get("state_topic"):
        yield "an entity has a unique id and a state topic"
    if component.get("entity_category") not in (None, "diagnostic"):
        yield "what only tells is diagnostic or none"
    yield from broken_availability(component)
    kind, unit, state_class = (component.get(k) for k in ("device_class", "unit_of_measurement", "state_class"))
    if platform == "binary_sensor":
        if kind not in BINARY_CLASSES:
            yield "an unknown class of binary sensors"
        return
    options = component.get("options")
    if (options is not None) != (kind == "enum"):
        yield "options go with the class enum"
    if options is not None and (not options or unit or state_class or len(set(options)) < len(options)):
        yield "options are some, each once, and have neither unit nor state class"
    if kind is not None and (kind not in UNITS or unit not in UNITS[kind]):
        yield f"{kind} is not measured in {unit}"
    if kind is not None and state_class is not None and state_class not in STATE_CLASSES[kind]:
        yield f"{kind} has no state class {state_class}"


def broken_availability(config: dict[str, Any]) -> Iterator[str]:
    if config.get("availability_mode", "latest") not in ("all", "any", "latest"):
        yield "an availability mode is all, any or latest"
    for availability in config.get("availability", []):
        if not availability.get("topic") or set(availability["topic"]) & set("+#"):
            yield "an availability has a topic"


def rendered(template: str, payload: bytes) -> str:
    """Render as Home Assistant does: `value_json` is there where the payload is JSON; nothing undefined is used."""
    known: dict[str, Any] = {"value": payload.decode()}
    with contextlib.suppress(ValueError):
        known["value_json"] = json.loads(payload)
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(template).render(known)


STREAMS = ("waist-07", "room/1", "Küche 2")


@pytest.fixture
def discovery() -> Discovery:
    return Discovery(HomeAssistantSettings(enabled=True), ROOT, AGENT, "0.2.0", "Raspberry Pi 5")


@pytest.fixture
def messages() -> dict[str, list[bytes]]:
    """Payloads that were really built, by topic."""
    return built(STREAMS)


def components(discovery: Discovery, *args: Any) -> dict[str, dict[str, Any]]:
    return json.loads(discovery.payload(*args))["cmps"]


def test_no_rule_is_broken(discovery):
    assert list(broken_rules(discovery.topic, discovery.payload(LABELS, STREAMS))) == []
    assert list(broken_rules(discovery.topic, discovery.payload([*LABELS, "unknown"], []))) == []
    assert list(broken_rules(discovery.topic, discovery.payload(LABELS, STREAMS, removed=["gone"]))) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda c: c.pop("o"), "origin"),
        (lambda c: c["dev"].pop("ids"), "identifiers"),
        (lambda c: c["cmps"]["agent_power"].pop("p"), "platform"),
        (lambda c: c["cmps"]["agent_power"].update(unit_of_measurement="J"), "power is not measured in J"),
        (lambda c: c["cmps"]["agent_power"].update(state_class="total"), "no state class total"),
        (lambda c: c["cmps"]["agent_power"].update(options=["a"]), "options go with"),
        (lambda c: c["cmps"]["agent_power"].update(unique_id=c["cmps"]["agent_latency"]["unique_id"]), "unique"),
        (lambda c: c["cmps"]["stream_waist-07_activity"].update(state_class="measurement"), "neither unit nor"),
        (lambda c: c["cmps"]["stream_waist-07_activity"].update(availability=[{}]), "an availability has a topic"),
        (lambda c: c["cmps"]["agent_problem"].update(device_class="enum"), "class of binary sensors"),
    ],
)
def test_a_broken_rule_is_found(discovery, change, rule):
    config = json.loads(discovery.payload(LABELS, STREAMS))
    change(config)
    if "o" not in config:
        config["o"] = {}

    assert rule in "; ".join(broken_rules(discovery.topic, json.dumps(config).encode()))


def test_every_template_finds_a_valid_state_in_what_is_published(discovery, messages):
    seen = 0
    for name, component in components(discovery, LABELS, STREAMS).items():
        for payload in messages[component["state_topic"]]:
            state = rendered(component["value_template"], payload)
            if component["p"] == "binary_sensor":
                assert state in ("ON", "OFF"), name
            elif "options" in component:
                assert state in component["options"], name
            else:
                assert state == "None" or float(state) >= 0, name
            seen += 1
    assert seen > 30


def test_availability_is_one_of_two_words(discovery, messages):
    config = json.loads(discovery.payload(LABELS, STREAMS))
    for holder in (config, *config["cmps"].values()):
        for availability in holder.get("availability", []):
            states = [rendered(availability["value_template"], p) for p in messages[availability["topic"]]]
            assert set(states) == {"online", "offline"}


def test_attributes_are_objects_that_home_assistant_takes(discovery, messages):
    for component in components(discovery, LABELS, STREAMS).values():
        for payload in messages[component["json_attributes_topic"]] if "json_attributes_topic" in component else ():
            attributes = json.loads(rendered(component["json_attributes_template"], payload))
            assert attributes.keys().isdisjoint(BLOCKED_ATTRIBUTES)


def test_a_stream_that_the_broker_forgot_is_offline_and_a_problem(discovery):
    shown = components(discovery, LABELS, STREAMS)

    assert rendered(shown["stream_waist-07_problem"]["value_template"], b"") == "ON"
    assert rendered(shown["stream_waist-07_activity"]["availability"][1]["value_template"], b"") == "offline"


def test_topics_are_those_of_the_publisher(discovery):
    for stream in STREAMS:
        activity = components(discovery, LABELS, [stream])[f"stream_{object_id(stream)}_activity"]
        assert activity["state_topic"] == f"{ROOT}/{topic_level(stream)}/activity"


def test_no_more_devices_are_shown_than_configured():
    discovery = Discovery(HomeAssistantSettings(max_devices=2), ROOT, AGENT, "1")
    names = components(discovery, LABELS, discovery.shown(f"d{k}" for k in range(100)), ["d5"])

    assert {n.split("_")[1] for n in names if n.startswith("stream") and len(names[n]) > 1} == {"d0", "d1"}
    assert names["stream_d5_activity"] == {"p": "sensor"}


def test_ids_of_any_two_names_differ():
    names = ["a b", "a_b", "a.b", "a/b", "", "é", "x" * 200, "x" * 201]
    ids = [object_id(name) for name in names]

    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,110}", i) for i in ids)


def test_a_birth_is_recognised(discovery):
    assert discovery.birth_topic == "homeassistant/status"
    assert discovery.is_birth("homeassistant/status", b"online")
    assert not discovery.is_birth("homeassistant/status", b"offline")
    assert not discovery.is_birth("other/status", b"online")
