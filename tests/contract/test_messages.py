"""What is really published, and what replays give, is what the schemas in docs/reference/schemas say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from built_messages import built
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "reference" / "schemas"
NAMES = sorted(path.stem for path in SCHEMAS.glob("*.json"))
CASES = sorted((ROOT / "tests" / "replay" / "cases").glob("*/expected.jsonl"))


def exact(schema: Any) -> Any:
    """Return a schema that takes no field which it does not name: the published ones do, for later versions."""
    if isinstance(schema, list):
        return [exact(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: exact(part) for key, part in schema.items()}
    return {**named, "additionalProperties": False} if "required" in schema else named


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(exact(schema))


def published() -> Iterator[tuple[str, Any]]:
    for topic, payloads in built(("waist-07", "room/1")).items():
        for payload in payloads:
            yield topic.rpartition("/")[2], json.loads(payload)


def test_every_kind_of_message_is_built_and_has_a_schema():
    assert {name for name, _ in published()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_published_is_what_its_schema_says(name):
    check = validator(name)
    messages = [message for kind, message in published() if kind == name]

    assert messages
    for message in messages:
        check.validate(message)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.parent.name)
def test_a_line_of_a_replay_is_a_prediction(case):
    check = validator("prediction")
    for line in case.read_text().splitlines():
        check.validate(json.loads(line))


@pytest.mark.parametrize("name", NAMES)
def test_a_message_that_is_not_whole_or_has_more_is_found(name):
    check = validator(name)
    message = next(message for kind, message in published() if kind == name)

    for broken in ({k: v for k, v in message.items() if k != "v"}, {**message, "extra": 1}, {**message, "v": 2}):
        assert not check.is_valid(broken)


def test_what_only_a_live_agent_knows_is_in_every_live_prediction():
    for name, message in published():
        if name == "prediction":
            assert {"id", "time", "clock_synced", "historical"} <= message.keys()
            assert message["historical"] is False
